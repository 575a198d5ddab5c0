"""A teacher of another run: images follow those of a given model, in its own space (Chinese-CLIP)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from objectives.step import ObjectiveConfig, Step
from utils.distributed import Gradient, all_reduce_sum, gather_rows, world_size


def distillation_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """1 - cosine of every row (M,), for student (M, E) and teacher (M, E'), whose lengths do not matter.

    A student of another width is stretched linearly along its dimensions, as the original stretches it as a picture.
    """
    if student.shape[1] != teacher.shape[1]:
        student = F.interpolate(student[:, None], size=teacher.shape[1], mode="linear", align_corners=False)[:, 0]
    return 1 - F.cosine_similarity(teacher, student, dim=1)


class ImageDistillation:
    """Mean of 1 - cosine between the images of the model and of a teacher, over the batch of all ranks."""

    @dataclass
    class Config(ObjectiveConfig):
        reads_embeddings_only: ClassVar[bool] = True
        name: str = "distill_images"
        weight: float = 0.5
        teacher: str = ""  # a checkpoint of any system
        teacher_config: str = ""  # its configuration where the checkpoint does not tell it
        # `exact`: gradients whose mean over ranks is that of the whole batch; `local_slice`: 1 / R of them, as in the
        # original; `none`: the mean over this rank's own rows.
        gather: Gradient = "exact"

        def __post_init__(self) -> None:
            super().__post_init__()
            if not self.teacher:
                raise ValueError("teacher is empty; name a checkpoint of any system")

    def __init__(self, config: Config) -> None:
        self.config = config

    def __call__(self, step: Step) -> Tensor:
        """The loss ()."""
        if step.teacher_embed is None:
            raise ValueError(
                "objectives.distill_images has no teacher's embeddings; load objectives.distill_images.teacher first"
            )
        student, teacher = step.images.embed.float(), step.teacher_embed.detach().float()
        with torch.autocast(student.device.type, enabled=False):
            if self.config.gather == "none" or world_size() == 1:
                return distillation_loss(student, teacher).mean()
            if self.config.gather == "local_slice":
                student, teacher = gather_rows(student, "local_slice"), gather_rows(teacher, "none")
                return distillation_loss(student, teacher).mean()
            num_rows = all_reduce_sum(student.new_tensor(float(len(student))))
            return distillation_loss(student, teacher).sum() * world_size() / num_rows
