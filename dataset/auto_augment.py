"""The ImageNet policies of AutoAugment (Cubuk et al. 2019) with ZeroVL's fills and filters, on (H, W, 3) uint8 RGB."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

NUM_LEVELS = 10
GREY = (128, 128, 128)
# (probability, operation, level) twice: one of these is drawn for a picture.
POLICIES = (
    ((0.4, "posterize", 8), (0.6, "rotate", 9)),
    ((0.6, "solarize", 5), (0.6, "autocontrast", 5)),
    ((0.8, "equalize", 8), (0.6, "equalize", 3)),
    ((0.6, "posterize", 7), (0.6, "posterize", 6)),
    ((0.4, "equalize", 7), (0.2, "solarize", 4)),
    ((0.4, "equalize", 4), (0.8, "rotate", 8)),
    ((0.6, "solarize", 3), (0.6, "equalize", 7)),
    ((0.8, "posterize", 5), (1.0, "equalize", 2)),
    ((0.2, "rotate", 3), (0.6, "solarize", 8)),
    ((0.6, "equalize", 8), (0.4, "posterize", 6)),
    ((0.8, "rotate", 8), (0.4, "color", 0)),
    ((0.4, "rotate", 9), (0.6, "equalize", 2)),
    ((0.0, "equalize", 7), (0.8, "equalize", 8)),
    ((0.6, "invert", 4), (1.0, "equalize", 8)),
    ((0.6, "color", 4), (1.0, "contrast", 8)),
    ((0.8, "rotate", 8), (1.0, "color", 2)),
    ((0.8, "color", 8), (0.8, "solarize", 7)),
    ((0.4, "sharpness", 7), (0.6, "invert", 8)),
    ((0.6, "shearX", 5), (1.0, "equalize", 9)),
    ((0.4, "color", 0), (0.6, "equalize", 3)),
    ((0.4, "equalize", 7), (0.2, "solarize", 4)),
    ((0.6, "solarize", 5), (0.6, "autocontrast", 5)),
    ((0.6, "invert", 4), (1.0, "equalize", 8)),
    ((0.6, "color", 4), (1.0, "contrast", 8)),
    ((0.8, "equalize", 8), (0.6, "equalize", 3)),
)
ENHANCERS = {
    "color": ImageEnhance.Color,
    "contrast": ImageEnhance.Contrast,
    "sharpness": ImageEnhance.Sharpness,
    "brightness": ImageEnhance.Brightness,
}
PLAIN = {"autocontrast": ImageOps.autocontrast, "equalize": ImageOps.equalize, "invert": ImageOps.invert}


def apply_operation(image: Image.Image, name: str, level: int, sign: int) -> Image.Image:
    """One operation at a level of 0 ... 9; the sign matters to shears, shifts and enhancers only."""
    share = level / (NUM_LEVELS - 1)
    if name in PLAIN:
        return PLAIN[name](image)
    if name in ENHANCERS:
        return ENHANCERS[name](image).enhance(1 + sign * share * 0.9)
    if name == "posterize":
        return ImageOps.posterize(image, round(8 - 4 * share))
    if name == "solarize":
        return ImageOps.solarize(image, 256 * (1 - share))
    if name == "rotate":
        return image.rotate(30 * share, fillcolor=GREY)
    return _warp(image, name, sign * share)


def _warp(image: Image.Image, name: str, amount: float) -> Image.Image:
    width, height = image.size
    rows = {
        "shearX": (1, amount * 0.3, 0, 0, 1, 0),
        "shearY": (1, 0, 0, amount * 0.3, 1, 0),
        "translateX": (1, 0, amount * 150 / 331 * width, 0, 1, 0),
        "translateY": (1, 0, 0, 0, 1, amount * 150 / 331 * height),
    }
    filtering = Image.Resampling.BICUBIC if name.startswith("shear") else Image.Resampling.NEAREST
    return image.transform(image.size, Image.Transform.AFFINE, rows[name], filtering, fillcolor=GREY)


Operate = Callable[[Image.Image, str, int, int], Image.Image]


def apply_policy(
    image: Image.Image, number: int, uniforms: Iterator[float], signs: Iterator[int], operate: Operate = apply_operation
) -> Image.Image:
    """The picture after the operations of a policy whose uniform draw falls below their probability."""
    for probability, name, level in POLICIES[number]:
        if next(uniforms) < probability:
            image = operate(image, name, level, next(signs))
    return image


def auto_augment(image: Image.Image, generator: np.random.Generator, operate: Operate = apply_operation) -> Image.Image:
    """The picture after a policy drawn at random; `operate` says what a level of an operation does."""
    number, uniforms = int(generator.integers(len(POLICIES))), generator.random(2).tolist()
    signs = np.where(generator.random(2) < 0.5, -1, 1).tolist()
    return apply_policy(image, number, iter(uniforms), iter(signs), operate)
