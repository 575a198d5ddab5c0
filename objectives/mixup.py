"""Coin-flip mixup around any contrastive objective: each step mixes either all images or all texts (ZeroVL)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from objectives import OBJECTIVES
from objectives.step import Mix, ObjectiveConfig, ReportsStatistics, Step


class CoinFlipMixup:
    """share L(right partners) + (1 - share) L(partners of the mirror image), where L is the inner objective (arXiv
    2112.09331, section 3.3).

    Pixels are mixed after normalisation, texts between projection and norm, each with the (micro-)batch in reversed
    order. share ~ Beta(beta, beta) and the coin are functions of the step alone, equal on all ranks.
    """

    @dataclass
    class Config(ObjectiveConfig):
        reads_embeddings_only: ClassVar[bool] = True
        objective: Annotated[Any, OBJECTIVES] = None
        name: str = "mixup"
        beta: float = 0.1
        seed: int = 2021  # of the published sequence of draws

        def __post_init__(self) -> None:
            super().__post_init__()
            if not getattr(self.objective, "reads_embeddings_only", False) or isinstance(self.objective, type(self)):
                found = getattr(self.objective, "name", "none")
                raise ValueError(f"mixup needs `objective`, a contrastive one (nce, itc, one_to_k); found {found}")
            if self.beta <= 0 or self.seed < 0:
                raise ValueError(f"beta must be above 0 and seed not negative, found {self.beta} and {self.seed}")

    def __init__(self, config: Config) -> None:
        self.config = config
        self.objective = OBJECTIVES.load(config.objective.name)(config.objective)
        self._position, self._draws = 0, np.random.RandomState(config.seed)

    def draw(self, step: int) -> Mix:
        """What is mixed at a step: the draw of that number in the sequence of the seed."""
        if step < self._position:
            self._position, self._draws = 0, np.random.RandomState(self.config.seed)
        while True:  # beta draws take an unknown number of random bits, so a later draw needs all before it
            mix = Mix(float(self._draws.beta(self.config.beta, self.config.beta)), bool(self._draws.uniform() > 0.5))
            self._position += 1
            if self._position > step:
                return mix

    def __call__(self, step: Step) -> Tensor:
        """The loss (); the inner one where the step mixed nothing."""
        image_id, text_id = self.objective.ids(step)
        if step.mix is None:
            return self.objective.loss(step, image_id, text_id)
        mirrored = [image_id, text_id]
        side = 0 if step.mix.is_image else 1
        mirrored[side] = mirrored[side][_mirror(step, side)]
        both = [torch.stack(pair, dim=1) for pair in zip((image_id, text_id), mirrored)]  # (M, 2), (T, 2)
        return self.objective.loss(step, *both, (step.mix.share, 1 - step.mix.share))

    def statistics(self, step: Step) -> dict[str, Tensor]:
        """The inner objective's numbers () for the log; with the unmixed partners as right ones, as the original's."""
        return self.objective.statistics(step) if isinstance(self.objective, ReportsStatistics) else {}


def _mirror(step: Step, side: int) -> Tensor:
    """The row that each row met: images (side 0) or texts (side 1) in reversed order within every micro-batch."""
    rows, start = [], 0
    for sizes in step.part_sizes:
        rows.append(torch.arange(start + sizes[side] - 1, start - 1, -1))
        start += sizes[side]
    return torch.cat(rows).to(step.text_id.device)
