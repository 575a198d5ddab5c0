"""What one training step has encoded: every image and text once, read by all objectives.

`Step` is a batch of images with captions; its kinds below are the other batches of CCLM, in which regions or texts
take the place of images. Letters as in style, and R regions.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from utils.distributed import rank

# `first`: of two captions per image (CCLM's sample_2_captions) the second meets the contrastive losses only.
PositiveChoice = Literal["uniform", "probability", "similarity", "first"]

# The originals add this to every sampling probability, so that none is zero.
FLOOR = 1e-5


@dataclass
class ObjectiveConfig:
    """What every objective has: its weight in the sum, and the steps that it takes part in."""

    # Whether embeddings are all that it reads, so that train.accumulate_decoupled can serve it.
    reads_embeddings_only: ClassVar[bool] = False
    # Whether it compares with what an averaged copy of the model makes of the batch.
    reads_teacher: ClassVar[bool] = False

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


class StatefulObjective(nn.Module):
    """An objective with something that must survive a resume: buffers, the same on all ranks."""

    is_replicated = True

    def __init__(self, config: ObjectiveConfig) -> None:
        super().__init__()
        self.config = config

    def prepare(self, model: Any) -> None:
        """Make the buffers whose sizes are the model's."""

    def before_training(self, steps_per_epoch: float) -> None:
        """Called once before the first step, and before a checkpoint is read."""

    def after_step(self) -> None:
        """Called after every step, when the weights have changed."""


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
    teacher: Any = None  # what a teacher makes of the batch: image (M, E), text (T, E), pooled_text (T, D)
    reads_masked: bool = False  # the texts were encoded with their masks: one pass serves all objectives
    teacher_embed: Tensor | None = None  # the images' (M, E') by a teacher
    encoded_masked: Any = None  # the masked texts, a row per image, where they went through the tower with the others
    ignored: Tensor | None = None  # (M,) bool: images that, with their texts, only fill the batch; read by `nce`
    can_share_rows: ClassVar[bool] = True  # whether other ranks can use its images and texts as they are

    @cached_property
    def temperature(self) -> Tensor:
        with torch.enable_grad():  # whoever reads it first, without gradients maybe, reads it for all
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
    def image_id(self) -> Tensor:
        """Equal numbers are the same picture, over all processes: (M,)."""
        return self.batch.image_id

    @cached_property
    def text_id(self) -> Tensor:
        """image_id of each text's picture: (T,)."""
        return self.image_id[self.batch.image_of_text]

    @cached_property
    def pooled_texts(self) -> Tensor:
        """One vector per text before its projection: (T, D)."""
        return self.model.text_encoder.pool(self.texts)

    def fused_positives(self, keys: list[Any] | None = None) -> Any:
        """Every image's own masked text after the fusion stack, where the texts were encoded with their masks: `first`
        (M, D) tells whether the pair matches, `tokens` (Q, D) what the masked words `target` (Q,) are.

        The stack runs once; keys: those of the step's images, if they are known, others may follow.
        """
        if "_fused" not in self.__dict__:
            chosen = self.positive_text
            masked, keys = self.masked.select(chosen), self.image_keys if keys is None else keys
            texts = self.texts.select(chosen)
            self.__dict__["_fused"] = self.model.fuse_masked(texts, keys, masked.positions, masked.targets)
        return self.__dict__["_fused"]

    @property
    def masked(self) -> Any:
        """Masked texts, a row per text that `positive_text` can name."""
        return self.batch.masked

    @property
    def masked_packing(self) -> Any:
        """How the masked texts are packed."""
        return self.texts.packing

    def masked_texts(self, ids: Tensor, chosen: Tensor) -> Any:
        """Masked texts ids (M, L), the rows `chosen` (M,) of `masked`, after the text tower."""
        if self.encoded_masked is not None:
            return self.encoded_masked
        return self.model.encode_masked(ids, self.masked_packing, chosen)

    @property
    def masked_keys(self) -> list[Any] | None:
        """What the masked texts read, one set of keys per image; None: nothing but themselves."""
        return self.image_keys

    @property
    def text_embeds(self) -> list[Tensor]:
        """Embeddings (T, E) that meet the images one after the other."""
        return [self.texts.embed]

    @property
    def text_pairs(self) -> Step:
        """The step in which texts meet texts that say the same."""
        raise ValueError(
            "objectives.ttc and ttm compare texts that say the same; this batch has none: it needs parallel texts, "
            "or two captions per image and objectives.itm.positive_text 'first'"
        )

    @cached_property
    def similarity(self) -> Tensor:
        """Similarities over temperature without gradient: (M, T)."""
        with torch.no_grad(), torch.autocast(self.images.embed.device.type, enabled=False):
            return self.images.embed.float() @ self.texts.embed.float().T / self.temperature

    @cached_property
    def positive_text(self) -> Tensor:
        """One caption of each image, drawn as `positive_choice` says: rows in texts, (M,)."""
        own = self.batch.image_of_text[None, :] == torch.arange(len(self.image_id), device=self.text_id.device)[:, None]
        weights = positive_text_weights(self.similarity, own, self.positive_choice)
        # Of broken weights any: their loss is not finite either, and the step will be skipped.
        return torch.multinomial(weights.nan_to_num(nan=1.0, posinf=1.0), 1).squeeze(1)


@dataclass
class PairedStep(Step):
    """Row t of both sides belongs together, and to rows of the same `row_id` (T,) where something knows it."""

    row_id: Tensor | None = None

    @cached_property
    def image_id(self) -> Tensor:
        if self.row_id is not None:
            return self.row_id
        number = torch.arange(len(self.texts.embed), device=self.texts.embed.device)
        return number + (rank() << 32)  # other processes' rows are other rows

    @property
    def text_id(self) -> Tensor:
        return self.image_id

    @cached_property
    def positive_text(self) -> Tensor:
        return torch.arange(len(self.image_id), device=self.image_id.device)


@dataclass
class TwoCaptionStep(PairedStep):
    """Two captions per image: `texts`, the first ones, which all objectives read, and `second`.

    `captions` (M,) are the rows of the first ones in the batch.
    """

    second: Any = None
    captions: Tensor | None = None

    @cached_property
    def masked(self) -> Any:
        return self.batch.masked.select(self.captions)

    @property
    def text_embeds(self) -> list[Tensor]:
        return [self.texts.embed, self.second.embed]

    @cached_property
    def text_pairs(self) -> Step:
        pairs = PairedStep(self.model, self.batch, self.texts, self.second, row_id=self.row_id)
        pairs.temperature = self.temperature  # clamping it a second time would spoil what the first loss has saved
        return pairs


@dataclass
class RegionStep(PairedStep):
    """Regions with their texts; `images` has tokens and embed of regions, and `full` tokens of the whole images."""

    can_share_rows: ClassVar[bool] = False

    @cached_property
    def full_keys(self) -> list[Any]:
        """Keys and values of the whole images (M of them)."""
        return self.model.project_images(self.images.full)

    @cached_property
    def image_side(self) -> Any:
        return self.model.region_side(self.images, self.full_keys)


@dataclass
class TextPairStep(PairedStep):
    """Parallel texts: `images` are the first texts, whose tokens `texts`, the second ones, read.

    The masked first texts read the second ones; a concatenated pair, which packs as `pair_packing`, reads nothing
    (translation language modelling).
    """

    can_share_rows: ClassVar[bool] = False

    pair_packing: Any = None

    @cached_property
    def image_side(self) -> Any:
        return self.model.reading_side(self.images)

    @property
    def masked_packing(self) -> Any:
        return self.images.packing if self.pair_packing is None else self.pair_packing

    @cached_property
    def masked_keys(self) -> list[Any] | None:
        return self.model.project_texts(self.texts) if self.pair_packing is None else None

    @property
    def text_pairs(self) -> Step:
        return self


@runtime_checkable
class ReportsStatistics(Protocol):
    """An objective that has numbers () of a step for the log."""

    def statistics(self, step: Step) -> dict[str, Tensor]: ...


def positive_text_weights(similarity: Tensor, own: Tensor, choice: PositiveChoice) -> Tensor:
    """Sampling weights of each image's own captions, 0 elsewhere: (M, T) for similarity (M, T) and own (M, T) bool.

    `probability` and `similarity` prefer the captions that the model does not rank high yet: the largest value of the
    whole matrix minus the caption's own, of softmax probabilities or of raw similarities (CCRK's neg_sample_type 1
    and 2).
    """
    if choice in ("uniform", "first"):
        return own.float()
    value = similarity if choice == "similarity" else similarity.softmax(dim=1) + FLOOR
    return (value.max() + FLOOR - value) * own
