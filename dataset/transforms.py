"""From an encoded picture to a (3, S, S) uint8 array: the crops of training and the plain resize of evaluation.

A transform has two halves: `prepare` is the same every time, so its outcome can be kept; `finish` draws from the
sample's own random generator. Calling the transform does both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol

import cv2
import numpy as np
import torch
from PIL import Image
from torch.nn.functional import interpolate

from dataset.augment import OPERATIONS, random_augment, shift
from dataset.decode import EncodedImage, decode_image, open_image

ASPECT_RATIOS = (3 / 4, 4 / 3)
CROP_ATTEMPTS = 10


class Transform(Protocol):
    """What a data set needs to know of a transform."""

    image_size: int

    def prepare(self, data: bytes) -> Any: ...
    def finish(self, prepared: Any, generator: np.random.Generator) -> np.ndarray: ...
    def __call__(self, data: bytes, generator: np.random.Generator) -> np.ndarray: ...
    def without_flip(self) -> Transform: ...


class TwoHalves:
    """Calls one half after the other."""

    def __call__(self, data: bytes, generator: np.random.Generator | None = None) -> np.ndarray:
        """(3, S, S) uint8 of an encoded picture."""
        return self.finish(self.prepare(data), generator)

    def without_flip(self) -> Transform:
        """The transform itself where it never mirrors."""
        return self


class Box(NamedTuple):
    """A rectangle in pixels."""

    top: int
    left: int
    height: int
    width: int

    def shrunk(self, factor_y: float, factor_x: float, height: int, width: int) -> Box:
        """The same rectangle on an image that was scaled by the factors to (height, width)."""
        top, left = round(self.top * factor_y), round(self.left * factor_x)
        bottom = min(max(round((self.top + self.height) * factor_y), top + 1), height)
        right = min(max(round((self.left + self.width) * factor_x), left + 1), width)
        return Box(min(top, bottom - 1), min(left, right - 1), max(bottom - top, 1), max(right - left, 1))


def draw_crop(height: int, width: int, scale: Sequence[float], generator: np.random.Generator) -> Box:
    """A random rectangle whose share of the area lies in `scale` and whose aspect ratio lies in 3/4 ... 4/3."""
    low, high = math.log(ASPECT_RATIOS[0]), math.log(ASPECT_RATIOS[1])
    for share, log_ratio in zip(generator.uniform(*scale, CROP_ATTEMPTS), generator.uniform(low, high, CROP_ATTEMPTS)):
        area, ratio = height * width * share, math.exp(log_ratio)
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return Box(int(generator.integers(height - h + 1)), int(generator.integers(width - w + 1)), h, w)
    ratio = min(max(width / height, ASPECT_RATIOS[0]), ASPECT_RATIOS[1])
    w, h = min(width, round(height * ratio)), min(height, round(width / ratio))
    w, h = max(w, 1), max(h, 1)
    return Box((height - h) // 2, (width - w) // 2, h, w)


def crop_and_resize(encoded: EncodedImage, box: Box, size: int) -> np.ndarray:
    """The rectangle of an encoded picture as (size, size, 3), bicubic with antialiasing.

    A JPEG is decoded at half, a quarter or an eighth where the rectangle stays at least as large as the result.
    """
    image = encoded.decode(shrink=min(box.height, box.width) / size)
    height, width = image.shape[:2]
    if (height, width) != (encoded.height, encoded.width):
        box = box.shrunk(height / encoded.height, width / encoded.width, height, width)
    return resize(image[box.top : box.top + box.height, box.left : box.left + box.width], size)


def resize(image: np.ndarray, size: int) -> np.ndarray:
    """The image (H, W, 3) as (size, size, 3), bicubic with antialiasing; within one grey level of Pillow's."""
    if image.shape[:2] == (size, size):
        return np.ascontiguousarray(image)
    # The leading axis goes first: only then torch sees channels-last memory, and works in it without transposing.
    pixels = torch.from_numpy(np.ascontiguousarray(image))[None].permute(0, 3, 1, 2)  # (1, 3, H, W)
    resized = interpolate(pixels, (size, size), mode="bicubic", antialias=True)  # (1, 3, S, S)
    return np.ascontiguousarray(resized.permute(0, 2, 3, 1)[0].numpy())


def resize_like_pillow(image: np.ndarray, size: int) -> np.ndarray:
    """The image (H, W, 3) as (size, size, 3), the bits of Pillow's bicubic resize."""
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC))


def channels_first(image: np.ndarray) -> np.ndarray:
    """(H, W, 3) as a contiguous (3, H, W)."""
    return np.ascontiguousarray(image.transpose(2, 0, 1))


class AugmentedCrop(TwoHalves):
    """Random crop, flip and random augmentation: the training transform of CCLM and CCRK."""

    @dataclass
    class Config:
        name: str = "augmented_crop"
        scale: list[float] = field(default_factory=lambda: [0.2, 1.0])
        flip_prob: float = 0.5
        num_operations: int = 2
        level: float = 7
        operations: list[str] = field(default_factory=lambda: list(OPERATIONS))

        def __post_init__(self) -> None:
            if len(self.scale) != 2 or not 0 < self.scale[0] <= self.scale[1] <= 1:
                raise ValueError(f"scale must be two shares 0 < low <= high <= 1, found {self.scale}")
            if not 0 <= self.flip_prob <= 1 or not 0 <= self.level <= 10 or self.num_operations < 0:
                raise ValueError("flip_prob must be in [0, 1], level in [0, 10] and num_operations not negative")
            unknown = [name for name in self.operations if name not in OPERATIONS]
            if unknown or not self.operations:
                raise ValueError(f"operations: found {unknown or 'none'}; allowed: {', '.join(OPERATIONS)}")

    def __init__(self, config: Config, image_size: int) -> None:
        self.config, self.image_size = config, image_size

    def without_flip(self) -> AugmentedCrop:
        """The same transform for pictures of which a text says left or right."""
        return AugmentedCrop(replace(self.config, flip_prob=0.0), self.image_size)

    def prepare(self, data: bytes) -> EncodedImage:
        """The picture as it is: which part is decoded, and how large, is drawn later."""
        return open_image(data)

    def finish(self, encoded: EncodedImage, generator: np.random.Generator) -> np.ndarray:
        """(3, S, S) uint8: a random part, flipped or not, augmented."""
        box = draw_crop(encoded.height, encoded.width, self.config.scale, generator)
        image = crop_and_resize(encoded, box, self.image_size)
        if generator.random() < self.config.flip_prob:
            image = cv2.flip(image, 1)
        image = random_augment(
            image,
            generator,
            names=self.config.operations,
            num_operations=self.config.num_operations,
            level=self.config.level,
        )
        return channels_first(image)


class Resize(TwoHalves):
    """The whole picture at the asked size, aspect ratio not kept: every system's evaluation transform."""

    @dataclass
    class Config:
        name: str = "resize"
        # Chinese-CLIP resizes a palette, grey levels or alpha as they stand in the file, and turns the result to RGB.
        in_own_mode: bool = False

    def __init__(self, config: Config, image_size: int) -> None:
        self.config, self.image_size = config, image_size

    def of_rgb(self) -> Resize:
        """The same for pictures that are RGB before anything else."""
        return Resize(replace(self.config, in_own_mode=False), self.image_size)

    def prepare(self, data: bytes) -> np.ndarray:
        """(3, S, S) uint8, the same bits as Pillow's bicubic resize."""
        if self.config.in_own_mode:
            resized = open_image(data).open().resize((self.image_size, self.image_size), Image.Resampling.BICUBIC)
            return channels_first(np.asarray(resized.convert("RGB")))
        return channels_first(resize_like_pillow(decode_image(data), self.image_size))

    def finish(self, image: np.ndarray, generator: np.random.Generator | None = None) -> np.ndarray:
        """The image itself: nothing is drawn."""
        return image


class Shift(TwoHalves):
    """The whole picture, moved by a few pixels: for small drawings whose left and right carry meaning."""

    @dataclass
    class Config:
        name: str = "shift"
        max_shift: int = 4  # pixels of the result
        fill: list[int] = field(default_factory=lambda: [255, 255, 255])

        def __post_init__(self) -> None:
            if self.max_shift < 0 or len(self.fill) != 3 or not all(0 <= value <= 255 for value in self.fill):
                raise ValueError(f"max_shift must be at least 0 and fill three values 0-255; found {self}")

    def __init__(self, config: Config, image_size: int) -> None:
        self.config, self.image_size = config, image_size

    def prepare(self, data: bytes) -> np.ndarray:
        """The whole picture (S, S, 3)."""
        return resize(decode_image(data), self.image_size)

    def finish(self, image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """(3, S, S) uint8: the picture moved by up to max_shift pixels in each direction."""
        limit = self.config.max_shift
        down, right = generator.integers(-limit, limit + 1, size=2).tolist()
        return channels_first(shift(image, down, right, self.config.fill))
