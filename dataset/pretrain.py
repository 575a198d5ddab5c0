"""Pictures with captions in several languages: every picture meets all its captions (1-to-K) in the same step."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from dataset.bad_records import BadRecords
from dataset.batch import ImageTextBatch, Skipped
from dataset.files import BadRecord, DataError
from dataset.gallery import Gallery, GalleryItem, ImageReader, build_gallery
from dataset.readers import Records
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

# The names under which the systems' files keep the picture; tried when a record lacks the configured one.
IMAGE_KEYS = ("image_path", "image", "binary", "image_content")


class CaptionedImages(RecordDataset):
    """Records {caption: {language: text}, image: path or base64}; a sample is a picture with its K captions."""

    @dataclass
    class Config:
        name: str = "captioned_images"
        files: list[str] = field(default_factory=list)  # files and folders, of JSON lines or JSON lists
        image_root: str = ""  # folder, URL or zip that image paths are relative to
        image_key: str = "image_path"
        caption_key: str = "caption"
        languages: list[str] = field(default_factory=list)  # order is kept; none: those of the first record, sorted
        caption_num: int = 0  # draw that many of the languages for every picture; 0 takes all
        # `drawn`: exactly caption_num captions in a drawn order; a picture with fewer is left out.
        caption_order: Literal["languages", "drawn"] = "languages"
        tokenized: bool = False  # captions are pieces of the tokenizer already, joined by blanks
        # Prepared pictures and token ids stay in memory: for small sets whose transform starts with a resize.
        keep_in_memory: bool = False
        # A picture that lacks a language is skipped, or kept: with `languages` empty, whatever languages it has.
        missing_language: Literal["skip", "keep"] = "skip"

        def __post_init__(self) -> None:
            if not self.files:
                raise ValueError("files is empty; name at least one file or folder of JSON lines")
            if len(set(self.languages)) != len(self.languages):
                raise ValueError(f"languages holds one twice: {', '.join(self.languages)}")
            if self.caption_num < 0 or (self.languages and self.caption_num > len(self.languages)):
                most = len(self.languages) or "the number of languages"
                raise ValueError(f"caption_num must be between 0 and {most}, found {self.caption_num}")

    def __init__(self, config: Config, preprocessing: Preprocessing) -> None:
        super().__init__(config, preprocessing.for_pieces() if config.tokenized else preprocessing)
        self._prepared: dict[int, Any] = {}
        self._encoded: dict[str, list[int]] = {}
        self.languages = list(config.languages) or find_languages(self.records, config.caption_key)
        self.takes_any_language = config.missing_language == "keep" and not config.languages
        if config.caption_num > len(self.languages):
            found = ", ".join(self.languages)
            raise DataError(f"caption_num is {config.caption_num}, but {config.files[0]} has only {found}")

    def sample(self, index: int, generator: np.random.Generator) -> Sample:
        """The picture of a record with its captions; all chance comes from the generator."""
        record = self.records.read(index)
        captions = self._captions(record, generator)
        value = _as_value(find_image(record, self.config.image_key))
        texts = self._encode(list(captions.values()))
        known = {language: k for k, language in enumerate(self.languages)}
        return Sample(
            image=self.preprocessing.transform.finish(self._prepare(index, value), generator),
            image_id=stable_id(image_key(value)),
            texts=texts,
            languages=[known.get(language, -1) for language in captions],
            masked=mask_texts(texts, self.preprocessing.masker, generator),
        )

    def collate(self, samples: list[Sample], skipped: list[Skipped]) -> ImageTextBatch:
        return collate_samples(samples, skipped, self.preprocessing.tokenizer.pad_id)

    def galleries(self, bad_records: BadRecords, num_threads: int = 1) -> dict[str, list[Gallery]]:
        """One gallery per language: the pictures that have a caption in it."""
        items: dict[str, dict[str, GalleryItem]] = {language: {} for language in self.languages}
        skipped = []
        for number in range(len(self.records)):
            try:
                record = self.records.read(number)
                captions = captions_by_language(record, self.config.caption_key, None, self._only_language)
                path = image_key(_as_value(find_image(record, self.config.image_key)))
                for language in self.languages:
                    if language in captions:
                        caption = self.preprocessing.clean(captions[language], self.preprocessing.max_words)
                        items[language].setdefault(path, GalleryItem(path, number)).captions.append(caption)
            except BadRecord as error:
                skipped.append(Skipped(error.where or self.records.where(number), error.reason, error.detail))
        bad_records.add(len(self.records), skipped)
        reader = ImageReader(self.read_image, self.where, self.preprocessing, bad_records, num_threads)
        return {name: [build_gallery(name, found.values(), reader)] for name, found in items.items() if found}

    def read_image(self, index: int) -> bytes:
        """The encoded picture of a record."""
        value = find_image(self.records.read(index), self.config.image_key)
        return read_image(value, self.config.image_root, self.preprocessing.files)

    def describe(self, number: int) -> Contents:
        """The picture of a record and its captions in every language, those of all its caption sets."""
        record = self.records.read(number)
        value = _as_value(find_image(record, self.config.image_key))
        sets = record.get(self.config.caption_key)
        sets = sets if isinstance(sets, list) and sets else [sets]
        captions = []
        for each in sets:
            record = {**record, self.config.caption_key: each}
            one = captions_by_language(record, self.config.caption_key, None, self._only_language)
            languages = list(one) if self.takes_any_language else self.languages
            captions += [(language, one.get(language)) for language in languages]
        return Contents(
            images=[(value, self.config.image_root)],
            captions=captions,
            image_id=image_key(value),
            needed="all" if self.config.missing_language == "skip" else "any",
            clean=self.preprocessing.clean,
        )

    def _prepare(self, index: int, value: str) -> Any:
        """The picture of a record as the transform's first half leaves it."""
        if index in self._prepared:
            return self._prepared[index]
        data = read_image(value, self.config.image_root, self.preprocessing.files)
        prepared = self.preprocessing.transform.prepare(data)
        if self.config.keep_in_memory:
            self._prepared[index] = prepared
        return prepared

    def _encode(self, texts: list[str]) -> list[list[int]]:
        """Token ids of cleaned captions."""
        if not self.config.keep_in_memory:
            return self.preprocessing.encode(texts)
        missing = [text for text in texts if text not in self._encoded]
        self._encoded.update(zip(missing, self.preprocessing.encode(missing) if missing else []))
        return [self._encoded[text] for text in texts]

    def _captions(self, record: dict[str, Any], generator: np.random.Generator) -> dict[str, str]:
        """Cleaned captions by language, in the order of the languages or as they were drawn."""
        captions = captions_by_language(record, self.config.caption_key, generator, self._only_language)
        if self.config.missing_language == "skip":
            missing = [language for language in self.languages if language not in captions]
            if missing:
                raise BadRecord("missing language", f"no {', '.join(missing)}; found: {', '.join(captions) or 'none'}")
        wanted = list(captions) if self.takes_any_language else self.languages
        present = [language for language in wanted if language in captions]
        if 0 < self.config.caption_num < len(present) or self.config.caption_order == "drawn":
            size = min(self.config.caption_num or len(present), len(present))
            drawn = generator.choice(len(present), size=size, replace=False).tolist()
            present = [present[k] for k in (drawn if self.config.caption_order == "drawn" else sorted(drawn))]
        cleaned = {}
        for language in present:
            try:
                cleaned[language] = self.preprocessing.clean(captions[language], self.preprocessing.max_words)
            except BadRecord:
                if self.config.missing_language == "skip":
                    raise
        if not cleaned:
            raise BadRecord("missing caption", f"none in {', '.join(self.languages)}")
        if self.config.caption_order == "drawn" and len(cleaned) < self.config.caption_num:
            raise BadRecord("too few captions", f"needed {self.config.caption_num}, found {', '.join(cleaned)}")
        return cleaned

    @property
    def _only_language(self) -> str | None:
        """What captions are in that stand without a language; with several languages none may."""
        if self.takes_any_language:
            return UNKNOWN_LANGUAGE
        return self.languages[0] if len(self.languages) == 1 else None


def find_image(record: dict[str, Any], key: str) -> Any:
    """The record's image value under the configured name, or under one that the systems use."""
    for name in (key, *IMAGE_KEYS):
        if record.get(name):
            return record[name]
    raise BadRecord("missing image", f"field '{key}' is missing; found: {', '.join(map(str, record)) or 'none'}")


def _as_value(value: Any) -> str:
    if not isinstance(value, str):
        raise BadRecord("missing image", f"found {type(value).__name__}; allowed: path or base64")
    return value


def captions_by_language(
    record: dict[str, Any],
    key: str,
    generator: np.random.Generator | None,
    only_language: str | None = UNKNOWN_LANGUAGE,
) -> dict[str, Any]:
    """The record's captions; of a list of caption sets one is drawn, or the first taken without a generator.

    A plain text is a caption in `only_language`, where there is one.
    """
    captions = record.get(key)
    if isinstance(captions, list) and captions:
        captions = captions[int(generator.integers(len(captions))) if generator else 0]
    if isinstance(captions, str) and only_language is not None:
        return {only_language: captions}
    if not isinstance(captions, dict):
        found = f"found: {', '.join(map(str, record))}" if key not in record else f"found {type(captions).__name__}"
        raise BadRecord("missing caption", f"field '{key}' must be an object of languages; {found}")
    return captions


def find_languages(records: Records, key: str) -> list[str]:
    """The languages of the first usable record, sorted: one list for the whole data set and every worker."""
    for i in range(len(records)):
        try:
            captions = captions_by_language(records.read(i), key, None)
        except BadRecord:
            continue
        if captions:
            return sorted(captions)
    raise DataError(f"{records.where(0) if len(records) else 'data'}: no record has captions by language under '{key}'")
