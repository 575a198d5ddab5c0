"""What one training step has encoded: every image and text once, read by all objectives."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

PositiveChoice = Literal["uniform", "probability", "similarity"]

# The originals add this to every sampling probability, so that none is zero.
FLOOR = 1e-5


@dataclass
class ObjectiveConfig:
    """What every objective has: its weight in the sum, and the steps that it takes part in."""

    # Whether embeddings are all that it reads, so that train.accumulate_decoupled can serve it.
    reads_embeddings_only: ClassVar[bool] = False

    weight: float = 1.0
    first_step: int = 0
    every_steps: int = 1

    def __post_init__(self) -> None:
        if self.first_step < 0 or self.every_steps < 1:
            found = f"{self.first_step} and {self.every_steps}"
            raise ValueError(f"first_step must be at least 0 and every_steps at least 1, found {found}")

    def is_due(self, step: int) -> bool:
        """Whether the objective takes part in a step, counted from 0."""
        return step >= self.first_step and (step - self.first_step) % self.every_steps == 0

    @property
    def is_always_due(self) -> bool:
        return self.first_step == 0 and self.every_steps == 1


@dataclass(frozen=True)
class Mix:
    """A step's mixup: every image, or every text, is `share` itself and 1 - share its counterpart in the (micro-)batch.

    Row m meets row M - 1 - m.
    """

    share: float
    is_image: bool

    def __call__(self, rows: Tensor) -> Tensor:
        """rows (n, ...) mixed with themselves in reversed order."""
        return self.share * rows + (1 - self.share) * rows.flip(0)


@dataclass
class Step:
    """images (tokens (M, N, D), embed (M, E)) and texts (packed, embed (T, E)) of one batch, image-major.

    `batch` has image_id (M,), image_of_text (T,) and `masked`; `model` has temperature, project_images, encode_text
    and the heads.
    """

    model: Any
    batch: Any
    images: Any
    texts: Any
    positive_choice: PositiveChoice = "probability"
    mix: Mix | None = None

    @cached_property
    def temperature(self) -> Tensor:
        return self.model.temperature()

    @cached_property
    def image_keys(self) -> list[Any]:
        """Keys and values of all images for every fusion layer, projected once."""
        return self.image_side.keys

    @cached_property
    def image_side(self) -> Any:
        """All images ready to be paired."""
        return self.model.image_side(self.images.tokens)

    @cached_property
    def text_side(self) -> Any:
        """All texts ready to be paired."""
        return self.model.text_side(self.texts)

    @cached_property
    def part_sizes(self) -> list[tuple[int, int]]:
        """Images and texts of every micro-batch."""
        return getattr(self.batch, "part_sizes", None) or [(len(self.images.embed), len(self.texts.embed))]

    @cached_property
    def text_id(self) -> Tensor:
        """image_id of each text's picture: (T,)."""
        return self.batch.image_id[self.batch.image_of_text]

    @cached_property
    def similarity(self) -> Tensor:
        """Similarities over temperature without gradient: (M, T)."""
        with torch.no_grad(), torch.autocast(self.images.embed.device.type, enabled=False):
            return self.images.embed.float() @ self.texts.embed.float().T / self.temperature

    @cached_property
    def positive_text(self) -> Tensor:
        """One caption of each image, drawn as `positive_choice` says: rows in texts, (M,)."""
        own = (
            self.batch.image_of_text[None, :]
            == torch.arange(len(self.batch.image_id), device=self.text_id.device)[:, None]
        )
        weights = positive_text_weights(self.similarity, own, self.positive_choice)
        return torch.multinomial(weights, 1).squeeze(1)


def positive_text_weights(similarity: Tensor, own: Tensor, choice: PositiveChoice) -> Tensor:
    """Sampling weights of each image's own captions, 0 elsewhere: (M, T) for similarity (M, T) and own (M, T) bool.

    `probability` and `similarity` prefer the captions that the model does not rank high yet: the largest value of the
    whole matrix minus the caption's own, of softmax probabilities or of raw similarities (CCRK's neg_sample_type 1
    and 2).
    """
    if choice == "uniform":
        return own.float()
    value = similarity if choice == "similarity" else similarity.softmax(dim=1) + FLOOR
    return (value.max() + FLOOR - value) * own
