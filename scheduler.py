"""Learning rate over a run, as pure functions of the step."""

import math
from dataclasses import dataclass, field
from typing import Literal


@dataclass
class ScheduleConfig:
    """Rise from `start` times the peak over the warm-up, then the named curve down to `floor` times the peak.

    R2D2's two: `epoch_cosine` changes only from epoch to epoch, and its first epoch stays at the peak; `triangle` rises
    from the floor for `warmup` steps, falls as long, and begins again. `steps` goes down a stair.
    """

    name: Literal["linear", "cosine", "constant", "epoch_cosine", "triangle", "steps"] = "linear"
    warmup: int | float = 0.1  # an int counts steps, a float is a share of all steps
    start: float = 0.0
    first_step: Literal[0, 1] = 0  # 1: the warm-up's first step is one step up already, and its last at the peak
    floor: float = 0.0
    cycles: float = 0.5  # of the cosine: half a wave falls once
    milestones: list[int] = field(default_factory=list)  # `steps`: the rate is multiplied by gamma at each of them
    gamma: float = 0.1

    def __post_init__(self) -> None:
        if self.warmup < 0 or (isinstance(self.warmup, float) and self.warmup > 1):
            raise ValueError(f"warmup must be steps (int) or a share in 0 ... 1 (float), found {self.warmup}")
        for name in ("start", "floor"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in 0 ... 1, found {getattr(self, name)}")
        if self.cycles <= 0 or self.gamma <= 0:
            raise ValueError(f"cycles and gamma must be above 0, found {self.cycles} and {self.gamma}")
        if self.name == "triangle" and self.warmup == 0:
            raise ValueError("warmup must be above 0 for a triangle: it is half of its period")


def count_warmup_steps(warmup: int | float, total_steps: int) -> int:
    """Steps of the warm-up; a share is rounded down."""
    return int(total_steps * warmup) if isinstance(warmup, float) else warmup


def learning_rate_factor(config: ScheduleConfig, step: int, total_steps: int, steps_per_epoch: float = 1.0) -> float:
    """What the peak learning rate is multiplied by at a step, counted from 0; only epochs' curves read
    steps_per_epoch.
    """
    warmup_steps = count_warmup_steps(config.warmup, total_steps)
    if config.name == "triangle":
        place = step % (2 * warmup_steps)
        return config.floor + (1 - config.floor) * min(place, 2 * warmup_steps - place) / warmup_steps
    if config.name == "epoch_cosine":
        return _epoch_cosine(config, step, total_steps, warmup_steps, steps_per_epoch)
    if step < warmup_steps:
        return config.start + (1 - config.start) * (step + config.first_step) / max(1, warmup_steps)
    num_steps = max(1, total_steps - warmup_steps)
    progress = min(1.0, (step - warmup_steps) / num_steps)
    curves = {
        "linear": max(0.0, (total_steps - step) / num_steps),
        "cosine": 0.5 * (1 + math.cos(2 * math.pi * config.cycles * progress)),
        "constant": 1.0,
        "steps": config.gamma ** sum(milestone <= step for milestone in config.milestones),
    }
    curve = curves[config.name]
    return config.floor + (1 - config.floor) * curve


def _epoch_cosine(
    config: ScheduleConfig, step: int, total_steps: int, warmup_steps: int, steps_per_epoch: float
) -> float:
    """The cosine at the begin of the epoch; a warm-up lays over it, and its last value lasts to the epoch's end."""
    epoch = int(step / steps_per_epoch + 1e-9)
    first_step = math.ceil(epoch * steps_per_epoch - 1e-9)
    if epoch == 0 or first_step < warmup_steps:
        reached = step if epoch == 0 else min(step, warmup_steps - 1)
        return min(1.0, config.start + (1 - config.start) * reached / warmup_steps) if warmup_steps else 1.0
    curve = 0.5 * (1 + math.cos(math.pi * epoch * steps_per_epoch / total_steps))
    return config.floor + (1 - config.floor) * curve
