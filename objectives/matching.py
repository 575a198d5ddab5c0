"""Image-text matching: does this text belong to this image, with hard negatives drawn by similarity."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from objectives.step import FLOOR, ObjectiveConfig, PositiveChoice, Step
from utils.distributed import gather_rows, world_size
from utils.exchange import all_lists, exchange, order_rows, place_in_pool

log = logging.getLogger(__name__)


@dataclass
class NegativeWeights:
    """Unnormalised sampling weights of an image for each text and of a text for each image: (M, M) and (M, T), or
    over the images and texts of all ranks.
    """

    image: Tensor
    text: Tensor


def negative_weights(
    similarity: Tensor, positive_text: Tensor, image_id: Tensor, text_id: Tensor, floor: float = FLOOR
) -> NegativeWeights:
    """Weights by softmax probability; texts and images of the same picture get 0.

    similarity (M, T) is already divided by the temperature; row b of the image weights belongs to text
    positive_text[b].
    """
    to_images = similarity[:, positive_text].T  # (M, M) text by image
    return NegativeWeights(
        _weights(to_images, text_id[positive_text], image_id, floor), _weights(similarity, image_id, text_id, floor)
    )


def negative_weights_of_all(step: Step, positive_text: Tensor, floor: float) -> NegativeWeights:
    """Weights (M, images of all ranks) and (M, texts of all ranks) for own rows, as `negative_weights` makes them."""
    image, text = step.images.embed.detach().float(), step.texts.embed.detach().float()
    all_image, all_text = gather_rows(image, "none"), gather_rows(text, "none")
    all_image_id, all_text_id = gather_rows(step.image_id, "none"), gather_rows(step.text_id, "none")
    with torch.no_grad(), torch.autocast(image.device.type, enabled=False):
        to_images = text[positive_text] @ all_image.T / step.temperature
        to_texts = image @ all_text.T / step.temperature
    own_id = step.text_id[positive_text]
    return NegativeWeights(
        _weights(to_images, own_id, all_image_id, floor), _weights(to_texts, step.image_id, all_text_id, floor)
    )


def _weights(similarity: Tensor, query_id: Tensor, candidate_id: Tensor, floor: float) -> Tensor:
    """(Q, C) for similarity (Q, C); a row whose probabilities all vanish takes any other picture."""
    is_other = query_id[:, None] != candidate_id[None, :]
    weights = (similarity.softmax(dim=1) + floor) * is_other
    return torch.where(weights.sum(dim=1, keepdim=True) > 0, weights, is_other.float())


def draw(weights: Tensor) -> tuple[Tensor, Tensor]:
    """One column per row in a single batched draw, and which rows have any candidate: (M,), (M,) bool."""
    has_candidate = weights.sum(dim=1) > 0
    safe = torch.where(has_candidate[:, None], weights, torch.ones_like(weights))
    return torch.multinomial(safe, 1).squeeze(1), has_candidate


class HardNegativeMatching:
    """One positive and two hard negatives per image through the fusion stacks (CCLM's ITM, CCRK's MITM, R2D2's FGR).

    Pairs in the order [(image, its text); (negative image, text); (image, negative text)], labels 1, 0, 0; with two
    stacks the loss is their mean. An image without any negative in the batch (all rows show the same picture)
    contributes its positive pair alone.
    """

    @dataclass
    class Config(ObjectiveConfig):
        name: str = "itm"
        # How the one caption of a picture is drawn that matching and masked language modelling see.
        positive_text: PositiveChoice = "probability"
        # Negatives come from this process's rows, or from those of all: only the drawn rows travel.
        candidates: Literal["rank", "all"] = "rank"
        floor: float = FLOOR  # added to every sampling probability
        class_weights: list[float] = field(default_factory=lambda: [1.0, 1.0])  # of pairs that do not match, and do
        # Every step and process adds a line here: the number of the language drawn for each picture.
        language_file: str = ""

        def __post_init__(self) -> None:
            super().__post_init__()
            if len(self.class_weights) != 2 or min(self.class_weights) <= 0:
                raise ValueError(f"class_weights must be two numbers above 0, found {self.class_weights}")
            if self.floor < 0:
                raise ValueError(f"floor must not be negative, found {self.floor}")

    def __init__(self, config: Config) -> None:
        self.config = config

    def __call__(self, step: Step) -> Tensor:
        """Cross-entropy over all pairs, mean over the stacks ()."""
        is_global = self.config.candidates == "all" and world_size() > 1
        if is_global and not step.can_share_rows:
            raise ValueError("itm.candidates 'all' is for images with captions; take 'rank' for regions and texts")
        positive, floor = step.positive_text, self.config.floor
        if is_global:
            weights = negative_weights_of_all(step, positive, floor)
        else:
            weights = negative_weights(step.similarity, positive, step.image_id, step.text_id, floor)
        negative_image, has_image = draw(weights.image)
        negative_text, has_text = draw(weights.text)
        if has_image.device.type == "cpu" and not has_image.all():  # on an accelerator asking would stop it
            log.warning("%d of %d pictures have no negative in the batch", int((~has_image).sum()), len(has_image))
        pairs = global_match_logits if is_global else match_logits
        logits = pairs(step, positive, negative_image, negative_text)
        if self.config.language_file:
            append_numbers(self.config.language_file, step.batch.language_of_text[positive].tolist())
        is_counted = torch.cat([torch.ones_like(has_image), has_image, has_text])
        return match_loss(logits, is_counted, self.config.class_weights)


def append_numbers(path: str, numbers: list[int]) -> None:
    """One line more at the end of a file, in one piece, whatever other processes write."""
    with open(path, "ab", buffering=0) as file:
        file.write((" ".join(map(str, numbers)) + "\n").encode())


class TextMatching(HardNegativeMatching):
    """The same between parallel texts, the first of a pair in the place of the image (CCLM's TTM)."""

    @dataclass
    class Config(HardNegativeMatching.Config):
        name: str = "ttm"

    def __call__(self, step: Step) -> Tensor:
        return super().__call__(step.text_pairs)


def match_logits(step: Step, positive_text: Tensor, negative_image: Tensor, negative_text: Tensor) -> Tensor:
    """Logits of the three kinds of pairs by stack, (3M, S, 2); all of them pass a stack in one batch."""
    own = torch.arange(len(positive_text), device=positive_text.device)
    return step.model.pair_logits(
        step.image_side,
        step.text_side,
        torch.cat([own, negative_image, own]),
        torch.cat([positive_text, positive_text, negative_text]),
        step.fused_positives(step.image_side.keys).first if step.reads_masked else None,
    )


def global_match_logits(step: Step, positive_text: Tensor, negative_image: Tensor, negative_text: Tensor) -> Tensor:
    """`match_logits`, (3M, S, 2), for negatives (M,) that are numbered over all ranks; gradients flow to the rank that
    holds them.

    The drawn numbers go to the host once: they say how many rows travel between which ranks.
    """
    chosen = torch.stack([negative_image, negative_text]).cpu()
    images, negative_image = _with_foreign_images(step.images.tokens, chosen[0])
    texts, negative_text = _with_foreign_texts(step.texts, chosen[1])
    own, positive_text = torch.arange(len(positive_text)), positive_text.cpu()
    image_side = step.model.image_side(images)
    return step.model.pair_logits(
        image_side,
        step.model.text_side(texts),
        torch.cat([own, negative_image, own]),
        torch.cat([positive_text, positive_text, negative_text]),
        step.fused_positives(image_side.keys).first if step.reads_masked else None,
    )


def _with_foreign_images(tokens: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
    """Own images (M, N, V) with the foreign ones among `numbers` behind them, and where all of these lie."""
    counts = [int(size) for size in torch.cat(all_lists(torch.tensor([len(tokens)])))]
    order = order_rows(numbers, counts)
    given = torch.cat(order.given).to(tokens.device)
    foreign = exchange(tokens[given], [len(rows) for rows in order.given], order.taken)
    return torch.cat([tokens, foreign]), place_in_pool(numbers, order, counts)


def _with_foreign_texts(texts: Any, numbers: Tensor) -> tuple[Any, Tensor]:
    """Own packed texts with the foreign ones among `numbers` behind them at their real lengths, and where these
    lie.
    """
    lengths = all_lists(torch.as_tensor(texts.packing.lengths))
    counts = [len(part) for part in lengths]
    order = order_rows(numbers, counts)
    own, every = torch.as_tensor(texts.packing.lengths), torch.cat(lengths)
    given = [int(own[rows].sum()) for rows in order.given]
    taken = [int(part.sum()) for part in every[order.foreign].split(order.taken)]
    tokens = exchange(texts.stacked(torch.cat(order.given)), given, taken)
    if not len(tokens):  # gradients of the rows that went out come back through this rank's graph all the same
        texts = replace(texts, tokens=texts.tokens + tokens.sum())
    return texts.extended(tokens, every[order.foreign].tolist()), place_in_pool(numbers, order, counts)


def match_loss(logits: Tensor, is_counted: Tensor, class_weights: Any = (1.0, 1.0)) -> Tensor:
    """Weighted mean cross-entropy over the counted of (3M,) pairs, the first third of which match.

    logits (3M, S, 2), mean over the S stacks, or (3M, 2) of one; class_weights of pairs that do not match, and do.
    """
    logits = logits.view(len(logits), -1, 2)
    is_match = torch.arange(len(logits), device=logits.device) < len(logits) // 3
    weight = torch.where(is_match, class_weights[1], class_weights[0]) * is_counted  # (3M,)
    loss = -logits.log_softmax(dim=2).mean(dim=1)  # (3M, 2)
    return (torch.where(is_match, loss[:, 1], loss[:, 0]) * weight).sum() / weight.sum()
