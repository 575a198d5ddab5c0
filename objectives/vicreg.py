"""How far embeddings of a picture and its texts are apart, and whether they use all of their dimensions (VICReg)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from objectives.step import ObjectiveConfig, Step

EPSILON = 1e-4  # under the root of the variance


class VICReg:
    """Weighted sum of invariance, variance and covariance over this process's batch (arXiv 2105.04906, eq. 6).

    With `weight: 0` the three are only logged, as CCRK's --vicreg does.
    """

    @dataclass
    class Config(ObjectiveConfig):
        reads_embeddings_only: ClassVar[bool] = True
        name: str = "vicreg"
        invariance: float = 25.0
        variance: float = 25.0
        covariance: float = 1.0

    def __init__(self, config: Config) -> None:
        self.config = config

    def __call__(self, step: Step) -> Tensor:
        """The sum ()."""
        terms = self.terms(step)
        return sum(getattr(self.config, name) * value for name, value in terms.items())

    def terms(self, step: Step) -> dict[str, Tensor]:
        """The three terms () of embeddings (M, E) and (T, E); in the first every text meets its own picture."""
        image, text = step.images.embed.float(), step.texts.embed.float()
        sides = (image, text)
        return {
            "invariance": (image[step.batch.image_of_text] - text).square().mean(),
            "variance": sum(torch.relu(1 - (side.var(dim=0) + EPSILON).sqrt()).mean() for side in sides),
            "covariance": sum(off_diagonal_covariance(side) for side in sides),
        }

    @torch.no_grad()
    def statistics(self, step: Step) -> dict[str, Tensor]:
        """For the log: the three terms without their weights."""
        return self.terms(step)


def off_diagonal_covariance(rows: Tensor) -> Tensor:
    """Sum () of the squared covariances between different dimensions of rows (n, E), over E."""
    centred = rows - rows.mean(dim=0)
    with torch.autocast(rows.device.type, enabled=False):
        covariance = centred.T @ centred / (len(rows) - 1)  # (E, E)
    return (covariance.square().sum() - covariance.diagonal().square().sum()) / rows.shape[1]
