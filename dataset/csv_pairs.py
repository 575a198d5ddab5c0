"""ZeroVL's annotation tables: <set>/train_anno.csv beside <set>/train/, header image,image_id,caption,caption_id."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dataset.bad_records import BadRecords
from dataset.files import BadRecord, DataError
from dataset.gallery import Gallery, GalleryItem
from dataset.readers import Records
from dataset.retrieval import Entry, ImageTextPairs, PairsConfig, Part, scan
from dataset.samples import Preprocessing, clean
from dataset.sections import field_of
from dataset.text_augment import WordNoise

ANNOTATION = "_anno.csv"


class CsvPairs(ImageTextPairs):
    """One row, one caption; rows of equal image_id show the same picture. `files` by set: {coco: coco/train_anno.csv}.

    Captions stay as they are: the tokenizer alone decides on case and punctuation. Rows with a negative image_id are
    left out of the evaluation.
    """

    @dataclass
    class Config(PairsConfig):
        name: str = "csv_pairs"
        image_root: str = ""  # empty: the folder beside a table, train/ for train_anno.csv
        word_noise: WordNoise.Config = field(default_factory=WordNoise.Config)

        def read(self, record: dict[str, Any]) -> Entry:
            image, number = field_of(record, "image"), str(field_of(record, "image_id"))
            if not number.lstrip("-").isdigit():
                raise BadRecord("image_id is not a whole number", f"found {number!r}")
            return Entry(image, self.image_root, number, [field_of(record, "caption")], number)

        def clean(self, caption: Any, max_words: int) -> str:
            """The caption as it is; BadRecord when it is empty."""
            return clean(caption, 0)

        def of_table(self, path: str) -> CsvPairs.Config:
            """The same settings with the folder of pictures that belongs to a table."""
            if self.image_root:
                return self
            return dataclasses.replace(self, image_root=path.removesuffix(ANNOTATION).removesuffix(".csv"))

    def __init__(self, config: Config, preprocessing: Preprocessing) -> None:
        super().__init__(config, preprocessing)
        self.noise = WordNoise(config.word_noise, preprocessing.tokenizer)

    def check_not_empty(self) -> None:
        if not len(self):
            paths = [path for paths in self.config.files_by_language().values() for path in paths]
            raise DataError(f"no row in {', '.join(paths)}")

    def encode_caption(self, text: str, generator: np.random.Generator) -> list[list[int]]:
        """Token ids of the caption, some of its pieces masked, replaced or left out where the settings say so."""
        return self.preprocessing.encode([self.noise(text, generator)])

    def galleries(self, bad_records: BadRecords, num_threads: int = 1) -> dict[str, list[Gallery]]:
        """One gallery per table; every row is checked first."""
        for name, part in self.parts.items():
            self.parts[name] = scan(part.paths, part.config, self.preprocessing)
        skipped = self.skipped
        if skipped:
            bad_records.add(sum(part.num_records for part in self.parts.values()), skipped)
            bad_records.end_epoch()
            bad_records.start_epoch()
        return super().galleries(bad_records, num_threads)

    def open_part(self, language: str, paths: list[str]) -> Part:
        """All rows: tables of millions are not read through before training, a bad row is skipped in its turn."""
        config = self.config.of_table(paths[0])
        if len({os.path.dirname(path) for path in paths}) > 1 and not self.config.image_root:
            raise DataError(f"{', '.join(paths)}: tables of one set must lie in one folder, or image_root be given")
        records = Records(paths, self.preprocessing.files, self.preprocessing.cache_dir)
        for source in records.sources:
            absent = [name for name in ("image", "image_id", "caption") if name not in source.columns]
            if absent:
                found = ", ".join(source.columns)
                raise DataError(f"{source.path}:1: no column {', '.join(absent)}; found: {found}")
        number = np.arange(min(len(records), config.limit or len(records)))
        return Part(records, config, self.preprocessing, number, np.zeros_like(number), paths=paths)

    def _items(self, part: Part) -> list[GalleryItem]:
        """Pictures by image_id; the name of one holds its folder, since other tables count their own."""
        items: dict[str, GalleryItem] = {}
        for record in part.record_of_text.tolist():
            entry = part.read(record)
            if int(entry.image_id) < 0:
                continue
            name = os.path.join(entry.root, entry.image)
            item = items.setdefault(entry.image_id, GalleryItem(name, record))
            item.captions.append(self.config.clean(entry.captions[0], self.preprocessing.max_words))
        return list(items.values())
