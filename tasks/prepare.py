"""What a run does before it starts: check what it reads, make and fetch files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from dataset.data import SPLITS, prepare_files
from dataset.presence import check_places
from utils.remote import RemoteOutput, local_copy


def prepare(config: Any, notify: Callable[[str], None], *, is_evaluation: bool, remote_output: str | None) -> None:
    """FileNotFoundError lists what is missing; files that are made once are made, remote weights are copied here.

    remote_output is the address of an output folder whose last checkpoint a run goes on from.
    """
    splits = ("test",) if is_evaluation else SPLITS
    prepare_files(config.data, splits, notify)
    sections = [getattr(config.data, split) for split in splits]
    if not is_evaluation:
        sections += [stream.train for stream in config.streams.values() if stream.probability]
    check_places([section for section in sections if section is not None])
    for path in (config.init.checkpoint, config.init.image):
        local_copy(path)
    if remote_output:
        RemoteOutput(remote_output, Path(config.output_dir)).fetch()


def data_files(config: Any) -> list[str]:
    """Every file and folder that the data sections name."""
    paths: list[str] = []
    streams = [stream.train for stream in config.streams.values()]
    for section in (config.data.train, config.data.val, config.data.test, *streams):
        files = section.files if section is not None else []
        for entry in files.values() if isinstance(files, dict) else files:
            paths += [entry] if isinstance(entry, str) else entry
    return sorted(set(paths))
