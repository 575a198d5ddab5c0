"""Learning rate over a run, as pure functions of the step."""

import math
from dataclasses import dataclass
from typing import Literal


@dataclass
class ScheduleConfig:
    """Rise from zero over the warm-up, then the named curve down to `floor` times the peak."""

    name: Literal["linear", "cosine", "constant"] = "linear"
    warmup: int | float = 0.1  # an int counts steps, a float is a share of all steps
    floor: float = 0.0

    def __post_init__(self) -> None:
        if self.warmup < 0 or (isinstance(self.warmup, float) and self.warmup > 1):
            raise ValueError(f"warmup must be steps (int) or a share in 0 ... 1 (float), found {self.warmup}")
        if not 0 <= self.floor <= 1:
            raise ValueError(f"floor must be in 0 ... 1, found {self.floor}")


def count_warmup_steps(warmup: int | float, total_steps: int) -> int:
    """Steps of the warm-up; a share is rounded down."""
    return int(total_steps * warmup) if isinstance(warmup, float) else warmup


def learning_rate_factor(config: ScheduleConfig, step: int, total_steps: int) -> float:
    """What the peak learning rate is multiplied by at a step, counted from 0; a warm-up begins with 0."""
    warmup_steps = count_warmup_steps(config.warmup, total_steps)
    if step < warmup_steps:
        return step / max(1, warmup_steps)
    remaining = max(0.0, (total_steps - step) / max(1, total_steps - warmup_steps))
    curve = {"linear": remaining, "cosine": 0.5 * (1 - math.cos(math.pi * remaining)), "constant": 1.0}[config.name]
    return config.floor + (1 - config.floor) * curve
