"""Contrastive objectives: image-text (ITC) and one image against all its K captions (1-to-K)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from objectives.chunked_contrastive import Positives, contrastive_losses
from objectives.step import ObjectiveConfig, Step
from utils.distributed import gather_rows, world_size

Gather = Literal["exact", "local_slice", "none"]


def gathered_contrastive_losses(
    image: Tensor,
    text: Tensor,
    temperature: Tensor,
    image_id: Tensor,
    text_id: Tensor,
    *,
    gather: Gather,
    is_mean: bool = True,
    is_exclusive: bool = False,
) -> tuple[Tensor, Tensor]:
    """Image-to-text and text-to-image losses over the batch of all ranks; image (M, E), text (T, E) are this rank's
    unit vectors.

    gather `exact`: each rank computes the rows of its own images, and the mean of gradients over ranks is the
    gradient of the whole batch. `local_slice`: each rank computes everything and keeps only the gradient of its own
    vectors, as the originals do: after averaging, 1/R of the true gradient for everything but the temperature.
    `none`: this rank's batch alone.
    """
    options = {"is_mean": is_mean, "is_exclusive": is_exclusive}
    if gather == "none" or world_size() == 1:
        return contrastive_losses(image, text, temperature, Positives(image_id, text_id, **options))
    all_text, all_text_id = gather_rows(text, gather), gather_rows(text_id, "none")
    if gather == "exact":
        return contrastive_losses(
            image, all_text, temperature, Positives(image_id, all_text_id, **options), is_sharded=True
        )
    all_image, all_image_id = gather_rows(image, gather), gather_rows(image_id, "none")
    return contrastive_losses(all_image, all_text, temperature, Positives(all_image_id, all_text_id, **options))


class Contrastive:
    """Image-text contrastive loss; every text of the same picture is right, and right answers share the target (CCLM,
    CCRK eq. ITC).
    """

    @dataclass
    class Config(ObjectiveConfig):
        name: str = "itc"
        gather: Gather = "exact"

    def __init__(self, config: Config) -> None:
        self.config = config

    def __call__(self, step: Step) -> Tensor:
        """Mean of both directions."""
        sides = gathered_contrastive_losses(
            step.images.embed,
            step.texts.embed,
            step.temperature,
            step.batch.image_id,
            step.text_id,
            gather=self.config.gather,
        )
        return sum(sides) / 2


class OneToK:
    """Every image against all its K captions at once (CCRK, arXiv 2406.18254).

    (L_i2t + L_t2i) / 2 / divisor. L_i2t sums over the K captions of an image; `divisor` 0 stands for the mean number
    of captions per image, a negative one for no division (the original's need_divm). With `is_exclusive` the other
    captions of the picture leave the denominator, so that K right answers do not push each other away.
    """

    @dataclass
    class Config(ObjectiveConfig):
        name: str = "one_to_k"
        gather: Gather = "exact"
        divisor: float = 0.0
        is_exclusive: bool = False

    def __init__(self, config: Config) -> None:
        self.config = config

    def __call__(self, step: Step) -> Tensor:
        """The loss (); texts need not have the same number of captions per image."""
        image_to_text, text_to_image = gathered_contrastive_losses(
            step.images.embed,
            step.texts.embed,
            step.temperature,
            step.batch.image_id,
            step.text_id,
            gather=self.config.gather,
            is_mean=False,
            is_exclusive=self.config.is_exclusive,
        )
        divisor = self.config.divisor
        if divisor == 0:
            divisor = len(step.text_id) / len(step.batch.image_id)
        return (image_to_text + text_to_image) / 2 / (divisor if divisor > 0 else 1)


def vicreg_statistics(image: Tensor, text: Tensor, captions: int) -> dict[str, Tensor]:
    """Invariance, variance and covariance of the embeddings (VICReg, arXiv 2105.04906), for the log only; never part
    of a loss.

    image (M, E), text (M * captions, E) image-major.
    """
    spread = sum(torch.relu(1 - (side.var(dim=0) + 1e-4).sqrt()).mean() for side in (image, text))
    return {
        "loss_invariance": (image.repeat_interleave(captions, dim=0) - text).square().mean(),
        "loss_variance": spread,
        "loss_covariance": _off_diagonal_covariance(image) + _off_diagonal_covariance(text),
    }


def _off_diagonal_covariance(x: Tensor) -> Tensor:
    centred = x - x.mean(dim=0)
    covariance = centred.T @ centred / (len(x) - 1)  # (E, E)
    return (covariance.square().sum() - covariance.diagonal().square().sum()) / x.shape[1]
