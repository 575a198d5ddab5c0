"""What embeddings are extracted from: pictures of a TSV, an LMDB or a folder, texts of a JSON-lines file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from dataset.collection import Collection
from dataset.files import BadRecord, DataError, Files
from dataset.inference import Inference
from dataset.lmdb_pairs import IMAGES, is_environment, whole_number
from dataset.original_bert import clean_chinese
from dataset.pairs import open_images
from dataset.readers import LineIndex, LineSource
from dataset.samples import decode_base64
from dataset.sections import field_of
from dataset.text import clean_caption


class ImageSource(Protocol):
    """Encoded pictures in an order, each with its id."""

    ids: list[int | str]

    def read(self, place: int) -> bytes: ...
    def where(self, place: int) -> str: ...
    def stamps(self) -> list[str]: ...


class PairImages:
    """The images of Chinese-CLIP's TSV (in its order) or LMDB (in the order of its keys)."""

    def __init__(self, path: str) -> None:
        files = Files()
        self.images = open_images(path, files, LineIndex(files, None))
        if skipped := getattr(self.images, "skipped", []):
            raise DataError(str(skipped[0]))
        self.ids: list[int | str] = list(self.images.ids())

    def read(self, place: int) -> bytes:
        return decode_base64(self.images.read(self.ids[place]))

    def where(self, place: int) -> str:
        return self.images.where(self.ids[place])

    def stamps(self) -> list[str]:
        """What changes with the content."""
        path = self.images.path
        return [f"{path} {Files().stamp(os.path.join(path, 'data.mdb') if os.path.isdir(path) else path)}"]


class FolderImages:
    """The pictures below a folder or in a zip; their ids are their names below it."""

    def __init__(self, path: str) -> None:
        self.collection = Collection([path])
        self.ids: list[int | str] = [picture.name for picture in self.collection.pictures]

    def read(self, place: int) -> bytes:
        try:
            return self.collection.read(place)
        except OSError as error:
            raise BadRecord("unreadable image file", str(error)[:200]) from error

    def where(self, place: int) -> str:
        return self.collection.pictures[place].path

    def stamps(self) -> list[str]:
        """What changes with the content."""
        return [picture.key for picture in self.collection.pictures]


def open_image_source(path: str) -> ImageSource:
    """The pictures of a path; FileNotFoundError or DataError says what it should be."""
    if not os.path.exists(path.partition("::")[0]):
        raise FileNotFoundError(f"{path}: no such images; allowed: *.tsv, an LMDB folder, a folder or zip of pictures")
    is_lmdb = is_environment(path) or is_environment(os.path.join(path, IMAGES))
    return PairImages(path) if is_lmdb or path.lower().endswith(".tsv") else FolderImages(path)


class TextSource:
    """Texts of a JSON-lines file, each with its text_id, cleaned as Chinese-CLIP's and as the model's own data is."""

    def __init__(self, path: str) -> None:
        self.path, files = path, Files()
        if not files.exists(path):
            raise FileNotFoundError(f"{path}: no such texts; allowed: *.jsonl with text_id and text")
        self.source = LineSource(path, files, LineIndex(files, None).load(path))
        self.texts, self.ids = [], list[int | str]()
        for number in range(len(self.source)):
            try:
                record = self.source.read(number)
                self.ids.append(whole_number(field_of(record, "text_id"), "text_id"))
                self.texts.append(str(field_of(record, "text") if record.get("text") != "" else ""))
            except BadRecord as error:
                raise DataError(
                    f"{error.where or self.source.where(number)}: {error.reason}; {error.detail}"
                ) from error

    def encode(self, places: Sequence[int], inputs: Inference, max_tokens: int) -> list[list[int]]:
        """Token ids of some texts; of a text without a word the marks alone."""
        words = [clean_or_empty(clean_chinese(self.texts[place]), inputs.config.max_words) for place in places]
        return inputs.tokenizer.encode_batch(words, max_tokens)

    def stamps(self) -> list[str]:
        """What changes with the content."""
        return [f"{self.path} {Files().stamp(self.path)}"]


def clean_or_empty(text: str, max_words: int) -> str:
    """The cleaned caption; "" where nothing is left."""
    try:
        return clean_caption(text, max_words)
    except ValueError:
        return ""


class Pixels(Dataset):
    """Batches of pictures (m, 3, S, S) uint8 by their places; runs in worker processes.

    A picture that cannot be used comes back as a line that says why, in the place of the whole batch.
    """

    def __init__(self, source: ImageSource, transform: Any, seed: Sequence[int] = ()) -> None:
        """seed: what the random draws depend on beside the place."""
        self.source, self.transform, self.seed = source, transform, tuple(seed)

    def __getitem__(self, places: Sequence[int]) -> Tensor | str:
        images = []
        for place in places:
            try:
                images.append(self.transform(self.source.read(place), np.random.default_rng([*self.seed, place])))
            except BadRecord as error:
                return f"{error.where or self.source.where(place)}: {error.reason}; {error.detail}"
        return torch.from_numpy(np.stack(images))
