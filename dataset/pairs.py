"""Chinese-CLIP's data: texts that name their images by id, from `<split>_texts.jsonl` beside `<split>_imgs.tsv`, or
from the LMDB folder that both were written to.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dataset.bad_records import BadRecords
from dataset.batch import Skipped
from dataset.files import BadRecord, DataError, Files
from dataset.gallery import Gallery, GalleryItem, ImageReader, build_gallery
from dataset.lmdb_pairs import IMAGES, PAIRS, LmdbImages, LmdbPairs, is_pair_folder, whole_number
from dataset.original_bert import clean_chinese
from dataset.readers import LineIndex, LineSource
from dataset.retrieval import Entry, ImageTextPairs, PairsConfig, Part
from dataset.samples import clean, decode_base64
from dataset.sections import field_of, locate
from dataset.tsv_images import TsvImages

TEXTS_END, IMAGES_END = "_texts.jsonl", "_imgs.tsv"
BASE64_HEAD = "data:;base64,"  # tells that what follows is no path

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TextLine:
    """A text and the ids of the images that it describes."""

    text_id: int
    text: str
    image_ids: list[int]


def read_text_line(record: dict[str, Any]) -> TextLine:
    """The fields of a line; BadRecord names the one that is wrong."""
    text_id, text = whole_number(field_of(record, "text_id"), "text_id"), field_of(record, "text")
    image_ids = record.get("image_ids")
    if not isinstance(image_ids, list):
        found = "none" if image_ids is None else type(image_ids).__name__
        raise BadRecord("missing image_ids", f"field 'image_ids' must be a list, found {found}")
    return TextLine(text_id, str(text), [whole_number(image_id, "image id") for image_id in image_ids])


class PairFiles:
    """The texts and images of one split; pairs are numbered text by text, as the original's LMDB numbers them."""

    def __init__(self, path: str, images: str, files: Files, index: LineIndex) -> None:
        """path: a texts' file or an LMDB folder; images: the images' file or folder where it is not beside it."""
        self.path, self.skipped = path, list[Skipped]()
        self.texts: LmdbPairs | LineSource
        self.images: LmdbImages | TsvImages
        if os.path.isdir(path):
            if not is_pair_folder(path):
                raise DataError(f"{path}: no LMDB of pairs; expected {PAIRS}/data.mdb and {IMAGES}/data.mdb in it")
            self.texts = LmdbPairs(Path(path) / PAIRS)
            images = images or str(Path(path) / IMAGES)
        else:
            self.texts = LineSource(path, files, index.load(path))
            images = images or images_beside(path)
        self.images = open_images(images, files, index)
        self.skipped += getattr(self.images, "skipped", [])
        # LMDB holds a record per pair, of which none needs to be looked at before its turn; lines are read once.
        self._line, self._place = self._scan() if isinstance(self.texts, LineSource) else (None, None)

    def __len__(self) -> int:
        return len(self.texts) if self._line is None else len(self._line)

    def read(self, number: int) -> dict[str, Any]:
        """{image, image_id, text, key} of a pair; BadRecord if it is broken or its image unknown."""
        line, place = (number, 0) if self._line is None else (int(self._line[number]), int(self._place[number]))
        text = read_text_line(self.texts.read(line))
        image_id = text.image_ids[place]
        return {
            "text": text.text,
            "image": BASE64_HEAD + self.images.read(image_id),
            "image_id": image_id,
            "key": self.image_key(image_id),
        }

    def where(self, number: int) -> str:
        return self.texts.where(number if self._line is None else int(self._line[number]))

    def image_key(self, image_id: int) -> str:
        """What tells an image from those of other files."""
        return f"{self.images.path}[{image_id}]"

    def text_lines(self) -> Iterator[TextLine]:
        """Every readable text once, in the order of the file, with those of its images that are there."""
        known = set(self.images.ids())
        found: dict[int, TextLine] = {}
        for number in range(len(self.texts)):
            try:
                line = read_text_line(self.texts.read(number))
            except BadRecord as error:
                self._skip(number, error)
                continue
            first = found.setdefault(line.text_id, TextLine(line.text_id, line.text, []))
            if first.text != line.text:
                where = self.texts.where(number)
                raise DataError(
                    f"{where}: text_id {line.text_id} has stood for another text before; ids must be unique"
                )
            first.image_ids.extend(i for i in line.image_ids if i in known and i not in first.image_ids)
        yield from found.values()

    def _scan(self) -> tuple[np.ndarray, np.ndarray]:
        """Line and place in its image_ids of every pair; what cannot be used is listed in `skipped`."""
        known, pairs = set(self.images.ids()), []
        for number in range(len(self.texts)):
            try:
                line = read_text_line(self.texts.read(number))
            except BadRecord as error:
                self._skip(number, error)
                continue
            for place, image_id in enumerate(line.image_ids):
                if image_id in known:
                    pairs.append((number, place))
                else:
                    self._skip(number, BadRecord("unknown image id", f"{image_id} is not in {self.images.path}"))
        table = np.array(pairs, np.int64).reshape(-1, 2)
        return table[:, 0], table[:, 1]

    def _skip(self, number: int, error: BadRecord) -> None:
        self.skipped.append(Skipped(error.where or self.texts.where(number), error.reason, error.detail))


def images_beside(path: str) -> str:
    """The images' file that belongs to a texts' file by its name."""
    if not path.endswith(TEXTS_END):
        raise DataError(f"{path}: texts' files end in {TEXTS_END}, else the images' file must be given (images)")
    return path.removesuffix(TEXTS_END) + IMAGES_END


def open_images(path: str, files: Files, index: LineIndex) -> LmdbImages | TsvImages:
    """Images of a .tsv, of an LMDB folder of images, or of one that holds such a folder."""
    if os.path.isdir(path):
        inner = Path(path) / IMAGES
        return LmdbImages(inner if inner.is_dir() else path)
    return TsvImages(path, files, index)


@dataclass
class PairRecords:
    """The pairs of several splits under one running number."""

    parts: list[PairFiles]
    ends: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.ends = np.cumsum([len(part) for part in self.parts], dtype=np.int64)

    def __len__(self) -> int:
        return int(self.ends[-1])

    def read(self, number: int) -> dict[str, Any]:
        part, inner = locate(self.ends, number)
        return self.parts[part].read(inner)

    def where(self, number: int) -> str:
        part, inner = locate(self.ends, number)
        return self.parts[part].where(inner)


class Pairs(ImageTextPairs):
    """Pairs of a text with one of its images. `files` by language: texts' files or LMDB folders.

    Evaluation searches all images of the files, those without a text too; a text finds any of its images.
    """

    @dataclass
    class Config(PairsConfig):
        name: str = "pairs"
        images: str = ""  # of all files; empty: *_imgs.tsv beside *_texts.jsonl, the folder's own in LMDB

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.folds != 1:
                raise ValueError("folds must be 1: a text may have images in several of them")

        def read(self, record: dict[str, Any]) -> Entry:
            if "image" not in record:  # a line of texts as it stands in its file
                raise BadRecord("images by id", "the line names its images by id; PairFiles finds them")
            key = field_of(record, "key")
            return Entry(record["image"], "", key, [field_of(record, "text")], key)

        def clean(self, caption: Any, max_words: int) -> str:
            """The caption with straight quotation marks in lower case, cleaned as the model's data is."""
            return clean(clean_chinese(caption) if isinstance(caption, str) else caption, max_words)

    def check_not_empty(self) -> None:
        """Nothing to say: a gallery of images needs no pair, and a part without any text is refused when it opens."""

    def open_part(self, language: str, paths: list[str]) -> Part:
        files, index = self.preprocessing.files, LineIndex(self.preprocessing.files, self.preprocessing.cache_dir)
        records = PairRecords([PairFiles(path, self.config.images, files, index) for path in paths])
        if not len(records) and not any(len(part.texts) for part in records.parts):
            raise DataError(f"{', '.join(paths)}: no text in it")
        number = np.arange(min(len(records), self.config.limit or len(records)))
        skipped = [record for part in records.parts for record in part.skipped]
        return Part(records, self.config, self.preprocessing, number, np.zeros_like(number), skipped, list(paths))

    def galleries(self, bad_records: BadRecords, num_threads: int = 1) -> dict[str, list[Gallery]]:
        """One gallery per language with every image of its files, in their order."""
        found = {}
        for language, part in self.parts.items():
            images = GalleryImages(part.records.parts)
            reader = ImageReader(images.read, images.where, self.preprocessing, bad_records, num_threads)
            found[language] = [self._gallery(language, part.records.parts, images, reader)]
        return found

    def _gallery(self, language: str, files: list[PairFiles], images: GalleryImages, reader: ImageReader) -> Gallery:
        items = [GalleryItem(key, row) for row, key in enumerate(images.rows)]
        named: list[tuple[int, int, int, bool]] = []  # row of the first image, number of the text in it, row, is first
        num_texts = num_unmatched = 0
        for part, line in ((each, line) for each in files for line in each.text_lines()):
            if self.config.limit and num_texts == self.config.limit:
                break
            num_texts += 1
            rows = [images.rows[part.image_key(image_id)] for image_id in line.image_ids]
            if not rows:
                num_unmatched += 1
                continue
            captions = items[rows[0]].captions
            captions.append(self.config.clean(line.text, self.preprocessing.max_words))
            named += [(rows[0], len(captions) - 1, row, place == 0) for place, row in enumerate(rows)]
        if num_texts == num_unmatched:
            first = "".join(f"; {problem}" for part in files for problem in part.skipped[:1])
            raise DataError(
                f"{', '.join(part.path for part in files)}: no text names an image, so nothing can be scored{first}"
            )
        if num_unmatched:
            log.warning("%s: %d of %d texts name no image and are left out", language, num_unmatched, num_texts)
        gallery = build_gallery(language, items, reader)
        first = np.cumsum([0, *(len(item.captions) for item in items)])
        pairs = [(int(first[row]) + place, other) for row, place, other, _ in named]
        gallery.pairs = torch.tensor(pairs, dtype=torch.int64)
        gallery.also_right = gallery.pairs[~torch.tensor([is_first for *_, is_first in named])]
        return gallery


class GalleryImages:
    """The images of several files as rows of a gallery."""

    def __init__(self, parts: list[PairFiles]) -> None:
        self.found = {part.image_key(image_id): (part, image_id) for part in parts for image_id in part.images.ids()}
        self.rows = {key: row for row, key in enumerate(self.found)}
        self._places = list(self.found.values())

    def read(self, row: int) -> bytes:
        part, image_id = self._places[row]
        return decode_base64(part.images.read(image_id))

    def where(self, row: int) -> str:
        part, image_id = self._places[row]
        return part.images.where(image_id)
