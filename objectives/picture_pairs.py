"""Pre-training for statements about two pictures (X-VLM's "text assignment", CCLM's NLVR domain pre-training): a text
comes with two pictures, and the model says whether it describes the first, the second, or neither.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from objectives.step import ObjectiveConfig, Step

FIRST, SECOND, NEITHER = range(3)


@dataclass
class Pairs:
    """images (2, T): rows of the first and of the second picture of every text; label (T,)."""

    images: Tensor
    label: Tensor


def pair_weights(embed: Tensor, temperature: float) -> Tensor:
    """Unnormalised weights of drawing picture k beside picture m, by their likeness: (M, M), 0 on the diagonal.

    embed (M, E) are unit vectors.
    """
    embed = embed.detach().float()
    with torch.autocast(embed.device.type, enabled=False):
        return (embed @ embed.T / temperature).softmax(dim=1).fill_diagonal_(0)


def arrange(label: Tensor, own: Tensor, drawn: Tensor) -> Pairs:
    """The pictures that labels (T,) ask for: own (T,) and the first of drawn (T, 2), that one and own, or both drawn
    ones.
    """
    first = torch.where(label == FIRST, own, drawn[:, 0])
    second = torch.where(label == NEITHER, drawn[:, 1], torch.where(label == FIRST, drawn[:, 0], own))
    return Pairs(torch.stack([first, second]), label)


def draw_pairs(weights: Tensor) -> Pairs:
    """Pairs for the texts of M >= 3 pictures, one each; every label has probability 1/3, all draws in one call."""
    own = torch.arange(len(weights), device=weights.device)
    label = torch.randint(3, (len(weights),), device=weights.device)
    # Weights of very unlike pictures may underflow, and two have to be drawn.
    least = torch.finfo(weights.dtype).tiny
    drawable = weights.nan_to_num(nan=1.0, posinf=1.0).clamp_min(least).fill_diagonal_(0)
    return arrange(label, own, torch.multinomial(drawable, 2))


class PicturePairs:
    """Three-way cross-entropy of the model's `class_logits`; images are compared by their projection, which gets no
    gradient.
    """

    @dataclass
    class Config(ObjectiveConfig):
        name: str = "picture_pairs"
        temperature: float = 0.07

    def __init__(self, config: Config) -> None:
        self.config = config

    def __call__(self, step: Step) -> Tensor:
        """The mean over texts (); nothing from a batch of fewer than three pictures, which has no two others."""
        weights = pair_weights(step.images.embed, self.config.temperature)
        if len(weights) < 3:
            own = torch.arange(len(weights), device=weights.device)
            return pair_loss(step, Pairs(torch.stack([own, own]), torch.zeros_like(own))) * 0
        return pair_loss(step, draw_pairs(weights))


def pair_loss(step: Step, pairs: Pairs) -> Tensor:
    """Mean cross-entropy () of the first text of every picture with its pair."""
    # Pictures that are drawn on an accelerator are known to it alone: select gives those texts one length.
    texts = step.texts.select(torch.arange(len(pairs.label), device=pairs.label.device))
    return F.cross_entropy(step.model.class_logits(texts, step.image_keys, pairs.images), pairs.label)
