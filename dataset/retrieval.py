"""Picture-caption files for retrieval: pairs to train on, and one gallery per language to evaluate on.

Three layouts are known: {caption, image, image_id} (Multi30K, MSCOCO), xFlickr&CO's and WIT's lines.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from dataset.bad_records import BadRecords
from dataset.batch import ImageTextBatch, Skipped
from dataset.files import BadRecord
from dataset.gallery import Gallery, GalleryItem, ImageReader, build_gallery, split_folds
from dataset.readers import Records
from dataset.samples import (
    Contents,
    Preprocessing,
    Sample,
    clean,
    collate_samples,
    image_key,
    mask_texts,
    read_image,
    stable_id,
)
from dataset.sections import FilesConfig, TextsByLanguage, field_of, text_of
from dataset.wit import join_if_absent


@dataclass(frozen=True)
class Entry:
    """One record, read: its picture as a path or base64, who shares the picture, and its captions.

    `image_id` joins pairs in training; `gallery_key`, the path where there is one, aligns pictures across languages.
    """

    image: str
    root: str
    image_id: str
    captions: list[Any]
    gallery_key: str


@dataclass
class PairsConfig(FilesConfig):
    """What the three layouts have in common."""

    # Evaluation: contiguous parts of the pictures, each searched alone, numbers averaged; for all or by language.
    folds: int | dict[str, int] = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        folds = self.folds.values() if isinstance(self.folds, dict) else [self.folds]
        if any(number < 1 for number in folds):
            raise ValueError(f"folds must be at least 1, found {self.folds}")

    # Turns a line of a file into a record; None: JSON lines, or a JSON list.
    parse: ClassVar[Callable[[bytes], dict[str, Any]] | None] = None

    def clean(self, caption: Any, max_words: int) -> str:
        """The cleaned caption; BadRecord when nothing is left."""
        return clean(caption, max_words)

    def num_folds(self, language: str) -> int:
        """Parts that the pictures of a language are searched in."""
        return self.folds.get(language, 1) if isinstance(self.folds, dict) else self.folds


def _as_list(captions: Any) -> list[Any]:
    return captions if isinstance(captions, list) else [captions]


class ImageTextPairs(TextsByLanguage):
    """Pairs from records {caption: text or texts, image, image_id}; records of equal image_id show the same picture."""

    @dataclass
    class Config(PairsConfig):
        name: str = "image_text_pairs"
        image_root: str = ""

        def read(self, record: dict[str, Any]) -> Entry:
            image = text_of(field_of(record, "image", "image_path"), "image")
            number = record.get("image_id")
            captions = _as_list(field_of(record, "caption", "text"))
            key = image_key(image)
            return Entry(image, self.image_root, key if number is None else str(number), captions, key)

    def open_part(self, language: str, paths: list[str]) -> Part:
        return scan(paths, self.config, self.preprocessing)

    def sample(self, index: int, generator: np.random.Generator) -> Sample:
        """One picture with one of its captions."""
        language, part, k = self.part_of(index)
        entry = part.read(int(part.record_of_text[k]))
        text = self.config.clean(entry.captions[int(part.number_of_text[k])], self.preprocessing.max_words)
        data = read_image(entry.image, entry.root, self.preprocessing.files)
        texts = self.encode_caption(text, generator)
        return Sample(
            image=self.preprocessing.transform(data, generator),
            image_id=stable_id(entry.image_id),
            texts=texts,
            languages=[language],
            masked=mask_texts(texts, self.preprocessing.masker, generator),
        )

    def encode_caption(self, text: str, generator: np.random.Generator) -> list[list[int]]:
        """Token ids of the one caption of a sample."""
        return self.preprocessing.encode([text])

    def collate(self, samples: list[Sample], skipped: list[Skipped]) -> ImageTextBatch:
        return collate_samples(samples, skipped, self.preprocessing.tokenizer.pad_id)

    def galleries(self, bad_records: BadRecords, num_threads: int = 1) -> dict[str, list[Gallery]]:
        """The folds of every language; pictures in order of first appearance."""
        found = {}
        for language, part in self.parts.items():
            reader = ImageReader(part.read_image, part.records.where, self.preprocessing, bad_records, num_threads)
            folds = split_folds(self._items(part), self.config.num_folds(language))
            found[language] = [build_gallery(language, items, reader) for items in folds]
        return found

    def describe(self, number: int) -> Contents:
        """The picture of a record and its captions."""
        language, part, record = self.part_of_record(number)
        entry = part.read(record)
        return Contents(
            images=[(entry.image, entry.root)],
            captions=[(language, caption) for caption in entry.captions],
            image_id=entry.image_id,
            clean=self.config.clean,
        )

    def _items(self, part: Part) -> list[GalleryItem]:
        items: dict[str, GalleryItem] = {}
        for record, number in zip(part.record_of_text.tolist(), part.number_of_text.tolist()):
            entry = part.read(record)
            item = items.setdefault(entry.gallery_key, GalleryItem(entry.gallery_key, record))
            item.captions.append(self.config.clean(entry.captions[number], self.preprocessing.max_words))
        return list(items.values())


class FlickrLines(ImageTextPairs):
    """Pairs from IGLUE's xFlickr&CO and Flickr30k lines {sentences, id, img_path}."""

    @dataclass
    class Config(PairsConfig):
        name: str = "xflickrco"
        flickr_root: str = "images/flickr30k-images"
        coco_root: str = "images/val2014"

        def read(self, record: dict[str, Any]) -> Entry:
            path = text_of(field_of(record, "img_path"), "img_path")
            root = self.coco_root if "COCO" in path else self.flickr_root
            return Entry(path, root, path, _as_list(field_of(record, "sentences")), path)


class WitLines(ImageTextPairs):
    """Pairs from WIT's lines {image_url, caption_reference_description, image_content: base64}; a url is a picture."""

    @dataclass
    class Config(PairsConfig):
        name: str = "wit"
        # What the files are joined from where they are absent: IGLUE's annotations and Kaggle's pixel files.
        annotation_root: str = "iglue/datasets/wit"
        train_pixels: str = "images/image_data_train/image_pixels"
        test_pixels: str = "images/wit_test"

        @classmethod
        def prepare(cls, sections: Sequence[WitLines.Config], notify: Callable[[str], None]) -> None:
            """Join the files that are absent; pixel files that several sections need are read once."""
            needs: dict[tuple[str, str], list[str]] = {}
            for section in sections:
                for path in (path for paths in section.files_by_language().values() for path in paths):
                    is_test = "test" in path.rpartition("/")[2]
                    pixels = section.test_pixels if is_test else section.train_pixels
                    needs.setdefault((section.annotation_root, pixels), []).append(path)
            for (annotation_root, pixels), paths in needs.items():
                join_if_absent(paths, annotation_root, pixels, notify)

        def read(self, record: dict[str, Any]) -> Entry:
            url = text_of(field_of(record, "image_url"), "image_url")
            content = text_of(field_of(record, "image_content"), "image_content")
            return Entry(content, "", url, [field_of(record, "caption_reference_description")], url)

        def clean(self, caption: Any, max_words: int) -> str:
            """The cleaned caption, or the bare one where cleaning leaves nothing (one test caption is '.')."""
            try:
                return clean(caption, max_words)
            except BadRecord:
                if isinstance(caption, str) and caption.strip():
                    return caption.strip()
                raise


@dataclass
class Part:
    """The records of one language; texts are (record, number within it), so that captions stay on disk."""

    records: Records
    config: Any
    preprocessing: Preprocessing
    record_of_text: np.ndarray
    number_of_text: np.ndarray
    skipped: list[Skipped] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)

    @property
    def num_records(self) -> int:
        return min(len(self.records), self.config.limit or len(self.records))

    def read(self, record: int) -> Entry:
        return self.config.read(self.records.read(record))

    def read_image(self, record: int) -> bytes:
        """The encoded picture of a record; BadRecord says which one."""
        entry = self.read(record)
        try:
            return read_image(entry.image, entry.root, self.preprocessing.files)
        except BadRecord as error:
            raise BadRecord(error.reason, str(error.detail), self.records.where(record)) from error


def scan(files: list[str], config: Any, preprocessing: Preprocessing) -> Part:
    """Every usable caption of the files; empty captions and broken records are left out and listed."""
    records = Records(files, preprocessing.files, preprocessing.cache_dir, config.parse)
    part = Part(records, config, preprocessing, np.zeros(0, np.int64), np.zeros(0, np.int64), paths=list(files))
    found: list[tuple[int, int]] = []
    for record in range(part.num_records):
        try:
            captions = part.read(record).captions
        except BadRecord as error:
            part.skipped.append(_left_out(records, record, error))
            continue
        for number, caption in enumerate(captions):
            try:
                config.clean(caption, preprocessing.max_words)
            except BadRecord as error:
                part.skipped.append(_left_out(records, record, error))
                continue
            found.append((record, number))
    table = np.array(found, np.int64).reshape(-1, 2)
    part.record_of_text, part.number_of_text = table[:, 0], table[:, 1]
    return part


def _left_out(records: Records, record: int, error: BadRecord) -> Skipped:
    return Skipped(error.where or records.where(record), error.reason, error.detail)
