"""ZeroVL's image transforms: a list of named steps, for training and evaluation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from dataset.auto_augment import auto_augment
from dataset.decode import EncodedImage, open_image
from dataset.erasing import ErasingConfig, erase
from dataset.transforms import TwoHalves, channels_first, draw_crop

JITTER = 0.4


class ImageSteps(TwoHalves):
    """The steps one after the other, each with Pillow; the last must leave a square of image_size."""

    @dataclass
    class Config:
        name: str = "steps"
        steps: list[str] = field(default_factory=lambda: ["resize", "center_crop"])
        resize: int = 256  # both sides (`resize`) or the shorter one (`resize_bicubic`)
        crop: int = 0  # of center_crop and random_crop; 0: image_size
        scale: list[float] = field(default_factory=lambda: [0.6, 1.0])  # of the area, random_resize_crop
        strength: float = 1.0  # of color_distortion
        blur_probability: float = 0.5  # of gaussian_blur
        blur_radius: list[float] = field(default_factory=lambda: [0.1, 2.0])
        erasing: ErasingConfig = field(default_factory=ErasingConfig)

        def __post_init__(self) -> None:
            unknown = [step for step in self.steps if step not in STEPS]
            if unknown or not self.steps:
                raise ValueError(f"steps: found {unknown or 'none'}; allowed: {', '.join(STEPS)}")
            if len(self.scale) != 2 or not 0 < self.scale[0] <= self.scale[1] <= 1:
                raise ValueError(f"scale must be two shares 0 < low <= high <= 1, found {self.scale}")
            if self.resize < 1 or self.crop < 0:
                raise ValueError(f"resize must be at least 1 and crop not negative; found {self.resize}, {self.crop}")
            if self.strength < 0 or not 0 <= self.blur_probability <= 1:
                found = f"{self.strength}, {self.blur_probability}"
                raise ValueError(f"strength must not be negative and blur_probability in [0, 1]; found {found}")
            if len(self.blur_radius) != 2 or not 0 <= self.blur_radius[0] <= self.blur_radius[1]:
                raise ValueError(f"blur_radius must be two numbers 0 <= low <= high, found {self.blur_radius}")

    def __init__(self, config: Config, image_size: int) -> None:
        self.config, self.image_size, self.crop = config, image_size, config.crop or image_size
        last = {"resize": config.resize, "center_crop": self.crop, "random_crop": self.crop}
        sizes = [last.get(step, image_size) for step in config.steps if step in {*last, "random_resize_crop"}]
        if not sizes or sizes[-1] != image_size:
            found = f"{sizes[-1]} wide" if sizes else "of any size"
            raise ValueError(
                f"steps {', '.join(config.steps)} leave pictures {found}, but the model's are {image_size}"
            )

    def prepare(self, data: bytes) -> EncodedImage:
        """The picture as it is: how it is cut is drawn later."""
        return open_image(data)

    def finish(self, encoded: EncodedImage, generator: np.random.Generator) -> np.ndarray:
        """(3, S, S) uint8 after all steps."""
        image = Image.fromarray(encoded.decode())
        for step in self.config.steps:
            image = STEPS[step](self, image, generator)
        return erase(channels_first(np.asarray(image)), self.config.erasing, generator)


def _resize(steps: ImageSteps, image: Image.Image, generator: np.random.Generator) -> Image.Image:
    """Both sides at the same size, aspect ratio not kept."""
    return image.resize((steps.config.resize,) * 2, Image.Resampling.BILINEAR)


def _resize_bicubic(steps: ImageSteps, image: Image.Image, generator: np.random.Generator) -> Image.Image:
    """The shorter side at the size, the other as it follows."""
    size, (width, height) = steps.config.resize, image.size
    longer = int(size * max(width, height) / min(width, height))
    wanted = (size, longer) if width <= height else (longer, size)
    return image.resize(wanted, Image.Resampling.BICUBIC)


def _cut(image: Image.Image, left: int, top: int, size: int) -> Image.Image:
    return image.crop((left, top, left + size, top + size))


def _center_crop(steps: ImageSteps, image: Image.Image, generator: np.random.Generator) -> Image.Image:
    """The middle; a smaller picture gets a black border."""
    return _cut(image, round((image.width - steps.crop) / 2), round((image.height - steps.crop) / 2), steps.crop)


def _random_crop(steps: ImageSteps, image: Image.Image, generator: np.random.Generator) -> Image.Image:
    """A square anywhere; a smaller picture is first made as large as it."""
    if min(image.size) < steps.crop:
        image = ImageOps.fit(image, tuple(max(side, steps.crop) for side in image.size), Image.Resampling.BILINEAR)
    left, top = (int(generator.integers(side - steps.crop + 1)) for side in image.size)
    return _cut(image, left, top, steps.crop)


def _random_resize_crop(steps: ImageSteps, image: Image.Image, generator: np.random.Generator) -> Image.Image:
    box = draw_crop(image.height, image.width, steps.config.scale, generator)
    place = (box.left, box.top, box.left + box.width, box.top + box.height)
    return image.resize((steps.image_size,) * 2, Image.Resampling.BILINEAR, box=place)


def _random_flip(steps: ImageSteps, image: Image.Image, generator: np.random.Generator) -> Image.Image:
    return ImageOps.mirror(image) if generator.random() < 0.5 else image


def _color_jitter(steps: ImageSteps, image: Image.Image, generator: np.random.Generator) -> Image.Image:
    """Brightness, contrast and saturation, each by a factor in 0.6 ... 1.4, in any order."""
    return _jittered(image, JITTER, 0.0, generator)


def _color_distortion(steps: ImageSteps, image: Image.Image, generator: np.random.Generator) -> Image.Image:
    """SimCLR's (arXiv 2002.05709, appendix A): colours jittered four times in five, grey one time in five."""
    if generator.random() < 0.8:
        image = _jittered(image, 0.8 * steps.config.strength, 0.2 * steps.config.strength, generator)
    return ImageOps.grayscale(image).convert("RGB") if generator.random() < 0.2 else image


def _jittered(image: Image.Image, change: float, turn: float, generator: np.random.Generator) -> Image.Image:
    """Brightness, contrast and saturation by a factor in 1 +- change, the hue by up to +- turn of a circle, in any
    order.
    """
    kinds = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    factors = generator.uniform(max(0.0, 1 - change), 1 + change, len(kinds)).tolist()
    angle = float(generator.uniform(-turn, turn)) if turn else 0.0
    for number in generator.permutation(len(kinds) + (turn > 0)).tolist():
        image = kinds[number](image).enhance(factors[number]) if number < len(kinds) else turn_hue(image, angle)
    return image


def turn_hue(image: Image.Image, angle: float) -> Image.Image:
    """The image with every hue moved by `angle` circles."""
    hue, saturation, value = image.convert("HSV").split()
    moved = (np.asarray(hue).astype(np.int16) + int(angle * 255)).astype(np.uint8)  # 256 hues, round and round
    return Image.merge("HSV", (Image.fromarray(moved), saturation, value)).convert("RGB")


def _gaussian_blur(steps: ImageSteps, image: Image.Image, generator: np.random.Generator) -> Image.Image:
    if generator.random() >= steps.config.blur_probability:
        return image
    return image.filter(ImageFilter.GaussianBlur(float(generator.uniform(*steps.config.blur_radius))))


def _auto_augment(steps: ImageSteps, image: Image.Image, generator: np.random.Generator) -> Image.Image:
    return auto_augment(image, generator)


STEPS: dict[str, Callable[[ImageSteps, Image.Image, np.random.Generator], Image.Image]] = {
    "resize": _resize,
    "resize_bicubic": _resize_bicubic,
    "center_crop": _center_crop,
    "random_crop": _random_crop,
    "random_flip": _random_flip,
    "random_resize_crop": _random_resize_crop,
    "autoaug": _auto_augment,
    "color_jitter": _color_jitter,
    "color_distortion": _color_distortion,
    "gaussian_blur": _gaussian_blur,
}
