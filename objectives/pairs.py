"""Losses of pairs without a softmax: hinge on triplets, and plain distance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from objectives.step import ObjectiveConfig, Step


class Triplet:
    """Hinge between the right and the wrong similarities of this rank's pairs, summed over both directions and the
    batch (VSE++, arXiv 1707.05612; ZeroVL's Triplet).
    """

    @dataclass
    class Config(ObjectiveConfig):
        name: str = "triplet"
        margin: float = 0.2
        reduce: Literal["max", "mean"] = "max"  # over the negatives of a pair: the hardest, or all of them

    def __init__(self, config: Config) -> None:
        self.config = config

    def __call__(self, step: Step) -> Tensor:
        """The sum (); texts of the same picture are no negatives."""
        image, text = step.images.embed.float(), step.texts.embed.float()
        return self.loss(image[step.batch.image_of_text], text, step.text_id)

    def loss(self, image: Tensor, text: Tensor, pair_id: Tensor) -> Tensor:
        """The sum () over pairs image (T, E), text (T, E); equal pair_id (T,) are the same picture."""
        with torch.autocast(image.device.type, enabled=False):
            similarity = image @ text.T  # (T, T)
        right, is_wrong = similarity.diagonal(), pair_id[:, None] != pair_id[None, :]
        directions = [
            torch.where(is_wrong, (self.config.margin + scores - right[:, None]).clamp_min(0), 0.0)
            for scores in (similarity, similarity.T)
        ]
        if self.config.reduce == "max":
            return sum(hinge.amax(dim=1).sum() for hinge in directions)
        num_wrong = is_wrong.sum(dim=1).clamp_min(1)
        return sum((hinge.sum(dim=1) / num_wrong).sum() for hinge in directions)


class PairDistance:
    """Mean squared difference of the embeddings of a pair (ZeroVL's MSE)."""

    @dataclass
    class Config(ObjectiveConfig):
        reads_embeddings_only: ClassVar[bool] = True
        name: str = "pair_distance"

    def __init__(self, config: Config) -> None:
        self.config = config

    def __call__(self, step: Step) -> Tensor:
        """The mean () over pairs and dimensions."""
        return F.mse_loss(step.images.embed[step.batch.image_of_text].float(), step.texts.embed.float())
