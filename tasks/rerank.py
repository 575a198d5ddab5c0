"""Two-stage scores: similarities choose candidates, the fusion stack scores each chosen pair once.

Letters: M images, T texts, P pairs, K candidates of one query.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models.model import Model
from models.text_encoder import TextState
from utils.distributed import gather_rows, rank, world_size

# On a CPU a larger block falls out of the caches (384 pixels, 2 threads: 136 pairs/s at 2,048, 107 at 16,384).
TOKENS_PER_BLOCK_ON_CPU, TOKENS_PER_BLOCK = 2048, 16384
# Tokens of texts whose keys and values are held for a stack that reads texts: 300 MB at R2D2's size.
TEXT_ROWS = 8192


@dataclass
class Candidates:
    """Which pairs each direction re-ranks, (M, T) bool each; a pair that both want is scored once."""

    of_images: Tensor
    of_texts: Tensor


def choose_candidates(similarity: Tensor, num_candidates: int) -> Candidates:
    """The num_candidates most similar texts of every image and images of every text; similarity (M, T).

    A gallery with fewer entries is taken whole.
    """
    num_images, num_texts = similarity.shape
    of_images = torch.zeros_like(similarity, dtype=torch.bool)
    of_texts = torch.zeros_like(of_images)
    of_images.scatter_(1, similarity.topk(min(num_candidates, num_texts), dim=1).indices, True)
    of_texts.scatter_(0, similarity.topk(min(num_candidates, num_images), dim=0).indices, True)
    return Candidates(of_images, of_texts)


def score_pairs(
    model: Model,
    image_tokens: Callable[[list[int]], Tensor],
    texts: TextState,
    pairs: Tensor,
    *,
    is_probability: bool,
    on_progress: Callable[[int], None],
) -> Tensor:
    """Match logit of class 1, or its probability, for pairs (P, 2) of (image, text) numbers: (P,); with two stacks
    their mean (R2D2).
    """
    options = {"is_probability": is_probability, "on_progress": on_progress}
    return score_stacks(model, image_tokens, texts, pairs, **options).mean(dim=1)


def score_stacks(
    model: Model,
    image_tokens: Callable[[list[int]], Tensor],
    texts: TextState,
    pairs: Tensor,
    *,
    is_probability: bool,
    on_progress: Callable[[int], None] = lambda done: None,
) -> Tensor:
    """The same by stack: (P, S); pairs (P, 2) are sorted by image."""
    logits = pair_logits(model, image_tokens, texts, pairs, on_progress=on_progress)
    return (logits.softmax(dim=2) if is_probability else logits)[..., 1]


def pair_logits(
    model: Model,
    image_tokens: Callable[[list[int]], Tensor],
    texts: TextState,
    pairs: Tensor,
    *,
    on_progress: Callable[[int], None] = lambda done: None,
) -> Tensor:
    """Both logits of every stack (P, S, 2); pairs (P, 2) are sorted by image.

    image_tokens gives the tokens (m, N, V) of a list of images. Blocks hold whole images where they fit, about
    as many tokens as suit the device; keys and values of an image are projected once per block, those of a text
    once in all.
    """
    device = texts.tokens.device
    tokens_per_block = TOKENS_PER_BLOCK_ON_CPU if device.type == "cpu" else TOKENS_PER_BLOCK
    lengths = np.asarray(texts.packing.lengths)
    num_image_rows = 0
    if model.image_fusion is not None and len(pairs):
        num_image_rows = image_tokens([int(pairs[0, 0])]).shape[1]
    found = torch.zeros(len(pairs), 1 if model.image_fusion is None else 2, 2, device=device)
    for part in _text_parts(model, lengths, pairs):
        text_side = model.text_side(texts.select(part.texts), is_reused=True)
        costs = lengths[pairs[part.pairs, 1].numpy()] + num_image_rows
        for block in _blocks(costs, tokens_per_block):
            chosen = part.pairs[block]
            images, place = pairs[chosen, 0].unique(return_inverse=True)
            image_side = model.image_side(image_tokens(images.tolist()), is_reused=True)
            logits = model.pair_logits(image_side, text_side, place, part.place[block])  # (n, S, 2)
            found[chosen.to(device)] = logits.to(found.dtype)
            on_progress(len(chosen))
    return found


@dataclass
class _TextPart:
    """Some texts (t,), the numbers (n,) of the pairs that they are in, and the place (n,) of each pair's text."""

    texts: Tensor
    pairs: Tensor
    place: Tensor


def _text_parts(model: Model, lengths: np.ndarray, pairs: Tensor) -> Iterator[_TextPart]:
    """All texts at once or, where their keys and values are kept, as many as TEXT_ROWS tokens hold, equally long ones
    together.
    """
    wanted, place = pairs[:, 1].unique(return_inverse=True)
    by_length = np.argsort(lengths[wanted.numpy()], kind="stable")
    rows_per_part = sum(lengths) if model.image_fusion is None else TEXT_ROWS
    for part in _blocks(lengths[wanted.numpy()][by_length], rows_per_part):
        texts = torch.from_numpy(by_length[part]).sort().values
        place_in_part = torch.full((len(wanted),), -1).index_copy(0, texts, torch.arange(len(texts)))[place]
        chosen = (place_in_part >= 0).nonzero().flatten()
        yield _TextPart(wanted[texts], chosen, place_in_part[chosen])


def _blocks(lengths: np.ndarray, tokens_per_block: int) -> Iterator[slice]:
    """Consecutive pairs, or texts, that have about tokens_per_block tokens together."""
    total = np.cumsum(lengths)
    start = 0
    while start < len(lengths):
        used = total[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(total, used + tokens_per_block, side="right")))
        yield slice(start, stop)
        start = stop


def rerank(
    model: Model,
    image_tokens: Callable[[list[int]], Tensor],
    texts: TextState,
    candidates: Candidates,
    *,
    owner: Tensor | None = None,
    is_probability: bool = False,
    on_progress: Callable[[int], None] = lambda done: None,
) -> Tensor:
    """Match logits, or probabilities, (M, T) of all candidate pairs, -inf elsewhere; every rank gets all scores.

    owner (M,) is the rank that scores the pairs of each image, by default m % world_size; image_tokens is asked only
    for own images.
    """
    wanted = (candidates.of_images | candidates.of_texts).cpu()
    pairs = wanted.nonzero()
    owner = torch.arange(len(wanted)) % world_size() if owner is None else owner
    own = pairs[owner[pairs[:, 0]] == rank()]
    scores = gather_rows(
        score_pairs(model, image_tokens, texts, own, is_probability=is_probability, on_progress=on_progress), "none"
    )
    all_pairs = gather_rows(own.to(scores.device), "none")
    matrix = torch.full(wanted.shape, -torch.inf, device=scores.device)
    return matrix.index_put((all_pairs[:, 0], all_pairs[:, 1]), scores)
