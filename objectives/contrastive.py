"""Contrastive objectives: image-text (ITC) and one image against all its K captions (1-to-K)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from objectives.chunked_contrastive import CHUNK_ELEMENTS, Positives, contrastive_losses
from objectives.step import ObjectiveConfig, Step
from utils.distributed import gather_rows, rank, rank_group, world_size

Gather = Literal["exact", "local_slice", "constant", "none"]


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
    smoothing: float = 0.0,
    group_size: int = 0,
    shares: tuple[float, ...] = (1.0,),
    asks: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Image-to-text and text-to-image losses over the batch of all ranks; image (M, E), text (T, E) are this rank's
    unit vectors, image_id (M,) and text_id (T,), or with several shares (M, K) and (T, K), asks (M,) and (T,) as in
    `Positives`.

    gather `exact`: each rank computes the rows of its own images, and the mean of gradients over ranks is the
    gradient of the whole batch. `local_slice`: each rank computes everything and keeps only the gradient of its own
    vectors, as the originals do: after averaging, 1/R of the true gradient for everything but the temperature.
    `constant`: each rank computes the rows of its own vectors against all others, which get no gradient: images learn
    from image-to-text alone. `none`: this rank's batch alone. With a group_size, `exact` and `constant` see the batch
    of so many neighbouring ranks.
    """
    options = {"is_mean": is_mean, "is_exclusive": is_exclusive, "smoothing": smoothing, "shares": shares}
    group, (image_asks, text_asks) = rank_group(group_size), asks or (None, None)
    images, texts = (image, image_id, image_asks), (text, text_id, text_asks)
    if gather == "constant":
        rows, columns = (_gathered(*side, "none", group) for side in (images, texts))
        return (_losses(images, columns, temperature, options)[0], _losses(texts, rows, temperature, options)[0])
    if gather == "none" or world_size() == 1:
        return _losses(images, texts, temperature, options)
    texts = _gathered(*texts, gather, group)
    if gather == "exact":
        return _losses(images, texts, temperature, options, is_sharded=True, group=group)
    return _losses(_gathered(*images, gather, None), texts, temperature, options)


def _losses(
    rows: tuple, columns: tuple, temperature: Tensor, options: dict, *, is_sharded: bool = False, group: Any = None
) -> tuple[Tensor, Tensor]:
    """Both losses () of vectors, ids and who asks, of rows and of columns."""
    (row, row_id, row_asks), (column, column_id, column_asks) = rows, columns
    positives = Positives(row_id, column_id, row_asks=row_asks, column_asks=column_asks, **options)
    return contrastive_losses(row, column, temperature, positives, is_sharded=is_sharded, group=group)


def _gathered(embed: Tensor, ids: Tensor, asks: Tensor | None, gather: Gather, group: Any) -> tuple:
    """The same of all ranks of the group; only the vectors have a gradient."""
    ids, asks = (None if x is None else gather_rows(x, "none", group=group) for x in (ids, asks))
    return gather_rows(embed, gather, group=group), ids, asks


class EmbeddingObjective:
    """An objective of the embeddings and of who belongs together, which a wrapper may say otherwise."""

    def __call__(self, step: Step) -> Tensor:
        """The loss ()."""
        return self.loss(step, *self.ids(step))

    def ids(self, step: Step) -> tuple[Tensor, Tensor]:
        """(M,) and (T,): a text is right for an image where these are equal."""
        return step.image_id, step.text_id

    def loss(self, step: Step, image_id: Tensor, text_id: Tensor, shares: tuple[float, ...] = (1.0,)) -> Tensor:
        """The loss () with these ids: (M,) and (T,), or a column for each share, (M, K) and (T, K)."""
        raise NotImplementedError


class Contrastive(EmbeddingObjective):
    """Image-text contrastive loss; every text of the same picture is right, and right answers share the target (CCLM,
    CCRK eq. ITC).
    """

    @dataclass
    class Config(ObjectiveConfig):
        reads_embeddings_only: ClassVar[bool] = True
        name: str = "itc"
        gather: Gather = "exact"

    def __init__(self, config: Config) -> None:
        self.config = config

    def loss(self, step: Step, image_id: Tensor, text_id: Tensor, shares: tuple[float, ...] = (1.0,)) -> Tensor:
        """Mean of both directions, and of the captions where they meet the images one after the other."""
        pairs = [(step.images.embed, embed, step.temperature, image_id, text_id) for embed in step.text_embeds]
        options = {"gather": self.config.gather, "shares": shares}
        sides = [side for pair in pairs for side in gathered_contrastive_losses(*pair, **options)]
        return sum(sides) / len(sides)


class TextContrastive(Contrastive):
    """The same between texts that say the same: parallel texts, or two captions of an image (CCLM's TTC)."""

    @dataclass
    class Config(Contrastive.Config):
        reads_embeddings_only: ClassVar[bool] = False  # it reads which texts are parallel
        name: str = "ttc"

    def __call__(self, step: Step) -> Tensor:
        return super().__call__(step.text_pairs)


class PairContrastive(EmbeddingObjective):
    """Symmetric InfoNCE in which only the pair itself is right, however often the batch shows the picture (ZeroVL's
    NCE).
    """

    @dataclass
    class Config(ObjectiveConfig):
        reads_embeddings_only: ClassVar[bool] = True
        name: str = "nce"
        gather: Gather = "exact"
        smoothing: float = 0.0
        group_size: int = 0  # neighbouring processes that see each other's pairs; 0: all
        by_identity: bool = False  # every text of the same picture is right, as for `itc`
        reports_accuracy: bool = False  # how often a pair's own partner is the most similar one, in the log

        def __post_init__(self) -> None:
            super().__post_init__()
            if not 0 <= self.smoothing < 1 or self.group_size < 0:
                found = f"{self.smoothing} and {self.group_size}"
                raise ValueError(f"smoothing must be in [0, 1) and group_size not negative, found {found}")

    def __init__(self, config: Config) -> None:
        self.config = config

    def ids(self, step: Step) -> tuple[Tensor, Tensor]:
        """What belongs together over all ranks: numbers of the images (M,) and of the texts (T,)."""
        if self.config.by_identity:
            return step.image_id, step.text_id
        image_id = torch.arange(len(step.images.embed), device=step.text_id.device) + (rank() << 40)
        return image_id, image_id[step.batch.image_of_text]

    def sides(self, step: Step) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor] | None]:
        """Embeddings of images (M, E) and texts (T, E), zeros where ignored, and who asks, (M,) and (T,) bool."""
        image, text = step.images.embed, step.texts.embed
        if step.ignored is None:
            return image, text, None
        asks = ~step.ignored, ~step.ignored[step.batch.image_of_text]
        return image if self.config.gather == "none" else image * asks[0][:, None], text * asks[1][:, None], asks

    def loss(self, step: Step, image_id: Tensor, text_id: Tensor, shares: tuple[float, ...] = (1.0,)) -> Tensor:
        """Mean of both directions.

        Ignored pairs (ZeroVL's ignore_mask) ask for nothing, and their similarity to all others is 0; the mean counts
        them. Without a gather the original weighs the whole mean by the share of the others instead.
        """
        image, text, asks = self.sides(step)
        kept = 1.0
        if asks is not None and self.config.gather == "none":
            kept, asks = asks[0].float().mean(), None
        sides = gathered_contrastive_losses(
            image,
            text,
            step.temperature,
            image_id,
            text_id,
            gather=self.config.gather,
            smoothing=self.config.smoothing,
            group_size=self.config.group_size,
            shares=shares,
            asks=asks,
        )
        return kept * sum(sides) / 2

    @torch.no_grad()
    def statistics(self, step: Step) -> dict[str, Tensor]:
        """For the log: percent () of right answers among the batch that the loss sees, and the temperature."""
        if not self.config.reports_accuracy:
            return {}
        (image, text, asks), (image_id, text_id) = self.sides(step), self.ids(step)
        image_asks, text_asks = asks or (slice(None), slice(None))
        sides = {"image_to_text": (image[image_asks], text, image_id[image_asks], text_id),
                 "text_to_image": (text[text_asks], image, text_id[text_asks], image_id)}  # fmt: skip
        found, group = {}, rank_group(self.config.group_size)
        for name, (rows, columns, row_id, column_id) in sides.items():
            if self.config.gather != "none":
                columns, column_id = (gather_rows(x, "none", group=group) for x in (columns, column_id))
            found[f"{name}_accuracy"] = 100 * top_one_accuracy(rows, columns, row_id, column_id)
        return found | {"temperature": step.temperature}


class OneToK(EmbeddingObjective):
    """Every image against all its K captions at once (CCRK, arXiv 2406.18254).

    (L_i2t + L_t2i) / 2 / divisor. L_i2t sums over the K captions of an image; `divisor` 0 stands for the mean number
    of captions per image, a negative one for no division (the original's need_divm). With `is_exclusive` the other
    captions of the picture leave the denominator, so that K right answers do not push each other away.
    """

    @dataclass
    class Config(ObjectiveConfig):
        reads_embeddings_only: ClassVar[bool] = True
        name: str = "one_to_k"
        gather: Gather = "exact"
        divisor: float = 0.0
        is_exclusive: bool = False

    def __init__(self, config: Config) -> None:
        self.config = config

    def loss(self, step: Step, image_id: Tensor, text_id: Tensor, shares: tuple[float, ...] = (1.0,)) -> Tensor:
        """The loss (); texts need not have the same number of captions per image."""
        image_to_text, text_to_image = gathered_contrastive_losses(
            step.images.embed,
            step.texts.embed,
            step.temperature,
            image_id,
            text_id,
            gather=self.config.gather,
            is_mean=False,
            is_exclusive=self.config.is_exclusive,
            shares=shares,
        )
        divisor = self.config.divisor
        if divisor == 0:
            divisor = len(text_id) / len(image_id)
        return (image_to_text + text_to_image) / 2 / (divisor if divisor > 0 else 1)


def top_one_accuracy(rows: Tensor, columns: Tensor, row_id: Tensor, column_id: Tensor) -> Tensor:
    """Share () of the rows (M, E) whose most similar column (T, E) has their id, in chunks of rows."""
    size = max(1, CHUNK_ELEMENTS // len(columns))
    with torch.autocast(rows.device.type, enabled=False):
        nearest = torch.cat([(part @ columns.float().T).argmax(dim=1) for part in rows.float().split(size)])
    return (column_id[nearest] == row_id).float().mean()
