"""Images and texts from anywhere, prepared as evaluation prepares them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dataset import TRANSFORMS
from dataset.batch import TextBatch, pad_texts
from dataset.data import DataConfig
from dataset.files import BadRecord
from dataset.text import clean_caption, load_tokenizer


class Inference:
    """The tokenizer and the evaluation transform of a data section."""

    def __init__(self, config: DataConfig, image_size: int) -> None:
        self.config = config
        self.tokenizer = load_tokenizer(config.tokenizer)
        self.transform = TRANSFORMS.load(config.test_transform.name)(config.test_transform, image_size)

    def images(self, images: Sequence[Any]) -> Tensor:
        """uint8 (M, 3, S, S) of paths, encoded bytes, PIL images or (H, W, 3) uint8 arrays; ValueError names a bad
        one.
        """
        pixels = []
        for place, image in enumerate(images):
            try:
                pixels.append(self.transform(_encoded(image), np.random.default_rng(0)))
            except BadRecord as error:
                where = str(image) if isinstance(image, str | os.PathLike) else f"image {place}"
                raise ValueError(f"{where}: {error}") from error
        if not pixels:
            raise ValueError("no images given")
        return torch.from_numpy(np.stack(pixels))

    def texts(self, texts: Sequence[str]) -> TextBatch:
        """Cleaned and cut as in evaluation; ValueError names a text of which nothing is left."""
        if not texts:
            raise ValueError("no texts given")
        cleaned = [clean_caption(text, self.config.max_words) for text in texts]
        return pad_texts(self.tokenizer.encode_batch(cleaned, self.config.max_tokens), self.tokenizer.pad_id)


def _encoded(image: Any) -> bytes:
    if isinstance(image, bytes):
        return image
    if isinstance(image, str | os.PathLike):
        return Path(image).read_bytes()
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    if not isinstance(image, Image.Image):
        raise ValueError(f"an image is a path, bytes, a PIL image or an array; found {type(image).__name__}")
    packed = BytesIO()
    image.convert("RGB").save(packed, "PNG", compress_level=0)
    return packed.getvalue()
