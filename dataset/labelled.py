"""Texts with one or more pictures and a class each: statements to judge by a picture (XVNLI) or by two (NLVR2, MaRVL).

Letters: T texts, I images of a text.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from dataset.bad_records import BadRecords
from dataset.batch import LabelledBatch, Skipped, pad_texts
from dataset.files import BadRecord, join_path
from dataset.gallery import ImageReader
from dataset.readers import Records
from dataset.samples import Contents, Preprocessing, clean, image_key, read_image
from dataset.sections import FilesConfig, TextsByLanguage, field_of, text_of

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Example:
    """One record, read: its pictures as (path or base64, root), its text, and the number of its class (of a question
    its answers, dataset/vqa.py).
    """

    images: tuple[tuple[str, str], ...]
    text: Any
    label: Any

    @property
    def image_keys(self) -> tuple[str, ...]:
        """What tells pictures apart without opening them."""
        return tuple(image_key(join_path(root, value)) for value, root in self.images)


@dataclass
class LabelledConfig(FilesConfig):
    """What all layouts have in common: how many pictures belong to a text, and how many classes there are."""

    num_images: ClassVar[int] = 1
    num_classes: ClassVar[int] = 2

    def read(self, record: dict[str, Any], language: str) -> Example | None:
        """The content of a record, None where it has no class by intent; BadRecord where it cannot be used."""
        raise NotImplementedError

    def open(self, files: list[str], preprocessing: Preprocessing) -> Records:
        """The records of some files."""
        return Records(files, preprocessing.files, preprocessing.cache_dir)

    def clean(self, text: Any, max_words: int) -> str:
        """The cleaned text; BadRecord when nothing is left."""
        return clean(text, max_words)


@dataclass
class Sample:
    """One text with its pictures (3, S, S)."""

    images: list[np.ndarray]
    text: list[int]
    label: int


@dataclass(frozen=True)
class Item:
    """One text of an evaluation: its token ids, its class, the record, and what tells its pictures apart."""

    ids: list[int]
    label: Any
    record: int
    image_keys: tuple[str, ...]


@dataclass
class LabelledSet:
    """The texts of one language to evaluate on, with their pictures on disk."""

    language: str
    items: list[Item]
    num_images: int
    num_classes: int
    reader: ImageReader = field(repr=False)

    def read_images(self, places: Sequence[tuple[int, int]]) -> Tensor:
        """Pictures (m, 3, S, S) uint8 by (item, which of its pictures); plain grey where one is unreadable."""
        return self.reader.read_images([self.items[item].record * self.num_images + k for item, k in places])


class LabelledTexts(TextsByLanguage):
    """Labelled texts from JSON lines or JSON lists, by language; a subclass says how its records read."""

    Config = LabelledConfig

    def open_part(self, language: str, paths: list[str]) -> _Part:
        return _scan(paths, language, self.config, self.preprocessing)

    def describe(self, number: int) -> Contents:
        """The pictures of a record and its text; nothing for a record without a class."""
        _, part, record = self.part_of_record(number)
        example = part.read(record)
        if example is None:
            return Contents()
        return Contents(
            images=list(example.images),
            captions=[(part.language, example.text)],
            image_id=" ".join(example.image_keys),
            clean=self.config.clean,
        )

    def sample(self, index: int, generator: np.random.Generator) -> Sample:
        """One text with its pictures."""
        _, part, k = self.part_of(index)
        example = part.read(int(part.record_of_text[k]))
        preprocessing = self.preprocessing
        text = preprocessing.encode([clean(example.text, preprocessing.max_words)])[0]
        contents = [read_image(value, root, preprocessing.files) for value, root in example.images]
        return Sample([preprocessing.transform(content, generator) for content in contents], text, example.label)

    def collate(self, samples: list[Sample], skipped: list[Skipped]) -> LabelledBatch:
        """Samples as one batch: all first pictures, then all second ones."""
        images = [sample.images[k] for k in range(self.config.num_images) for sample in samples]
        return LabelledBatch(
            images=torch.from_numpy(np.stack(images)),  # (I T, 3, S, S)
            texts=pad_texts([sample.text for sample in samples], self.preprocessing.tokenizer.pad_id),
            labels=torch.tensor([sample.label for sample in samples]),
            skipped=skipped,
        )

    def labelled_sets(self, bad_records: BadRecords, num_threads: int = 1) -> dict[str, LabelledSet]:
        """The texts of every language, in the order of their files."""
        sets = {}
        for language, part in self.parts.items():
            reader = ImageReader(part.read_image, part.where_image, self.preprocessing, bad_records, num_threads)
            sets[language] = LabelledSet(
                language, part.items(), self.config.num_images, self.config.num_classes, reader
            )
        return sets


class Entailment(LabelledTexts):
    """XVNLI's lines {gold_label, sentence2, Flikr30kID}: does the picture contradict the statement, entail it, or
    neither. Lines on which the annotators disagreed have the label "-" and are no part of the set.
    """

    @dataclass
    class Config(LabelledConfig):
        name: str = "xvnli"
        image_root: str = "images/flickr30k-images"

        num_classes: ClassVar[int] = 3
        classes: ClassVar[tuple[str, ...]] = ("contradiction", "entailment", "neutral")

        def read(self, record: dict[str, Any], language: str) -> Example | None:
            name = field_of(record, "gold_label")
            if name == "-":
                return None
            if name not in self.classes:
                raise BadRecord("unknown gold_label", f"found {name!r}; allowed: {', '.join(self.classes)}, -")
            image = str(field_of(record, "Flikr30kID", "Flickr30kID"))
            image = image if image.endswith(".jpg") else f"{image}.jpg"
            return Example(((image, self.image_root),), field_of(record, "sentence2"), self.classes.index(name))


class PicturePairs(LabelledTexts):
    """Statements that are true or false of two pictures: NLVR2's lists {sentence, label, images}, and MaRVL's lines
    {caption, label, left_img, right_img, concept, language} as IGLUE has them.
    """

    @dataclass
    class Config(LabelledConfig):
        name: str = "nlvr"
        image_root: str = "images/nlvr2"  # of `images`, where they do not begin with one of these folders themselves
        marvl_root: str = "images/marvl-images"
        fewshot_root: str = "images/marvl_fewshot"

        num_images: ClassVar[int] = 2

        def read(self, record: dict[str, Any], language: str) -> Example:
            if "left_img" in record or "right_img" in record:
                images = [self._marvl_image(record, side, language) for side in ("left_img", "right_img")]
            else:
                images = field_of(record, "images")
            if not isinstance(images, list) or len(images) != self.num_images:
                found = f"{len(images)} items" if isinstance(images, list) else type(images).__name__
                raise BadRecord("wrong number of images", f"field 'images' needs {self.num_images}, found {found}")
            rooted = tuple((text_of(image, "images"), self._root_of(image)) for image in images)
            return Example(rooted, field_of(record, "sentence", "caption"), _truth(field_of(record, "label")))

        def _marvl_image(self, record: dict[str, Any], side: str, language: str) -> str:
            """The path of a picture: few-shot files name it as concept/file, the test files by its concept's folder."""
            image = text_of(field_of(record, side), side)
            language = record.get("language") or language
            if "/" in image:
                return f"{self.fewshot_root}/{language}/all/{image.rpartition('/')[2]}"
            concept = text_of(field_of(record, "concept"), "concept")
            return f"{self.marvl_root}/{language}/images/{concept}/{image}"

        def _root_of(self, image: str) -> str:
            whole = tuple(f"{root.rstrip('/')}/" for root in (self.image_root, self.marvl_root, self.fewshot_root))
            return "" if image.startswith(whole) else self.image_root


def _truth(label: Any) -> int:
    """1 for true and 0 for false, as JSON has them or as words."""
    words = {"true": 1, "false": 0}
    found = str(label).strip().lower()
    if found not in words:
        raise BadRecord("unknown label", f"found {label!r}; allowed: true, false")
    return words[found]


@dataclass
class _Part:
    """The records of one language; texts and pictures stay on disk."""

    language: str
    records: Records
    config: LabelledConfig
    preprocessing: Preprocessing
    record_of_text: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    skipped: list[Skipped] = field(default_factory=list)

    @property
    def num_records(self) -> int:
        return min(len(self.records), self.config.limit or len(self.records))

    def where(self, record: int) -> str:
        return self.records.where(record)

    def where_image(self, number: int) -> str:
        """The record of the picture `number`, which counts the pictures of all records."""
        return self.where(number // self.config.num_images)

    def read(self, record: int) -> Example | None:
        return self.config.read(self.records.read(record), self.language)

    def read_image(self, number: int) -> bytes:
        """An encoded picture; BadRecord says whose it is."""
        record, place = divmod(number, self.config.num_images)
        value, root = self.read(record).images[place]
        try:
            return read_image(value, root, self.preprocessing.files)
        except BadRecord as error:
            raise BadRecord(error.reason, str(error.detail), self.where(record)) from error

    def items(self) -> list[Item]:
        """All used records, their texts cleaned and encoded together."""
        numbers = self.record_of_text.tolist()
        examples = [self.read(record) for record in numbers]
        texts = [self.config.clean(example.text, self.preprocessing.max_words) for example in examples]
        return [
            Item(ids, example.label, record, example.image_keys)
            for ids, example, record in zip(self.preprocessing.encode(texts), examples, numbers, strict=True)
        ]


def _scan(files: list[str], language: str, config: LabelledConfig, preprocessing: Preprocessing) -> _Part:
    """Every usable record of the files; broken ones are left out and listed, those without a class only counted."""
    part = _Part(language, config.open(files, preprocessing), config, preprocessing)
    used, num_without_class = [], 0
    for record in range(part.num_records):
        try:
            example = part.read(record)
            if example is None:
                num_without_class += 1
                continue
            config.clean(example.text, preprocessing.max_words)
        except BadRecord as error:
            part.skipped.append(Skipped(error.where or part.where(record), error.reason, error.detail))
            continue
        used.append(record)
    if num_without_class:
        log.info("%s: %d of %d records have no class by intent", language, num_without_class, part.num_records)
    part.record_of_text = np.array(used, np.int64)
    return part
