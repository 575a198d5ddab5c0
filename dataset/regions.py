"""Pictures with described regions (CCLM, X-VLM): a random crop, the boxes that are left in it, and a text for each.

Letters: R regions of a batch, N patches of a picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
import torch

from dataset.augment import OPERATIONS, random_augment
from dataset.batch import ImageTextBatch, Regions, Skipped, pad_texts
from dataset.boxes import draw_crop_around, place, read_box, visible_part
from dataset.decode import open_image
from dataset.directions import DIRECTION_WORDS, Directions
from dataset.files import BadRecord
from dataset.pretrain import captions_by_language, find_image
from dataset.records import RecordDataset
from dataset.samples import UNKNOWN_LANGUAGE, Contents, Preprocessing, collate_masks, image_key, read_image, stable_id
from dataset.text import MaskedIds
from dataset.transforms import Box, channels_first, crop_and_resize

# What leaves every box where it is.
COLOUR_OPERATIONS = ("Identity", "AutoContrast", "Equalize", "Brightness", "Sharpness")


@dataclass
class Phrase:
    """Text by part, an attribute maybe and a caption: (text, language) each."""

    parts: list[tuple[str, str]]

    @property
    def text(self) -> str:
        return " ".join(text for text, _ in self.parts)


@dataclass
class Row:
    """One region of a crop, or the whole of it (`part` None), and what is said about it."""

    part: Box | None
    phrase: Phrase
    number: int  # of the element in its record, from 1; 0 is the whole picture


@dataclass
class RegionRow:
    """A region as the model sees it; rows with the smallest `key` stay when a batch has too many."""

    tokens: list[int]
    target: list[float]
    mask: np.ndarray
    is_image: bool
    region_id: int
    language: int
    key: float
    masked: MaskedIds | None = None


@dataclass
class RegionSample:
    """A crop (3, S, S) with its regions."""

    image: np.ndarray
    rows: list[RegionRow]


class RegionImages(RecordDataset):
    """Records {image, elems: [{bb: [x, y, width, height], caption, attributes}], caption}: a sample is a random crop
    with the regions in it. Captions are objects of languages or plain text.
    """

    @dataclass
    class Config:
        name: str = "regions"
        files: list[str] = field(default_factory=list)  # files and folders, of JSON lines or JSON lists
        image_root: str = ""  # folder, URL or zip that image paths are relative to
        image_key: str = "binary"
        caption_key: str = "caption"  # of the record, and of each of its elements
        languages: list[str] = field(default_factory=list)  # draw among these; none: among those of the caption
        tokenized: bool = False  # texts are pieces of the tokenizer already, joined by blanks
        max_images: int = 48  # pictures of a batch over all processes; batch_size counts their regions
        max_regions: int = 5  # of a picture, its own caption included
        min_share_in_image: float = 0.5  # of a box, that must lie in the crop
        code_switch: bool = False  # the language of an attribute is drawn apart from its caption's
        flip_prob: float = 0.5
        careful_flip: bool = False  # no mirror image where a text says left or right
        direction_words: str = ""  # JSON file {language: [word, ...]}; empty: the list that comes along
        num_operations: int = 2
        level: float = 7
        operations: list[str] = field(default_factory=lambda: list(COLOUR_OPERATIONS))

        def __post_init__(self) -> None:
            if not self.files:
                raise ValueError("files is empty; name at least one file or folder of JSON lines")
            for name in ("max_images", "max_regions"):
                if getattr(self, name) < 1:
                    raise ValueError(f"{name} must be at least 1, found {getattr(self, name)}")
            if not 0 <= self.min_share_in_image < 1 or not 0 <= self.flip_prob <= 1:
                found = f"{self.min_share_in_image} and {self.flip_prob}"
                raise ValueError(f"min_share_in_image must be in [0, 1) and flip_prob in [0, 1], found {found}")
            if not 0 <= self.level <= 10 or self.num_operations < 0:
                raise ValueError("level must be in [0, 10] and num_operations not negative")
            moving = [name for name in self.operations if name not in COLOUR_OPERATIONS]
            if moving or not self.operations:
                hint = "; the others move boxes" if set(moving) <= set(OPERATIONS) else ""
                allowed = ", ".join(COLOUR_OPERATIONS)
                raise ValueError(f"operations: found {moving or 'none'}; allowed: {allowed}{hint}")

    def __init__(self, config: Config, preprocessing: Preprocessing) -> None:
        if not preprocessing.grid:
            raise ValueError("regions need an image encoder whose grid of tokens is known: swin or vit")
        super().__init__(config, preprocessing.for_pieces() if config.tokenized else preprocessing)
        self.directions = Directions(config.direction_words or DIRECTION_WORDS) if config.careful_flip else None
        self.size, self.grid = preprocessing.transform.image_size, preprocessing.grid
        self.languages = list(config.languages)

    def sample(self, index: int, generator: np.random.Generator) -> RegionSample:
        """A random crop of a record's picture and its regions; all chance comes from the generator."""
        record = self.records.read(index)
        value = find_image(record, self.config.image_key)
        encoded = open_image(read_image(value, self.config.image_root, self.preprocessing.files))
        elements, boxes = self.elements_in(record, encoded.height, encoded.width)
        crop = draw_crop_around(boxes[int(generator.integers(len(boxes)))], encoded.height, encoded.width, generator)
        order = generator.permutation(len(boxes)).tolist()
        rows = self.rows_in(record, elements, boxes, crop, order, generator)
        is_flipped = generator.random() < self.config.flip_prob and self.may_flip(rows)
        return RegionSample(
            image=self._picture(crop_and_resize(encoded, crop, self.size), is_flipped, generator),
            rows=self.finish_rows(rows, crop, is_flipped, stable_id(image_key(value)), generator),
        )

    def elements_in(self, record: dict[str, Any], height: int, width: int) -> tuple[list[dict[str, Any]], list[Box]]:
        """The elements of which enough lies in the picture, with their boxes; BadRecord if there is none.

        Annotations often end a pixel beyond the border. The original leaves out a record when it draws such a box.
        """
        elements, picture = read_elements(record), Box(0, 0, height, width)
        boxes = [read_box(element["bb"]) for element in elements]
        kept = [k for k, box in enumerate(boxes) if visible_part(box, picture)[1] > self.config.min_share_in_image]
        if not kept:
            found = f"found {elements[0]['bb']}; the image has {width} x {height} pixels"
            raise BadRecord("box outside the image", found)
        return [elements[k] for k in kept], [boxes[k] for k in kept]

    def rows_in(
        self,
        record: dict[str, Any],
        elements: list[dict[str, Any]],
        boxes: list[Box],
        crop: Box,
        order: Sequence[int],
        generator: np.random.Generator,
    ) -> list[Row]:
        """The picture's caption if it has one, then the elements in the order, while enough of them is in the crop."""
        rows = []
        if record.get(self.config.caption_key):
            rows.append(Row(None, self._phrase(record, generator), 0))
        for k in order:
            if len(rows) >= self.config.max_regions:
                break
            part, share = visible_part(boxes[k], crop)
            if share > self.config.min_share_in_image:
                rows.append(Row(part, self._phrase(elements[k], generator), k + 1))
        return rows

    def may_flip(self, rows: list[Row]) -> bool:
        """Whether all texts stay true in a mirror image."""
        parts = [part for row in rows for part in row.phrase.parts]
        return self.directions is None or not any(self.directions.are_in(*part) for part in parts)

    def finish_rows(
        self, rows: list[Row], crop: Box, is_flipped: bool, image_id: int, generator: np.random.Generator
    ) -> list[RegionRow]:
        """Texts as token ids, boxes as targets and masks."""
        all_tokens = self.preprocessing.encode(
            [self.preprocessing.clean(row.phrase.text, self.preprocessing.max_words) for row in rows]
        )
        masker, finished = self.preprocessing.masker, []
        for row, tokens in zip(rows, all_tokens, strict=True):
            part = row.part or Box(0, 0, crop.height, crop.width)
            placed = place(part, crop, self.size, is_flipped=is_flipped and row.part is not None)
            language = row.phrase.parts[-1][1]
            finished.append(
                RegionRow(
                    tokens=tokens,
                    target=placed.target(self.size),
                    mask=placed.patches(self.size, self.grid),
                    is_image=row.part is None,
                    region_id=(image_id + row.number) % 2**63,
                    language=self.languages.index(language) if language in self.languages else -1,
                    key=float(generator.random()),
                    masked=masker.mask(tokens, generator) if masker is not None else None,
                )
            )
        return finished

    def collate(self, samples: list[RegionSample], skipped: list[Skipped]) -> ImageTextBatch:
        """Exactly `num_rows` regions of a batch, any of them if there are more, some twice if there are fewer."""
        found = [(k, row) for k, sample in enumerate(samples) for row in sample.rows]
        chosen = choose_rows([row.key for _, row in found], self.preprocessing.num_rows or len(found))
        rows = [found[k][1] for k in chosen]
        images = sorted({found[k][0] for k in chosen})  # a picture of which no region is left is not encoded
        texts = pad_texts([row.tokens for row in rows], self.preprocessing.tokenizer.pad_id)
        return ImageTextBatch(
            images=torch.from_numpy(np.stack([samples[k].image for k in images])),  # (M, 3, S, S)
            image_id=torch.tensor([row.region_id for row in rows], dtype=torch.int64),
            texts=texts,
            image_of_text=torch.arange(len(rows)),
            language_of_text=torch.tensor([row.language for row in rows], dtype=torch.int64),
            masked=collate_masks([row.masked for row in rows if row.masked is not None], texts.ids),
            skipped=skipped,
            regions=Regions(
                image_of_region=torch.tensor([images.index(found[k][0]) for k in chosen], dtype=torch.int64),
                mask=torch.from_numpy(np.stack([row.mask for row in rows])),  # (R, 1 + N)
                target_box=torch.tensor([row.target for row in rows], dtype=torch.float32),  # (R, 4)
                is_image=torch.tensor([row.is_image for row in rows]),
            ),
        )

    def describe(self, number: int) -> Contents:
        """The picture of a record and all its texts."""
        record = self.records.read(number)
        value = find_image(record, self.config.image_key)
        elements, captions = read_elements(record), []
        described = [record] if record.get(self.config.caption_key) else []
        for element in described + elements:
            sets = element.get(self.config.caption_key)
            for each in sets if isinstance(sets, list) and sets else [sets]:
                one = captions_by_language({self.config.caption_key: each}, self.config.caption_key, None)
                captions += list(one.items())
        return Contents(
            images=[(value, self.config.image_root)],
            captions=captions,
            image_id=image_key(value),
            needed="any",
            clean=self.preprocessing.clean,
            check_size=lambda height, width: self.elements_in(record, height, width),
        )

    def _phrase(self, element: dict[str, Any], generator: np.random.Generator) -> Phrase:
        """The caption of an element in one of its languages, behind its attribute if it has one."""
        captions = captions_by_language(element, self.config.caption_key, generator)
        language = self._draw_language(captions, generator)
        parts = [(as_text(captions[language], self.config.caption_key), language)]
        if element.get("attributes"):
            attributes = captions_by_language(element, "attributes", generator)
            own = self._draw_language(attributes, generator) if self.config.code_switch else language
            own = UNKNOWN_LANGUAGE if UNKNOWN_LANGUAGE in attributes else own
            if own in attributes:
                parts.insert(0, (as_text(attributes[own], "attributes"), own))
        return Phrase(parts)

    def _draw_language(self, texts: dict[str, Any], generator: np.random.Generator) -> str:
        missing = [language for language in self.languages if language not in texts]
        if missing:
            raise BadRecord("missing language", f"no {', '.join(missing)}; found: {', '.join(texts) or 'none'}")
        names = self.languages or list(texts)
        return names[int(generator.integers(len(names)))]

    def _picture(self, image: np.ndarray, is_flipped: bool, generator: np.random.Generator) -> np.ndarray:
        config = self.config
        image = cv2.flip(image, 1) if is_flipped else image
        options = {"names": config.operations, "num_operations": config.num_operations, "level": config.level}
        return channels_first(random_augment(image, generator, **options))


def as_text(value: Any, key: str) -> str:
    """A text of a record as it is; BadRecord if it is none."""
    if not isinstance(value, str) or not value.strip():
        found = f"found {type(value).__name__} {str(value)[:40]!r}"
        raise BadRecord("empty caption" if isinstance(value, str) else "caption is not a string", f"'{key}': {found}")
    return value.strip()


def read_elements(record: dict[str, Any]) -> list[dict[str, Any]]:
    """The described regions of a record, at least one, each with a box."""
    elements = record.get("elems")
    if not isinstance(elements, list) or not elements:
        found = ", ".join(map(str, record)) if "elems" not in record else f"{str(elements)[:40]!r}"
        raise BadRecord("missing boxes", f"'elems' must be a list of regions; found: {found}")
    for element in elements:
        if not isinstance(element, dict) or "bb" not in element:
            found = ", ".join(map(str, element)) if isinstance(element, dict) else type(element).__name__
            raise BadRecord("missing boxes", f"an element has no 'bb'; found: {found or 'nothing'}")
    return elements


def choose_rows(keys: Sequence[float], num_rows: int) -> list[int]:
    """Numbers of `num_rows` rows, in their order: those of the smallest keys, or all and some of them again.

    Keys are random numbers of the rows' own, so the choice depends on nothing else.
    """
    if len(keys) >= num_rows:
        return sorted(np.argsort(keys, kind="stable")[:num_rows].tolist())
    again = np.random.default_rng([int(key * 2**53) for key in keys[:4]]).integers(len(keys), size=num_rows - len(keys))
    return sorted([*range(len(keys)), *again.tolist()])
