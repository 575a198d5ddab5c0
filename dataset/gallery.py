"""What retrieval is evaluated on: pictures, captions and which belong together; one gallery per language.

Letters: M images, T texts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from dataset.bad_records import BadRecords
from dataset.batch import Skipped, TextBatch, pad_texts
from dataset.files import BadRecord
from dataset.samples import Preprocessing

UNREADABLE_GREY = 128


@dataclass
class GalleryItem:
    """One picture: the name it has in every language, the record it is read from, and its cleaned captions."""

    path: str
    record: int
    captions: list[str] = field(default_factory=list)


class ImageReader:
    """Pictures by record number, decoded and resized by a few threads.

    An unreadable picture is logged, counted and shown to the model as plain grey: leaving it out would make a gallery
    smaller, and its numbers better, than those of others. `end_reading` says when there are too many of them.
    """

    def __init__(
        self,
        read: Callable[[int], bytes],
        where: Callable[[int], str],
        preprocessing: Preprocessing,
        bad_records: BadRecords,
        num_threads: int = 1,
    ) -> None:
        self.read, self.where, self.preprocessing, self.bad_records = read, where, preprocessing, bad_records
        self.num_threads = max(num_threads, 1)

    def read_images(self, records: Sequence[int]) -> Tensor:
        """(m, 3, S, S) uint8."""
        if self.num_threads == 1:
            found = [self._try(record) for record in records]
        else:
            with ThreadPoolExecutor(self.num_threads) as pool:
                found = list(pool.map(self._try, records))
        self.bad_records.add(len(found), [problem for problem in found if isinstance(problem, Skipped)])
        size = self.preprocessing.transform.image_size
        grey = np.full((3, size, size), UNREADABLE_GREY, np.uint8)
        images = [grey if isinstance(image, Skipped) else image for image in found]
        return torch.from_numpy(np.stack(images)) if images else torch.zeros(0, 3, size, size, dtype=torch.uint8)

    def _try(self, record: int) -> np.ndarray | Skipped:
        try:
            return self.preprocessing.transform(self.read(record), np.random.default_rng(record))
        except BadRecord as error:
            return Skipped(error.where or self.where(record), error.reason, error.detail)


class HasReader(Protocol):
    """What shows pictures."""

    reader: ImageReader


def end_reading(parts: Iterable[HasReader]) -> None:
    """To be called once the pictures of some galleries were read; DataError if too many of them were unreadable."""
    for bad_records in {id(part.reader.bad_records): part.reader.bad_records for part in parts}.values():
        bad_records.end_epoch()
        bad_records.start_epoch()


@dataclass
class Gallery:
    """M pictures by path and T captions of one language; image_of_text (T,) says which picture a caption belongs to,
    also_right (P, 2) which (caption, picture) belong together besides; pairs (P', 2) lists both, in the order of the
    files where these name pairs.
    """

    language: str
    image_paths: list[str]
    records: list[int]
    captions: list[str]
    texts: TextBatch
    image_of_text: Tensor
    reader: ImageReader = field(repr=False)
    also_right: Tensor = field(default_factory=lambda: torch.zeros(0, 2, dtype=torch.int64))
    pairs: Tensor = field(default_factory=lambda: torch.zeros(0, 2, dtype=torch.int64))

    def read_images(self, rows: Sequence[int]) -> Tensor:
        """The pictures (m, 3, S, S) uint8 of some rows."""
        return self.reader.read_images([self.records[row] for row in rows])


def build_gallery(language: str, items: Iterable[GalleryItem], reader: ImageReader) -> Gallery:
    """A gallery of some pictures with their captions, in their order."""
    items = list(items)
    captions = [caption for item in items for caption in item.captions]
    counts = torch.tensor([len(item.captions) for item in items], dtype=torch.int64)
    preprocessing = reader.preprocessing
    image_of_text = torch.arange(len(items)).repeat_interleave(counts)  # (T,)
    return Gallery(
        language=language,
        image_paths=[item.path for item in items],
        records=[item.record for item in items],
        captions=captions,
        texts=pad_texts(preprocessing.encode(captions), preprocessing.tokenizer.pad_id),
        image_of_text=image_of_text,
        reader=reader,
        pairs=torch.stack([torch.arange(len(captions)), image_of_text], dim=1),
    )


def split_folds(items: Sequence[GalleryItem], num_folds: int) -> list[Sequence[GalleryItem]]:
    """Contiguous folds of equally many pictures, the rest in the last one: MSCOCO's 5 x 1K."""
    size = len(items) // num_folds
    if size < 1:
        raise ValueError(f"folds is {num_folds}, but there are only {len(items)} pictures")
    starts = [*range(0, num_folds * size, size), len(items)]
    return [items[first:last] for first, last in zip(starts, starts[1:])]
