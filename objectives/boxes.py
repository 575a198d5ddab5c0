"""Where in the image is what a text describes: box regression with L1 and generalised IoU.

Boxes (R, 4) are centre x, centre y, width, height in [0, 1] unless a name says corners (x1, y1, x2, y2). Letter: R
regions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from objectives.step import ObjectiveConfig, RegionStep

# A union or hull without area divides by this instead of by zero; it adds nothing to one that has area.
TINY = 1e-12


def to_corners(boxes: Tensor) -> Tensor:
    """(R, 4) centre and size as (x1, y1, x2, y2)."""
    centre, size = boxes[..., :2], boxes[..., 2:]
    return torch.cat([centre - size / 2, centre + size / 2], dim=-1)


def generalised_iou(first: Tensor, second: Tensor) -> Tensor:
    """Generalised intersection over union (arXiv 1902.09630) of corner boxes (..., 4) that broadcast: (...)."""
    low, high = torch.maximum(first[..., :2], second[..., :2]), torch.minimum(first[..., 2:], second[..., 2:])
    overlap = (high - low).clamp_min(0).prod(dim=-1)
    union = _area(first) + _area(second) - overlap
    outer_low, outer_high = (
        torch.minimum(first[..., :2], second[..., :2]),
        torch.maximum(first[..., 2:], second[..., 2:]),
    )
    hull = (outer_high - outer_low).clamp_min(0).prod(dim=-1)
    return overlap / union.clamp_min(TINY) - (hull - union) / hull.clamp_min(TINY)


def _area(corners: Tensor) -> Tensor:
    return (corners[..., 2:] - corners[..., :2]).prod(dim=-1)


def box_losses(predicted: Tensor, target: Tensor, is_counted: Tensor) -> tuple[Tensor, Tensor]:
    """L1 loss (summed over the four numbers) and GIoU loss, means over the counted rows; 0 if there are none.

    predicted and target (R, 4), is_counted (R,) bool. A box of negative size anywhere takes the GIoU loss out of the
    whole batch, as in the original.
    """
    num_counted = is_counted.sum().clamp_min(1)
    distance = ((predicted - target).abs().sum(dim=1) * is_counted).sum() / num_counted
    first, second = to_corners(predicted), to_corners(target)
    both = torch.cat([first, second])
    is_proper = (both[:, 2:] >= both[:, :2]).all()
    giou = torch.where(is_counted & is_proper, 1 - generalised_iou(first, second), 0.0)
    return distance, giou.sum() / num_counted


class BoxPrediction:
    """The region of each text in its whole image, from the fused first token (X-VLM's and CCLM's box loss)."""

    @dataclass
    class Config(ObjectiveConfig):
        name: str = "bbox"
        counts_images: bool = (
            False  # whether captions of whole images, whose box is known, count (calc_image_bbox_loss)
        )

    def __init__(self, config: Config) -> None:
        self.config = config

    def __call__(self, step: RegionStep) -> Tensor:
        """L1 plus GIoU loss ()."""
        regions = step.batch.regions
        is_counted = torch.ones_like(regions.is_image) if self.config.counts_images else ~regions.is_image
        return sum(box_losses(predict_boxes(step), regions.target_box, is_counted))


def predict_boxes(step: RegionStep) -> Tensor:
    """Boxes (R, 4) of the step's texts, which read the whole images."""
    rows = step.positive_text  # on an accelerator this packs the texts so that the host need not know who meets whom
    return step.model.predict_boxes(step.texts.select(rows), step.full_keys, step.batch.regions.image_of_region)
