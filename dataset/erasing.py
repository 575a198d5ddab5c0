"""Random erasing (Zhong et al. 2020) as timm does it, on bytes: rectangles of a picture become noise."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

AREA, ASPECT, ATTEMPTS = (0.02, 1 / 3), (0.3, 1 / 0.3), 10


@dataclass
class ErasingConfig:
    """How often, and with what. mean and std: of the model's pixels, so that the noise is normal after normalisation.

    kind `pixel`: noise in every pixel, `rand`: one colour, `const`: the mean colour. Bytes cut the noise at black and
    white, some two standard deviations from the mean.
    """

    probability: float = 0.0
    kind: Literal["pixel", "rand", "const"] = "pixel"
    count: int = 1  # rectangles at most, which share the area
    mean: list[float] = field(default_factory=lambda: [0.485, 0.456, 0.406])
    std: list[float] = field(default_factory=lambda: [0.229, 0.224, 0.225])

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1 or self.count < 1:
            found = f"{self.probability} and {self.count}"
            raise ValueError(f"probability must be in [0, 1] and count at least 1, found {found}")


def erase(pixels: np.ndarray, config: ErasingConfig, generator: np.random.Generator) -> np.ndarray:
    """pixels (3, S, S) uint8, or a copy of them with rectangles erased."""
    if config.probability == 0 or generator.random() > config.probability:
        return pixels
    pixels = pixels.copy()
    _, height, width = pixels.shape
    count = int(generator.integers(1, config.count + 1))
    for _ in range(count):
        for _ in range(ATTEMPTS):
            area = generator.uniform(*AREA) * height * width / count
            aspect = math.exp(generator.uniform(*map(math.log, ASPECT)))
            tall, wide = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if tall < height and wide < width:
                top, left = (int(generator.integers(0, room + 1)) for room in (height - tall, width - wide))
                pixels[:, top : top + tall, left : left + wide] = _noise(config, tall, wide, generator)
                break
    return pixels


def _noise(config: ErasingConfig, tall: int, wide: int, generator: np.random.Generator) -> np.ndarray:
    """(3, tall, wide) or (3, 1, 1) uint8."""
    shape = (3, tall, wide) if config.kind == "pixel" else (3, 1, 1)
    normal = np.zeros(shape) if config.kind == "const" else generator.standard_normal(shape)
    mean, std = (np.array(values)[:, None, None] for values in (config.mean, config.std))
    return (255 * (mean + std * normal)).round().clip(0, 255).astype(np.uint8)
