"""Chinese-CLIP's training pictures (--use-augment): a large random part, flip, AutoAugment's policies as timm has them.

Sub-policies are those of dataset/auto_augment.py; levels, filters and fills are other ones.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from PIL import Image, ImageOps

from dataset.auto_augment import ENHANCERS, PLAIN, auto_augment
from dataset.decode import EncodedImage, open_image
from dataset.transforms import TwoHalves, channels_first, draw_crop

TOP_LEVEL = 10
CLIP_MEAN = (123, 117, 104)  # of pixels, where nothing is left of the picture


def apply_operation(image: Image.Image, name: str, level: int, sign: int) -> Image.Image:
    """One operation at a level of 0 ... 10; the sign matters to rotations and shears only."""
    share = level / TOP_LEVEL
    if name in PLAIN:
        return PLAIN[name](image)
    if name in ENHANCERS:
        return ENHANCERS[name](image).enhance(share * 1.8 + 0.1)
    if name == "posterize":
        return ImageOps.posterize(image, int(share * 4) + 4)
    if name == "solarize":
        return ImageOps.solarize(image, min(256, int(share * 256)))
    if name == "rotate":
        return image.rotate(sign * share * 30, Image.Resampling.BICUBIC, fillcolor=CLIP_MEAN)
    assert name == "shearX", name  # the only warp of the policies
    shear = (1, sign * share * 0.3, 0, 0, 1, 0)
    return image.transform(image.size, Image.Transform.AFFINE, shear, Image.Resampling.BICUBIC, fillcolor=CLIP_MEAN)


class ClipAugment(TwoHalves):
    """A part of at least 9/10 of the picture at image_size, mirrored or not, after one of the policies."""

    @dataclass
    class Config:
        name: str = "clip_augment"
        scale: list[float] = field(default_factory=lambda: [0.9, 1.0])
        flip_prob: float = 0.5

        def __post_init__(self) -> None:
            if len(self.scale) != 2 or not 0 < self.scale[0] <= self.scale[1] <= 1:
                raise ValueError(f"scale must be two shares 0 < low <= high <= 1, found {self.scale}")
            if not 0 <= self.flip_prob <= 1:
                raise ValueError(f"flip_prob must be in [0, 1], found {self.flip_prob}")

    def __init__(self, config: Config, image_size: int) -> None:
        self.config, self.image_size = config, image_size

    def without_flip(self) -> ClipAugment:
        """The same transform for pictures of which a text says left or right."""
        return ClipAugment(replace(self.config, flip_prob=0.0), self.image_size)

    def prepare(self, data: bytes) -> EncodedImage:
        """The picture as it is: which part is used is drawn later."""
        return open_image(data)

    def finish(self, encoded: EncodedImage, generator: np.random.Generator) -> np.ndarray:
        """(3, S, S) uint8; the part is resized in the file's own mode, as in evaluation."""
        image = encoded.open()
        box = draw_crop(image.height, image.width, self.config.scale, generator)
        place = (box.left, box.top, box.left + box.width, box.top + box.height)
        image = image.crop(place).resize((self.image_size,) * 2, Image.Resampling.BICUBIC)
        if generator.random() < self.config.flip_prob:
            image = ImageOps.mirror(image)
        return channels_first(np.asarray(auto_augment(image.convert("RGB"), generator, apply_operation)))
