"""Whether everything that a run reads is where its settings say, before anything is built or started."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any

from dataset.files import BadRecord, DataError, Files, join_path
from dataset.labelled import LabelledConfig
from dataset.readers import list_files
from dataset.retrieval import PairsConfig
from dataset.samples import BASE64_STARTS, MAX_PATH_LENGTH
from dataset.sections import UNKNOWN_LANGUAGE
from utils.remote import is_remote

GLANCE_BYTES = 1 << 20


def check_places(sections: Sequence[Any]) -> None:
    """FileNotFoundError that lists every data file and folder of pictures that these sections of data lack."""
    missing: dict[str, None] = {}
    for section in sections:
        missing |= dict.fromkeys(_missing(section))
    if missing:
        raise FileNotFoundError("; ".join(missing))


def _missing(section: Any) -> list[str]:
    """What one section lacks, in words."""
    files, found = Files(), []
    groups = section.files if isinstance(section.files, dict) else {UNKNOWN_LANGUAGE: section.files}
    for language, paths in groups.items():
        for path in [paths] if isinstance(paths, str) else paths:
            try:
                readable = list_files([path], files)
            except (FileNotFoundError, DataError) as error:
                found.append(str(error))
                continue
            found += _missing_folders(section, language, readable[0], files)
    return found


def _missing_folders(section: Any, language: str, path: str, files: Files) -> list[str]:
    """Folders of the first and the last picture of a file that do not exist."""
    if not isinstance(section, (PairsConfig, LabelledConfig)) or is_remote(path) or not files.is_seekable(path):
        return []
    missing = []
    for record in _first_and_last(path, files):
        for value, root in _pictures(section, language, record):
            place = join_path(root, value)
            folder = os.path.dirname(place)
            is_path = len(value) < MAX_PATH_LENGTH and not value.startswith(BASE64_STARTS)
            if is_path and folder and "::" not in place and not is_remote(place) and not os.path.isdir(folder):
                missing.append(f"{folder}: no such folder; pictures of {path} should be there")
    return missing


def _pictures(section: Any, language: str, record: dict[str, Any]) -> list[tuple[str, str]]:
    """The pictures of a record as (path or base64, root); none of one that the reader of the file will refuse."""
    try:
        if isinstance(section, LabelledConfig):
            example = section.read(record, language)
            return list(example.images) if example else []
        entry = section.read(record)
    except BadRecord:
        return []
    return [(entry.image, entry.root)]


def _first_and_last(path: str, files: Files) -> list[dict[str, Any]]:
    """The first record of a JSON list or JSON lines, and the last of lines, as far as a glance shows them."""
    size = files.stamp(path).size
    head = files.read_part(path, 0, min(size, GLANCE_BYTES)).decode("utf-8", "replace").lstrip("\ufeff").lstrip()
    if not head.startswith(("[", "{")):
        return []  # a table, or a database, whose pages may hold anything
    records = []
    try:
        records.append(json.JSONDecoder().raw_decode(head[head.index("{") :])[0])
        if head.startswith("{"):
            tail = files.read_part(path, max(0, size - GLANCE_BYTES), min(size, GLANCE_BYTES))
            records.append(json.loads(tail.rstrip().rpartition(b"\n")[2]))
    except (ValueError, RecursionError):
        pass  # broken or very long: the reader of the file tells
    return [record for record in records if isinstance(record, dict)]
