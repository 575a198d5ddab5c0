"""What the sections of a data configuration share that name files by language, and how fields of records are read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from dataset.files import BadRecord

UNKNOWN_LANGUAGE = "und"


@dataclass
class FilesConfig:
    """`files` by language, or a list where the language does not matter."""

    files: dict[str, str | list[str]] | list[str]
    limit: int = 0  # only that many records of each language; 0 takes all

    def __post_init__(self) -> None:
        if not self.files:
            raise ValueError("files is empty; name a file per language, such as {en: train.en.json}")
        if self.limit < 0:
            raise ValueError(f"limit must be at least 0, found {self.limit}")

    def files_by_language(self) -> dict[str, list[str]]:
        files = self.files if isinstance(self.files, dict) else {UNKNOWN_LANGUAGE: list(self.files)}
        return {language: [paths] if isinstance(paths, str) else list(paths) for language, paths in files.items()}


def locate(ends: np.ndarray, number: int) -> tuple[int, int]:
    """The part that a running number falls into, and the number within it; ends (parts,) are running totals."""
    if not len(ends) or not 0 <= number < int(ends[-1]):
        raise IndexError(f"number {number} of {int(ends[-1]) if len(ends) else 0}")
    part = int(np.searchsorted(ends, number, side="right"))
    return part, number - (int(ends[part - 1]) if part else 0)


def field_of(record: dict[str, Any], *keys: str) -> Any:
    """The value under the first of the keys that is there; BadRecord names what was found instead."""
    for key in keys:
        if record.get(key) is not None:
            return record[key]
    found = ", ".join(map(str, record)) or "none"
    raise BadRecord(f"missing {keys[0]}", f"field '{keys[0]}' is missing; found: {found}")


def text_of(value: Any, name: str) -> str:
    """The value of a field if it is a string, else BadRecord."""
    if not isinstance(value, str):
        raise BadRecord(f"missing {name}", f"field '{name}' must be a string, found {type(value).__name__}")
    return value
