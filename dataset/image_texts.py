"""Pictures with several texts of different kinds (Zero: search query, title, surrounding text): each step sees one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dataset.batch import ImageTextBatch, Skipped
from dataset.files import BadRecord
from dataset.records import RecordDataset
from dataset.samples import (
    UNKNOWN_LANGUAGE,
    Contents,
    Preprocessing,
    Sample,
    collate_samples,
    image_key,
    mask_texts,
    read_image,
    stable_id,
)
from dataset.sections import field_of


class ImageTexts(RecordDataset):
    """Records {image: path or base64, text: one or several} of JSON lines, or samples of tar shards; a sample is the
    picture with one of its texts, drawn anew every epoch.
    """

    @dataclass
    class Config:
        name: str = "image_texts"
        files: list[str] = field(default_factory=list)  # files and folders of JSON lines or tar shards
        image_root: str = ""  # folder, URL or zip that image paths are relative to
        # Where a record keeps its picture and its texts; of the texts all that are there take part in the draw.
        image_keys: list[str] = field(default_factory=lambda: ["image", "image_path"])
        text_keys: list[str] = field(default_factory=lambda: ["text", "texts", "caption", "query", "title", "content"])
        id_key: str = "image_id"  # records of equal ids show the same picture; without one the picture's place counts

        def __post_init__(self) -> None:
            for name, what in (("files", "a file or folder"), ("image_keys", "a field"), ("text_keys", "a field")):
                if not getattr(self, name):
                    raise ValueError(f"{name} is empty; name at least {what}")

    def __init__(self, config: Config, preprocessing: Preprocessing) -> None:
        super().__init__(config, preprocessing)
        self.languages = [UNKNOWN_LANGUAGE]

    def sample(self, index: int, generator: np.random.Generator) -> Sample:
        """The picture of a record with one of its texts; all chance comes from the generator."""
        record = self.records.read(index)
        texts = self._usable_texts(record)
        chosen = texts[int(generator.integers(len(texts)))]
        value = field_of(record, *self.config.image_keys)
        data = read_image(value, self.config.image_root, self.preprocessing.files)
        encoded = self.preprocessing.encode([chosen])
        return Sample(
            image=self.preprocessing.transform(data, generator),
            image_id=stable_id(self._picture(record, value, index)),
            texts=encoded,
            languages=[0],
            masked=mask_texts(encoded, self.preprocessing.masker, generator),
        )

    def collate(self, samples: list[Sample], skipped: list[Skipped]) -> ImageTextBatch:
        return collate_samples(samples, skipped, self.preprocessing.tokenizer.pad_id)

    def describe(self, number: int) -> Contents:
        """The picture of a record and all its texts."""
        record = self.records.read(number)
        value = field_of(record, *self.config.image_keys)
        return Contents(
            images=[(value, self.config.image_root)],
            captions=[(UNKNOWN_LANGUAGE, text) for text in self._texts(record)],
            image_id=self._picture(record, value, number),
            needed="any",
            clean=self.preprocessing.clean,
        )

    def _picture(self, record: dict[str, Any], value: Any, index: int) -> str:
        """What records of the same picture share."""
        if record.get(self.config.id_key) is not None:
            return str(record[self.config.id_key])
        return image_key(value) if isinstance(value, str) else self.where(index)

    def _texts(self, record: dict[str, Any]) -> list[Any]:
        """Every text of a record, in the order of the keys."""
        found = [record[key] for key in self.config.text_keys if record.get(key) is not None]
        return [text for value in found for text in (value if isinstance(value, list) else [value])]

    def _usable_texts(self, record: dict[str, Any]) -> list[str]:
        """Its texts after cleaning, without empty ones; BadRecord where none is left."""
        cleaned, fault = [], None
        for text in self._texts(record):
            try:
                cleaned.append(self.preprocessing.clean(text, self.preprocessing.max_words))
            except BadRecord as error:
                fault = error
        if not cleaned:
            found = ", ".join(map(str, record)) or "none"
            raise fault or BadRecord("missing text", f"none of {', '.join(self.config.text_keys)}; found: {found}")
        return cleaned
