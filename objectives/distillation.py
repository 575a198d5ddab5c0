"""Distillation from a teacher of one's own: R2D2's target-guided and feature-guided distillation (arXiv 2205.03860).

The program was never published. In the docstrings [P] is what public descriptions of the paper say, [R] a recollection
of its text that could not be checked, [D] our decision where the sources are silent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from objectives.queue import EmbeddingQueue
from objectives.step import ObjectiveConfig, StatefulObjective, Step
from utils.distributed import all_reduce_sum, gather_rows, row_counts, world_size

# Added to the logits of empty places: far below any similarity over a temperature, yet 0 times it is 0.
ABSENT = -1e5


@dataclass
class Columns:
    """What a row is compared with: image (C, E) and text (C, E) unit vectors, image_id (C,), weight (C,) of every
    column in the loss, is_present (C,) bool.
    """

    image: Tensor
    text: Tensor
    image_id: Tensor
    weight: Tensor
    is_present: Tensor


def columns_of(
    image: Tensor, text: Tensor, image_id: Tensor, queue: EmbeddingQueue, *, decay: float, matches_queue: bool
) -> Columns:
    """The teacher's vectors (n, E) of the batch of all ranks, weight 1 each, and behind them the queue.

    matches_queue: an entry of a row's picture is a further right answer; else the queue holds wrong ones only.
    """
    queue_id = queue.image_id if matches_queue else torch.full_like(queue.image_id, -1)
    ones = torch.ones(len(image), dtype=queue.image.dtype, device=image.device)
    return Columns(
        image=torch.cat([image, queue.image]),
        text=torch.cat([text, queue.text]),
        image_id=torch.cat([image_id, queue_id.where(queue.is_filled, -1)]),
        weight=torch.cat([ones, queue.weight(decay)]),
        is_present=torch.cat([ones > 0, queue.is_filled]),
    )


def soft_targets(
    rows: Tensor, row_id: Tensor, columns: Tensor, described: Columns, temperature: Tensor, alpha: Tensor | float
) -> Tensor:
    """alpha teacher's softmax + (1 - alpha) right answers, which share a weight of 1: (n, C), without gradient.

    rows (n, E) and columns (C, E) are the teacher's.
    """
    with torch.no_grad():
        offset = (~described.is_present).to(rows.dtype) * ABSENT
        target = torch.addmm(offset, rows / temperature, columns.T).softmax(dim=1)  # (n, C)
        right = (row_id[:, None] == described.image_id[None, :]).to(rows.dtype)
        return target * alpha + right * ((1 - alpha) / right.sum(dim=1, keepdim=True))


def weighted_cross_entropy(
    rows: Tensor, columns: Tensor, described: Columns, temperature: Tensor, target: Tensor
) -> Tensor:
    """- sum over columns j of weight_j target_j log softmax(rows columns^T / temperature)_j: (n,).

    That the weights stand inside of the sum is our reading of "weighted cross-entropy" [R].
    """
    offset = (~described.is_present).to(rows.dtype) * ABSENT
    logits = torch.addmm(offset, rows / temperature, columns.T)  # (n, C)
    weighted = target * described.weight
    return weighted.sum(dim=1) * logits.logsumexp(dim=1) - (weighted * logits).sum(dim=1)


def target_guided_losses(
    image: Tensor,
    text: Tensor,
    teacher_image: Tensor,
    teacher_text: Tensor,
    image_id: Tensor,
    columns: Columns,
    *,
    temperature: Tensor,
    alpha: Tensor | float,
) -> Tensor:
    """Mean over both directions of every pair's weighted cross-entropy: (n,).

    image, text (n, E) are the student's pairs, teacher_image and teacher_text (n, E) the teacher's. The teacher uses
    the student's temperature [D], which gets a gradient through the student alone.
    """
    sides = ((image, teacher_image, columns.text), (text, teacher_text, columns.image))
    losses = []
    for student, teacher, candidates in sides:
        target = soft_targets(teacher, image_id, candidates, columns, temperature, alpha)
        losses.append(weighted_cross_entropy(student, candidates, columns, temperature, target))
    return (losses[0] + losses[1]) / 2


def feature_guided_losses(
    student: Tensor, teacher: Tensor, centre: Tensor, *, student_temperature: float, teacher_temperature: float
) -> Tensor:
    """- sum_k P_t log P_s of every text, (n,): P_t = softmax((teacher - centre) / teacher_temperature), P_s =
    softmax(student / student_temperature); student and teacher (n, D), centre (D,).
    """
    target = ((teacher - centre) / teacher_temperature).softmax(dim=1)
    return -(target * (student / student_temperature).log_softmax(dim=1)).sum(dim=1)


class TargetGuidedDistillation(StatefulObjective):
    """Contrastive loss against the teacher's vectors of the batch and of recent iterations, with targets softened by
    the teacher (R2D2's global contrastive pre-ranking with TgD) [P, R].
    """

    @dataclass
    class Config(ObjectiveConfig):
        reads_teacher: ClassVar[bool] = True
        name: str = "tgd"
        queue_size: int = 36864  # [R]
        decay: float = 0.99  # of an entry's weight by iteration [R]; the batch itself counts 1 [D]
        alpha: float = 0.4  # the teacher's share of the target [R: the method that this one builds on]
        ramp_epochs: float = 1.0  # over which alpha rises from 0 [R: likewise]
        # Whether an entry of the queue that shows a row's picture is right, too; described are negatives [D].
        matches_queue: bool = False

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.queue_size < 0 or self.ramp_epochs < 0:
                found = f"{self.queue_size} and {self.ramp_epochs}"
                raise ValueError(f"queue_size and ramp_epochs must not be negative, found {found}")
            if not 0 < self.decay <= 1 or not 0 <= self.alpha <= 1:
                raise ValueError(f"decay must be in (0, 1] and alpha in [0, 1], found {self.decay} and {self.alpha}")

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.ramp_steps = 0.0
        self.register_buffer("num_steps", torch.zeros((), dtype=torch.int64))
        self._waiting: list[tuple[Tensor, Tensor, Tensor]] = []

    def prepare(self, model: Any) -> None:
        self.queue = EmbeddingQueue(self.config.queue_size, model.config.embed_dim)

    def before_training(self, steps_per_epoch: float) -> None:
        self.ramp_steps = self.config.ramp_epochs * steps_per_epoch

    @property
    def alpha(self) -> Tensor:
        """The teacher's share () at this step."""
        rise = self.num_steps / self.ramp_steps if self.ramp_steps else torch.ones_like(self.num_steps)
        return self.config.alpha * rise.clamp(max=1)

    def forward(self, step: Step) -> Tensor:
        """The mean over the pairs of all ranks; this rank's share of it times the number of ranks."""
        image, text, teacher = step.images.embed, step.texts.embed, step.teacher
        if len(image) != len(text):
            raise ValueError(f"objectives.tgd needs one text per image, found {len(text)} of {len(image)} images")
        counts = row_counts(len(image))
        pairs = [gather_rows(rows, "none", counts) for rows in (teacher.image, teacher.text, step.image_id)]
        self._waiting.append(tuple(pairs))
        with torch.autocast(image.device.type, enabled=False):
            columns = columns_of(*pairs, self.queue, decay=self.config.decay, matches_queue=self.config.matches_queue)
            losses = target_guided_losses(
                *(image, text, teacher.image, teacher.text, step.image_id, columns),
                temperature=step.temperature,
                alpha=self.alpha,
            )
        return losses.sum() * (world_size() / sum(counts))

    def after_step(self) -> None:
        """Put the step's pairs into the queue, after the loss: they meet later batches only."""
        for pairs in self._waiting:
            self.queue.put(*pairs)
        self._waiting.clear()
        self.num_steps += 1


class FeatureGuidedDistillation(StatefulObjective):
    """The student's text vector, of the masked text, learns the teacher's of the complete one (R2D2's FgD) [P, R].

    mu, which is taken from the teacher's vectors, is a running mean of theirs over the batches of all ranks. For
    images there is nothing to learn while their tower is frozen.
    """

    @dataclass
    class Config(ObjectiveConfig):
        reads_teacher: ClassVar[bool] = True
        name: str = "fgd"
        # The values of all three are unknown: those of self-distillation with a centred teacher [D].
        student_temperature: float = 0.1
        teacher_temperature: float = 0.04
        centre_momentum: float = 0.9
        # What is compared: the text tower's vector before its projection, or the unit vector behind it [D].
        compares: Literal["pooled", "embed"] = "pooled"

        def __post_init__(self) -> None:
            super().__post_init__()
            if min(self.student_temperature, self.teacher_temperature) <= 0 or not 0 <= self.centre_momentum < 1:
                raise ValueError(
                    "temperatures must be above 0 and centre_momentum in [0, 1); found "
                    f"{self.student_temperature}, {self.teacher_temperature} and {self.centre_momentum}"
                )

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._waiting: list[Tensor] = []

    def prepare(self, model: Any) -> None:
        width = model.text_encoder.width if self.config.compares == "pooled" else model.config.embed_dim
        self.register_buffer("centre", torch.zeros(width))

    def forward(self, step: Step) -> Tensor:
        """The mean over the texts of all ranks; this rank's share of it times the number of ranks."""
        if self.config.compares == "pooled":
            student, teacher = step.pooled_texts, step.teacher.pooled_text
        else:
            student, teacher = step.texts.embed, step.teacher.text
        with torch.autocast(student.device.type, enabled=False):
            student, teacher = (x.to(torch.promote_types(x.dtype, torch.float32)) for x in (student, teacher))
            own = torch.cat([teacher.sum(dim=0), teacher.new_full((1,), len(teacher))])
            total = all_reduce_sum(own)  # the sum of all ranks' vectors, and their number
            self._waiting.append(total[:-1] / total[-1])
            losses = feature_guided_losses(
                student,
                teacher,
                self.centre,
                student_temperature=self.config.student_temperature,
                teacher_temperature=self.config.teacher_temperature,
            )
            return losses.sum() * (world_size() / total[-1])

    def after_step(self) -> None:
        """mu <- momentum mu + (1 - momentum) mean, once for every batch of the step."""
        for mean in self._waiting:
            self.centre.lerp_(mean.to(self.centre.dtype), 1 - self.config.centre_momentum)
        self._waiting.clear()
