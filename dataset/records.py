"""What data sets share whose samples are the records of line-JSON files, one each."""

from __future__ import annotations

from typing import Any

from dataset.batch import Skipped
from dataset.readers import Records
from dataset.samples import Preprocessing


class RecordDataset:
    """Number k is record k of the files; nothing is read before it is asked for, so nothing is left out at the start.

    A subclass makes samples and batches (dataset/samples.py: SampleDataset).
    """

    def __init__(self, config: Any, preprocessing: Preprocessing) -> None:
        self.config, self.preprocessing = config, preprocessing
        self.records = Records(config.files, preprocessing.files, preprocessing.cache_dir)
        self.skipped: list[Skipped] = []

    def __len__(self) -> int:
        return len(self.records)

    @property
    def num_records(self) -> int:
        return len(self.records)

    def where(self, index: int) -> str:
        """`file:line` of a record."""
        return self.records.where(index)

    def where_record(self, number: int) -> str:
        """`file:line` of a record, for a check."""
        return self.where(number)
