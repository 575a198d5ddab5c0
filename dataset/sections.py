"""What the sections of a data configuration share that name files by language, and how fields of records are read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from dataset.files import BadRecord, DataError

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


class TextsByLanguage:
    """What data sets share whose samples are the texts of files by language.

    The files of a language are a part: `records`, of which `num_records` are looked at, `record_of_text` (texts,), and
    what of them is `skipped`. A subclass makes samples and batches (dataset/samples.py: SampleDataset).
    """

    def __init__(self, config: Any, preprocessing: Any) -> None:
        self.config, self.preprocessing = config, preprocessing
        files = config.files_by_language()
        self.parts = {language: self.open_part(language, paths) for language, paths in files.items()}
        self.languages = list(self.parts)
        self.ends = np.cumsum([len(part.record_of_text) for part in self.parts.values()])
        self.record_ends = np.cumsum([part.num_records for part in self.parts.values()])
        self.check_not_empty()

    def open_part(self, language: str, paths: list[str]) -> Any:
        """The part of a language."""
        raise NotImplementedError

    def check_not_empty(self) -> None:
        """DataError where nothing can be used."""
        if not len(self):
            first = self.skipped[0] if self.skipped else "the files are empty"
            raise DataError(f"no usable record in {', '.join(self.languages)}; {first}")

    @property
    def skipped(self) -> list[Any]:
        """Records and texts that were left out at the start."""
        return [record for part in self.parts.values() for record in part.skipped]

    @property
    def num_records(self) -> int:
        return int(self.record_ends[-1])

    def __len__(self) -> int:
        return int(self.ends[-1])

    def where(self, index: int) -> str:
        """`file:line` of a text."""
        _, part, k = self.part_of(index)
        return part.records.where(int(part.record_of_text[k]))

    def where_record(self, number: int) -> str:
        """`file:line` of a record, for a check."""
        _, part, record = self.part_of_record(number)
        return part.records.where(record)

    def part_of(self, index: int) -> tuple[int, Any, int]:
        """The number of a text's language, its part, and its number there."""
        language, k = locate(self.ends, index)
        return language, self.parts[self.languages[language]], k

    def part_of_record(self, number: int) -> tuple[str, Any, int]:
        """A record's language, its part, and its number there."""
        language, record = locate(self.record_ends, number)
        return self.languages[language], self.parts[self.languages[language]], record


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
