"""Whether everything that a run reads is where its settings say, before anything is built or started."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any

from dataset.data import DataConfig
from dataset.files import BadRecord, DataError, Files, join_path
from dataset.readers import list_files
from dataset.retrieval import PairsConfig
from dataset.samples import BASE64_STARTS, MAX_PATH_LENGTH
from utils.remote import is_remote

GLANCE_BYTES = 1 << 20


def check_places(config: DataConfig, splits: Sequence[str]) -> None:
    """FileNotFoundError that lists every data file and folder of pictures that these splits lack."""
    missing: dict[str, None] = {}
    for split in splits:
        section = getattr(config, split)
        if section is not None:
            missing |= dict.fromkeys(_missing(section))
    if missing:
        raise FileNotFoundError("; ".join(missing))


def _missing(section: Any) -> list[str]:
    """What one section lacks, in words."""
    files, found = Files(), []
    groups = section.files.values() if isinstance(section.files, dict) else [section.files]
    for path in (path for paths in groups for path in ([paths] if isinstance(paths, str) else paths)):
        try:
            readable = list_files([path], files)
        except (FileNotFoundError, DataError) as error:
            found.append(str(error))
            continue
        if isinstance(section, PairsConfig):
            found += _missing_folders(section, readable[0], files)
    return found


def _missing_folders(section: PairsConfig, path: str, files: Files) -> list[str]:
    """Folders of the first and the last picture of a file that do not exist."""
    if is_remote(path) or not files.is_seekable(path):
        return []
    missing = []
    for record in _first_and_last(path, files):
        try:
            entry = section.read(record)
        except BadRecord:
            continue  # the reader of the file tells about its records
        place = join_path(entry.root, entry.image)
        is_path = len(entry.image) < MAX_PATH_LENGTH and not entry.image.startswith(BASE64_STARTS)
        folder = os.path.dirname(place)
        if is_path and folder and "::" not in place and not is_remote(place) and not os.path.isdir(folder):
            missing.append(f"{folder}: no such folder; pictures of {path} should be there")
    return missing


def _first_and_last(path: str, files: Files) -> list[dict[str, Any]]:
    """The first record of a JSON list or JSON lines, and the last of lines, as far as a glance shows them."""
    size = files.stamp(path).size
    head = files.read_part(path, 0, min(size, GLANCE_BYTES)).decode("utf-8", "replace")
    records = []
    try:
        records.append(json.JSONDecoder().raw_decode(head[head.index("{") :])[0])
        if not head.lstrip("\ufeff").lstrip().startswith("["):
            tail = files.read_part(path, max(0, size - GLANCE_BYTES), min(size, GLANCE_BYTES))
            records.append(json.loads(tail.rstrip().rpartition(b"\n")[2]))
    except (ValueError, RecursionError):
        pass  # broken or very long: the reader of the file tells
    return [record for record in records if isinstance(record, dict)]
