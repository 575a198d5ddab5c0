"""Boxes of regions: reading them, the random crop that keeps one, and what the crop leaves of the others."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from dataset.files import BadRecord
from dataset.transforms import Box


class Placed(NamedTuple):
    """A rectangle on the picture as the model sees it, in its pixels."""

    x: float
    y: float
    width: float
    height: float

    def target(self, size: int) -> list[float]:
        """Centre x, centre y, width and height as shares of a picture of size x size."""
        centre = (self.x + self.width / 2, self.y + self.height / 2)
        return [number / size for number in (*centre, self.width, self.height)]

    def patches(self, size: int, grid: int) -> np.ndarray:
        """Which of the (1 + grid * grid,) tokens the rectangle touches, at least one; the global token always is."""
        mask = np.zeros((grid, grid), bool)
        columns, rows = (_span(*side, size / grid, grid) for side in ((self.x, self.width), (self.y, self.height)))
        mask[rows, columns] = True
        return np.concatenate([[True], mask.ravel()])


def _span(start: float, length: float, patch: float, grid: int) -> slice:
    first = min(math.floor(start / patch), grid - 1)
    return slice(first, min(max(math.ceil((start + length) / patch), first + 1), grid))


def read_box(value: Any) -> Box:
    """A record's box [x, y, width, height] in whole pixels, which may leave the picture; BadRecord if it is none."""
    numbers = value if isinstance(value, list) and len(value) == 4 else [None]
    if not all(isinstance(n, (int, float)) and not isinstance(n, bool) and math.isfinite(n) for n in numbers):
        raise BadRecord("broken box", f"found {str(value)[:60]}; allowed: [x, y, width, height] in pixels")
    x, y, w, h = (int(number) for number in numbers)
    return Box(y, x, h, w)


def draw_crop_around(box: Box, height: int, width: int, generator: np.random.Generator) -> Box:
    """A random part of a picture that holds all that it has of a box; each side of it is uniform between box and
    border.
    """
    left, top = (int(generator.integers(0, max(start, 0), endpoint=True)) for start in (box.left, box.top))
    right = int(generator.integers(min(box.left + box.width, width), width, endpoint=True))
    bottom = int(generator.integers(min(box.top + box.height, height), height, endpoint=True))
    return Box(top, left, bottom - top, right - left)


def visible_part(box: Box, crop: Box) -> tuple[Box, float]:
    """What of the box lies in the crop, counted from the crop's corner, and its share of the box."""
    left, top = max(box.left, crop.left), max(box.top, crop.top)
    width = max(min(box.left + box.width, crop.left + crop.width) - left, 0)
    height = max(min(box.top + box.height, crop.top + crop.height) - top, 0)
    share = width * height / (box.width * box.height) if min(box.width, box.height) > 0 else 0.0
    return Box(top - crop.top, left - crop.left, height, width), share


def place(part: Box, crop: Box, size: int, *, is_flipped: bool) -> Placed:
    """Where a part of the crop is when the crop, mirrored or not, has become size x size."""
    left = crop.width - part.left - part.width if is_flipped else part.left
    across, down = size / crop.width, size / crop.height
    return Placed(left * across, part.top * down, part.width * across, part.height * down)
