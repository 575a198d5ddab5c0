"""Image-text matching: does this text belong to this image, with hard negatives drawn by similarity."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from objectives.step import FLOOR, ObjectiveConfig, PositiveChoice, Step


@dataclass
class NegativeWeights:
    """Unnormalised sampling weights: of an image for each text, (M, M); of a text for each image, (M, T)."""

    image: Tensor
    text: Tensor


def negative_weights(similarity: Tensor, positive_text: Tensor, image_id: Tensor, text_id: Tensor) -> NegativeWeights:
    """Weights by softmax probability; texts and images of the same picture get 0.

    similarity (M, T) is already divided by the temperature; row b of the image weights belongs to text
    positive_text[b].
    """
    text = (similarity.softmax(dim=1) + FLOOR).masked_fill(image_id[:, None] == text_id[None, :], 0)
    to_images = similarity[:, positive_text].T  # (M, M) text by image
    image = (to_images.softmax(dim=1) + FLOOR).masked_fill(text_id[positive_text][:, None] == image_id[None, :], 0)
    return NegativeWeights(image, text)


def draw(weights: Tensor) -> tuple[Tensor, Tensor]:
    """One column per row in a single batched draw, and which rows have any candidate: (M,), (M,) bool."""
    has_candidate = weights.sum(dim=1) > 0
    safe = torch.where(has_candidate[:, None], weights, torch.ones_like(weights))
    return torch.multinomial(safe, 1).squeeze(1), has_candidate


class HardNegativeMatching:
    """One positive and two hard negatives per image through the fusion stack (CCLM's ITM, CCRK's MITM).

    Pairs in the order [(image, its text); (negative image, text); (image, negative text)], labels 1, 0, 0. An image
    without any negative in the batch (all rows show the same picture) contributes its positive pair alone.
    """

    @dataclass
    class Config(ObjectiveConfig):
        name: str = "itm"
        # How the one caption of a picture is drawn that matching and masked language modelling see.
        positive_text: PositiveChoice = "probability"

    def __init__(self, config: Config) -> None:
        self.config = config

    def __call__(self, step: Step) -> Tensor:
        """Cross-entropy over all pairs ()."""
        weights = negative_weights(step.similarity, step.positive_text, step.batch.image_id, step.text_id)
        negative_image, has_image = draw(weights.image)
        negative_text, has_text = draw(weights.text)
        logits = match_logits(step, step.positive_text, negative_image, negative_text)
        return match_loss(logits, torch.cat([torch.ones_like(has_image), has_image, has_text]))


def match_logits(step: Step, positive_text: Tensor, negative_image: Tensor, negative_text: Tensor) -> Tensor:
    """Logits of the three kinds of pairs, (3M, 2); all of them pass the fusion stack in one batch."""
    own = torch.arange(len(positive_text), device=positive_text.device)
    texts = step.texts.select(torch.cat([positive_text, positive_text, negative_text]))
    return step.model.match_logits(texts, step.image_keys, torch.cat([own, negative_image, own]))


def match_loss(logits: Tensor, is_counted: Tensor) -> Tensor:
    """Mean cross-entropy over the counted of (3M,) pairs, the first third of which match."""
    label = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
    label[: len(logits) // 3] = 1
    return (F.cross_entropy(logits, label, reduction="none") * is_counted).sum() / is_counted.sum()
