"""What the records of a data set hold, counted: problems, captions by language, lengths, pictures and their digests.

Records are read in chunks by worker processes; the counts of chunks add up. Of every picture and caption twelve bytes
stay in memory: a digest, and the number of its record.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Dataset

from dataset.batch import Skipped
from dataset.decode import open_image
from dataset.files import BadRecord
from dataset.loader import start_worker
from dataset.samples import Contents, DescribedDataset, Preprocessing, is_base64, read_image

CHUNK_RECORDS = 128
MAX_EXAMPLES = 5
MAX_LENGTH = 1024  # longer texts and shorter sides of pictures share the last place of a histogram
MAX_SIDE = 8192
ALL_WORDS = 1 << 30
MAX_REMEMBERED = 1 << 16  # pictures by path that a process keeps the findings of; lines of one picture are neighbours
COARSE = 8  # decoding at an eighth reads all of a JPEG's bytes, in a third of the time


@dataclass
class LanguageCount:
    """Captions of one language; `lengths` counts them by number of tokens, begin and end marks included."""

    captions: int = 0
    missing: int = 0
    empty: int = 0
    cut_words: int = 0
    cut_tokens: int = 0
    cut: int = 0  # for either reason
    pieces: int = 0
    unknown: int = 0
    lengths: np.ndarray = field(default_factory=lambda: np.zeros(MAX_LENGTH + 1, np.int64))

    def add(self, other: LanguageCount) -> None:
        for name in vars(self):
            setattr(self, name, getattr(self, name) + getattr(other, name))


@dataclass
class ByRecord:
    """Values (a uint64 each, mostly digests) and the numbers of the records that they were found in."""

    values: list[np.ndarray] = field(default_factory=list)
    records: list[np.ndarray] = field(default_factory=list)

    def add(self, other: ByRecord) -> None:
        self.values += other.values
        self.records += other.records

    @classmethod
    def of(cls, pairs: Sequence[tuple[int, int]]) -> ByRecord:
        """From (value, record) pairs."""
        values = np.array([value for value, _ in pairs], np.uint64)
        return cls([values], [np.array([record for _, record in pairs], np.uint32)])

    def joined(self) -> tuple[np.ndarray, np.ndarray]:
        """All values and all record numbers, in the order of the records."""
        values = np.concatenate([np.zeros(0, np.uint64), *self.values])
        records = np.concatenate([np.zeros(0, np.uint32), *self.records])
        order = np.argsort(records, kind="stable")
        return values[order], records[order]


@dataclass
class Count:
    """What some records come to. A unit is what training skips as one: a record, or a caption that is a sample."""

    records: int = 0
    units: int = 0
    bad: int = 0
    images: int = 0
    image_bytes: int = 0
    small: int = 0
    sides: np.ndarray = field(default_factory=lambda: np.zeros(MAX_SIDE + 1, np.int64))
    reasons: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[tuple[int, str]]] = field(default_factory=dict)
    languages: dict[str, LanguageCount] = field(default_factory=dict)
    image_digests: ByRecord = field(default_factory=ByRecord)
    image_ids: ByRecord = field(default_factory=ByRecord)
    caption_digests: ByRecord = field(default_factory=ByRecord)
    samples: ByRecord = field(default_factory=ByRecord)  # the samples that a record is

    def language(self, name: str) -> LanguageCount:
        return self.languages.setdefault(name, LanguageCount())

    def note(self, number: int, problem: Skipped) -> None:
        """Count a problem; of each kind the first few are kept."""
        self.reasons[problem.reason] += 1
        self._keep(problem.reason, [(number, str(problem))])

    def _keep(self, reason: str, found: list[tuple[int, str]]) -> None:
        self.examples[reason] = sorted(self.examples.get(reason, []) + found)[:MAX_EXAMPLES]

    def add(self, other: Count) -> None:
        """Take in the count of other records."""
        for name in ("records", "units", "bad", "images", "image_bytes", "small", "sides", "reasons"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for reason, found in other.examples.items():
            self._keep(reason, found)
        for name, language in other.languages.items():
            self.language(name).add(language)
        for name in ("image_digests", "image_ids", "caption_digests", "samples"):
            getattr(self, name).add(getattr(other, name))


@dataclass(frozen=True)
class Picture:
    """What reading a picture has shown: its digest, or what is wrong with it."""

    digest: int
    num_bytes: int = 0
    height: int = 0
    width: int = 0
    problem: tuple[str, str] | None = None

    @property
    def side(self) -> int:
        """The shorter one, in pixels."""
        return min(self.height, self.width)

    def judged_by(self, check_size: Callable[[int, int], None]) -> Picture:
        """The same, or what is wrong with a record whose picture has this size."""
        try:
            if self.problem is None:
                check_size(self.height, self.width)
        except BadRecord as error:
            return Picture(0, problem=(error.reason, str(error.detail)))
        return self


def digest_of(content: bytes | str) -> int:
    """A number of 64 bits that differs for different contents, but for about n^2 / 2^65 pairs of n contents."""
    content = content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")


class Checker(Dataset):
    """Counts chunks of records; item k is the Count of chunk k."""

    def __init__(self, dataset: DescribedDataset, chunks: list[np.ndarray], image_size: int) -> None:
        self.dataset, self.chunks, self.image_size = dataset, chunks, image_size
        self._pictures: dict[tuple[str, str], Picture] = {}

    def __len__(self) -> int:
        return len(self.chunks)

    def __getitem__(self, k: int) -> Count:
        count, texts = Count(), []
        pairs: dict[str, list[tuple[int, int]]] = {"image_digests": [], "image_ids": [], "samples": []}
        for number in self.chunks[k].tolist():
            count.records += 1
            try:
                contents = self.dataset.describe(number)
            except BadRecord as error:
                where = error.where or self.dataset.where_record(number)
                count.note(number, Skipped(where, error.reason, str(error.detail)))
                count.units, count.bad = count.units + 1, count.bad + 1
                continue
            pictures = [self._picture(*image).judged_by(contents.check_size) for image in contents.images]
            self._count_pictures(count, number, pictures)
            usable = self._count_captions(count, number, contents, texts)
            _count_units(count, contents, usable, all(picture.problem is None for picture in pictures))
            pairs["image_digests"] += [(picture.digest, number) for picture in pictures if picture.problem is None]
            pairs["image_ids"].append((digest_of(contents.image_id), number))
            pairs["samples"].append((len(usable) if contents.needed == "each" else 1, number))
        captions = _count_tokens(count, texts, self.dataset.preprocessing)
        for name, found in (pairs | {"caption_digests": captions}).items():
            setattr(count, name, ByRecord.of(found))
        return count

    def _picture(self, value: Any, root: str) -> Picture:
        is_path = isinstance(value, str) and not is_base64(value)
        if is_path and (root, value) in self._pictures:
            return self._pictures[root, value]
        picture = self._read_picture(value, root)
        if is_path:
            if len(self._pictures) >= MAX_REMEMBERED:
                self._pictures.clear()
            self._pictures[root, value] = picture
        return picture

    def _read_picture(self, value: Any, root: str) -> Picture:
        try:
            data = read_image(value, root, self.dataset.preprocessing.files)
            image = open_image(data)
            image.decode(COARSE)
        except BadRecord as error:
            return Picture(0, problem=(error.reason, str(error.detail)))
        return Picture(digest_of(data), len(data), image.height, image.width)

    def _count_pictures(self, count: Count, number: int, pictures: list[Picture]) -> None:
        for picture in pictures:
            count.images += 1
            if picture.problem is not None:
                count.note(number, Skipped(self.dataset.where_record(number), *picture.problem))
                continue
            count.image_bytes += picture.num_bytes
            count.small += picture.side < self.image_size
            count.sides[min(picture.side, MAX_SIDE)] += 1

    def _count_captions(self, count: Count, number: int, contents: Contents, texts: list) -> list[bool]:
        """Which captions can be used; those go to `texts` as (record, language, text)."""
        usable = []
        for name, raw in contents.captions:
            language = count.language(name)
            try:
                if raw is None:
                    raise BadRecord("missing language", f"no {name}")
                text = contents.clean(raw, ALL_WORDS if self.dataset.preprocessing.max_words else 0)
            except BadRecord as error:
                language.missing += raw is None
                language.empty += raw is not None
                count.note(number, Skipped(self.dataset.where_record(number), error.reason, str(error.detail)))
                usable.append(False)
                continue
            language.captions += 1
            texts.append((number, name, text))
            usable.append(True)
        return usable


def _count_units(count: Count, contents: Contents, usable: list[bool], has_pictures: bool) -> None:
    if not contents.images and not contents.captions:
        return  # left out on purpose, as a record without a class
    if contents.needed == "each":
        count.units += max(len(usable), 1)
        count.bad += usable.count(False) + (not usable) if has_pictures else max(len(usable), 1)
        return
    is_complete = all(usable) if contents.needed == "all" else any(usable)
    count.units += 1
    count.bad += not (is_complete and has_pictures)


def _count_tokens(
    count: Count, texts: list[tuple[int, str, str]], preprocessing: Preprocessing
) -> list[tuple[int, int]]:
    """Lengths and unknown pieces of texts as the model gets them; (digest, record) of each, the language in it."""
    most = preprocessing.max_words or ALL_WORDS  # 0: texts stay as they were written
    words = [text.split(" ") for _, _, text in texts]
    pieces = preprocessing.tokenizer.encode_pieces([" ".join(each[:most]) for each in words]) if texts else []
    for (_, name, _), each, ids in zip(texts, words, pieces):
        language = count.language(name)
        has_many_words, has_many_tokens = len(each) > most, len(ids) + 2 > preprocessing.token_limit
        language.cut_words += has_many_words
        language.cut_tokens += has_many_tokens
        language.cut += has_many_words or has_many_tokens
        language.pieces += len(ids)
        language.unknown += ids.count(preprocessing.tokenizer.unknown_id)
        language.lengths[min(len(ids) + 2, MAX_LENGTH)] += 1
    return [(digest_of(f"{name}\n{text}"), number) for number, name, text in texts]


def cut_chunks(num_records: int, limit: int, rank: int, world_size: int) -> list[np.ndarray]:
    """Record numbers in chunks, of which this rank gets its share; with a limit that many, evenly spread."""
    if 0 < limit < num_records:
        numbers = np.arange(limit, dtype=np.int64) * num_records // limit
    else:
        numbers = np.arange(num_records)
    chunks = [numbers[start : start + CHUNK_RECORDS] for start in range(0, len(numbers), CHUNK_RECORDS)]
    return chunks[rank::world_size]


def count_chunks(checker: Checker, num_workers: int) -> Iterator[Count]:
    """The count of every chunk, made by worker processes (0: in this one)."""
    num_workers = min(num_workers, len(checker))
    yield from DataLoader(checker, batch_size=None, num_workers=num_workers, worker_init_fn=start_worker)
