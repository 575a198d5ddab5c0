"""The ten image operations of RandAugment as CCLM, CCRK and R2D2 trained with them, on (H, W, 3) uint8 RGB arrays.

Warps are bilinear with a constant border; `level` runs from 0 to MAX_LEVEL.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

MAX_LEVEL = 10
TRANSLATE_PIXELS = 10.0
GREY = (128, 128, 128)
SHADES = np.arange(256)

# Unclipped on purpose: the original lets over- and undershoots of sharpening wrap around, and models were trained so.
SHARPEN_KERNEL = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13


def identity(image: np.ndarray) -> np.ndarray:
    return image


def auto_contrast(image: np.ndarray) -> np.ndarray:
    """Every channel stretched to the whole range, but see below for channels without a true black."""
    tables = []
    lows = image.min(axis=0).min(axis=0).tolist()  # one axis at a time is 20 times faster than both at once
    highs = image.max(axis=0).max(axis=0).tolist()
    for darkest, brightest in zip(lows, highs):
        scale = 255 / (brightest - darkest) if brightest > darkest else 1.0
        # The original negates `darkest` in 8 bits: unless it is 0 the channel overshoots to white, and the released
        # checkpoints were trained on that.
        offset = -darkest % 256 * scale if brightest > darkest else 0.0
        tables.append(np.clip(SHADES * scale + offset, 0, 255).astype(np.uint8))
    return cv2.LUT(image, np.stack(tables, axis=-1)[None])


def equalize(image: np.ndarray) -> np.ndarray:
    """Every channel with its histogram made flat."""
    tables = []
    for channel in range(3):
        counts = cv2.calcHist([image], [channel], None, [256], [0, 256]).ravel()
        step = counts[counts != 0][:-1].sum() // 255
        if step == 0:
            tables.append(SHADES.astype(np.uint8))
            continue
        below = np.concatenate([[step // 2], counts[:-1]]).astype(np.float32)
        tables.append(np.clip(np.cumsum(below) // step, 0, 255).astype(np.uint8))
    return cv2.LUT(image, np.stack(tables, axis=-1)[None])


def brightness(image: np.ndarray, factor: float) -> np.ndarray:
    """All values times the factor."""
    table = SHADES.astype(np.float32) * np.float32(factor)
    return cv2.LUT(image, np.clip(table, 0, 255).astype(np.uint8))


def sharpness(image: np.ndarray, factor: float) -> np.ndarray:
    """A mix of the image and its blurred form; factors above 1 sharpen. The outermost pixels stay."""
    if min(image.shape[:2]) < 3 or factor == 1:
        return image
    blurred = cv2.filter2D(image, -1, SHARPEN_KERNEL)[1:-1, 1:-1]
    mixed = np.subtract(image[1:-1, 1:-1], blurred, dtype=np.float32)
    mixed *= factor
    mixed += blurred
    sharp = image.copy()
    sharp[1:-1, 1:-1] = mixed.astype(np.int16).astype(np.uint8)
    return sharp


def warp_matrix(name: str, argument: float, height: int, width: int) -> np.ndarray:
    """Where the pixels of an (height, width) image go under a shear, shift (pixels) or rotation (degrees): (2, 3)."""
    if name == "Rotate":
        return cv2.getRotationMatrix2D((width / 2, height / 2), argument, 1)
    rows = {
        "ShearX": [[1, argument, 0], [0, 1, 0]],
        "ShearY": [[1, 0, 0], [argument, 1, 0]],
        "TranslateX": [[1, 0, -argument], [0, 1, 0]],
        "TranslateY": [[1, 0, 0], [0, 1, -argument]],
    }
    return np.array(rows[name], np.float32)


def warp(image: np.ndarray, name: str, argument: float, fill: Sequence[int]) -> np.ndarray:
    """The image after a shear, shift or rotation; uncovered pixels take the fill colour."""
    height, width = image.shape[:2]
    if name.startswith("Translate") and float(argument).is_integer():
        down, right = (-int(argument), 0) if name == "TranslateY" else (0, -int(argument))
        return shift(image, down, right, fill)
    matrix = warp_matrix(name, argument, height, width)
    return cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_LINEAR, borderValue=tuple(fill))


def shift(image: np.ndarray, down: int, right: int, fill: Sequence[int]) -> np.ndarray:
    """The image moved by whole pixels; uncovered pixels take the fill colour."""
    height, width = image.shape[:2]
    down, right = max(-height, min(down, height)), max(-width, min(right, width))
    source = image[max(-down, 0) : height - max(down, 0), max(-right, 0) : width - max(right, 0)]
    if not source.size:
        return np.full_like(image, fill)
    borders = max(down, 0), max(-down, 0), max(right, 0), max(-right, 0)
    return cv2.copyMakeBorder(source, *borders, cv2.BORDER_CONSTANT, value=tuple(fill))


PLAIN = {"Identity": identity, "AutoContrast": auto_contrast, "Equalize": equalize}
BLENDS = {"Brightness": brightness, "Sharpness": sharpness}
WARPS = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")
OPERATIONS = (*PLAIN, *BLENDS, *WARPS)


def magnitude(name: str, level: float) -> float:
    """The argument of an operation at a level, without its sign."""
    share = level / MAX_LEVEL
    if name in BLENDS:
        return share * 1.8 + 0.1
    if name.startswith("Shear"):
        return share * 0.3
    return share * (30.0 if name == "Rotate" else TRANSLATE_PIXELS)


def apply_operation(
    image: np.ndarray, name: str, level: float, sign: int = 1, fill: Sequence[int] = GREY
) -> np.ndarray:
    """One operation at a level; the sign matters to shears, shifts and rotations only."""
    if name in PLAIN:
        return PLAIN[name](image)
    if name in BLENDS:
        return BLENDS[name](image, magnitude(name, level))
    return warp(image, name, sign * magnitude(name, level), fill)


def random_augment(
    image: np.ndarray, generator: np.random.Generator, *, names: Sequence[str], num_operations: int, level: float
) -> np.ndarray:
    """num_operations draws with replacement from the names, each carried out with probability 0.5."""
    picks = generator.integers(len(names), size=num_operations).tolist()
    is_done = (generator.random(num_operations) < 0.5).tolist()
    signs = np.where(generator.random(num_operations) < 0.5, -1, 1).tolist()
    for pick, done, sign in zip(picks, is_done, signs):
        if done:
            image = apply_operation(image, names[pick], level, sign)
    return image
