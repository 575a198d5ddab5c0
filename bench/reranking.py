"""A1-A4: re-ranking with the fusion stack at base size, one padded query at a time, and our way.

Both ways get the same encoded texts and images; only the fusion stack is timed.
Letters: M images, T texts, L text tokens, N image tokens, D width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor

from bench import plain
from bench.common import (
    Disagreement,
    Options,
    Result,
    agree,
    as_by_default,
    caption_lengths,
    histogram,
    interleaved,
    rate,
    rates,
    ratio,
)
from models.model import Model
from models.text_encoder import TextState
from tasks.rerank import Candidates, choose_candidates, rerank, score_pairs
from utils.allocator import keep_freed_memory
from utils.config import build
from utils.metrics import recall_metrics, retrieval_ranks

# Tokens of a Swin-B at 224 and at 384 pixels: a grid of 7 x 7 or 12 x 12, and their mean.
IMAGE_TOKENS = {224: 50, 384: 145}
PADDED, MEAN_LENGTH = 40, 16
# Pairs of one query, all in one batch of the original (k_test of its Multi30K, xFlickr&CO and WIT configurations).
NUM_CANDIDATES = 128
SCORE_TOLERANCE = 1e-4
RECALL_TOLERANCE = 0.1


@dataclass
class Fixture:
    """A model with images (M, N, D) and texts, and the same texts as padded hidden states (T, L, D), mask (T, L)."""

    model: Model
    images: Tensor
    texts: TextState
    hidden: Tensor
    mask: Tensor
    lengths: list[int]

    @property
    def every_pair(self) -> Candidates:
        """All texts are candidates of all images, none the other way."""
        wanted = torch.ones(len(self.images), len(self.texts.packing.lengths), dtype=torch.bool)
        return Candidates(wanted, torch.zeros_like(wanted))


def make_fixture(num_images: int, num_texts: int, num_tokens: int, is_small: bool) -> Fixture:
    """Random images and texts of the shapes that Swin-B and XLM-R-large give."""
    torch.manual_seed(0)
    width = 64 if is_small else 1024
    sizes = {"width": width, "num_layers": 1, "num_heads": 16}
    text = {"name": "bert", "vocab_size": 1000, "mlp_width": 4 * width} | sizes
    image = {"name": "vit", "image_size": 32, "patch_size": 32} | sizes
    fusion = {"num_layers": 2 if is_small else 6}
    config = build(Model.Config, {"image_encoder": image, "text_encoder": text, "text_fusion": fusion})
    model = Model(config).eval().requires_grad_(False)
    lengths = caption_lengths(num_texts, MEAN_LENGTH, PADDED)
    mask = torch.arange(PADDED)[None, :] < torch.tensor(lengths)[:, None]
    ids = torch.randint(4, 1000, mask.shape).masked_fill(~mask, config.text_encoder.pad_id)
    # What the tokens of an image share tells it from the others.
    images = torch.randn(num_images, num_tokens, width) + torch.randn(num_images, 1, width)
    fixture = Fixture(
        model, images, model.encode_text(ids, lengths), plain.encode_text(model.text_encoder, ids, mask), mask, lengths
    )
    return fixture


def _fit_match_head(fixture: Fixture, strength: float = 1e-3) -> None:
    """Fit the last layer of the match head, so that text i belongs to image i and ranks mean something (ridge)."""
    model, num_images = fixture.model, len(fixture.images)
    pairs = fixture.every_pair.of_images.nonzero()
    keys = model.project_images(fixture.images)
    fused = model.text_fusion.first_tokens(fixture.texts.select(pairs[:, 1]), keys, pairs[:, 0])  # (M * T, D)
    known = model.match_head[:-1](fused)
    known = (known - known.mean(dim=0)).double()
    right = (pairs[:, 0] == pairs[:, 1] % num_images).double()
    gram = known @ known.T
    gram.diagonal().add_(strength * gram.diagonal().mean())
    model.match_head[-1].weight[1] = (known.T @ torch.linalg.solve(gram, right - right.mean())).float()


@torch.inference_mode()
def one_query_at_a_time(fixture: Fixture) -> Tensor:
    """The original way: every image repeated for its texts, all layers at all padded positions: scores (M, T)."""
    rows = []
    for image in fixture.images:
        copies = image.repeat(len(fixture.hidden), 1, 1)
        rows.append(plain.match_logits(fixture.model, fixture.hidden, fixture.mask, copies)[:, 1])
    return torch.stack(rows)


@torch.inference_mode()
def our_way(fixture: Fixture, candidates: Candidates, *, is_half: bool = False) -> Tensor:
    """The evaluation's own code, in fp32 or under bf16 autocast: scores (M, T)."""
    with torch.autocast("cpu", torch.bfloat16, enabled=is_half):
        return rerank(fixture.model, lambda own: fixture.images[own], fixture.texts, candidates)


@cache
def run_size(image_size: int, options: Options) -> list[Result]:
    """A1 or A2, and A3 for the same size."""
    keep_freed_memory()
    num_images, num_texts, num_timed = (4, 8, 2) if options.is_small else (8, NUM_CANDIDATES, 4)
    fixture = make_fixture(num_images, num_texts, IMAGE_TOKENS[image_size], options.is_small)
    _fit_match_head(fixture)
    every = fixture.every_pair
    expected = one_query_at_a_time(fixture)
    exact, half = our_way(fixture, every), our_way(fixture, every, is_half=True)
    words = agree(exact, expected, SCORE_TOLERANCE, "scores") + "; " + _same_ranks(exact, expected)
    timed = replace(fixture, images=fixture.images[:num_timed])
    ways = {
        "plain": as_by_default(partial(one_query_at_a_time, timed)),
        "exact": partial(our_way, timed, timed.every_pair),
        "half": partial(our_way, timed, timed.every_pair, is_half=True),
    }
    seconds = interleaved(ways, options.repeats, is_repeated=True)
    pairs = num_timed * num_texts
    floors = {224: ("2.5x", "3.3x", "8x", "13x"), 384: ("4.5x", "7x", "15x", "29x")}[image_size]
    notes = [f"A1-A3: {histogram(fixture.lengths)}; the plain way pads to {PADDED}"]
    speed = {name: rate(pairs, times, "pairs") for name, times in seconds.items()}
    return [
        Result(
            row=name,
            what=f"re-ranking at {image_size} pixels, {precision}, {pairs} pairs",
            plain=speed["plain"],
            ours=speed[way],
            ratio=f"{ratio(seconds['plain'], seconds[way]):.2f}x",
            floor=floor,
            goal=goal,
            agreement=agreement,
            notes=notes,
        )
        for name, way, precision, floor, goal, agreement in (
            ({224: "A1", 384: "A2"}[image_size], "exact", "fp32", *floors[:2], words),
            ("A3", "half", "bf16", *floors[2:], _same_recall(half, expected)),
        )
    ]


def _ranks(scores: Tensor) -> tuple[Tensor, Tensor]:
    return retrieval_ranks(scores, scores.T, torch.arange(scores.shape[1]) % scores.shape[0])


def _same_ranks(found: Tensor, expected: Tensor) -> str:
    if not all(torch.equal(ours, theirs) for ours, theirs in zip(_ranks(found), _ranks(expected), strict=True)):
        raise Disagreement("ranks differ")
    return "ranks equal"


def _same_recall(found: Tensor, expected: Tensor) -> str:
    ours, theirs = recall_metrics(*_ranks(found)), recall_metrics(*_ranks(expected))
    worst = max(abs(ours[key] - theirs[key]) for key in theirs)
    if worst > RECALL_TOLERANCE:
        raise Disagreement(f"recall differs by {worst:.2f} points in bf16")
    difference, gap = (found - expected).abs().max(), expected.diagonal().mean() - expected.mean()
    return f"R@1/5/10 within {worst:.2f} points; scores within {difference:.0e}, right ones {gap:.1f} above the mean"


def run_both_directions(options: Options) -> list[Result]:
    """A4: a pair that both directions want is scored once, against our own scoring of each direction by itself."""
    count, num_candidates = (6, 3) if options.is_small else (40, 8)
    fixture = make_fixture(count, count, IMAGE_TOKENS[224], options.is_small)
    candidates = choose_candidates(similarity_of_pairs(count), num_candidates)

    @torch.inference_mode()
    def each_by_itself() -> tuple[Tensor, Tensor]:
        score = partial(
            score_pairs, fixture.model, lambda own: fixture.images[own], fixture.texts, is_probability=False,
            on_progress=lambda done: None,
        )  # fmt: skip
        return score(candidates.of_images.nonzero()), score(candidates.of_texts.nonzero())

    together = partial(our_way, fixture, candidates)
    scores = together()
    for wanted, expected in zip((candidates.of_images, candidates.of_texts), each_by_itself(), strict=True):
        words = agree(scores[wanted], expected, SCORE_TOLERANCE, "scores")
    seconds = interleaved({"plain": each_by_itself, "ours": together}, options.repeats)
    both = int((candidates.of_images & candidates.of_texts).sum())
    asked = int(candidates.of_images.sum() + candidates.of_texts.sum())
    return [
        rates(
            "A4",
            f"both directions, {count} images with one text each, top {num_candidates}, fp32",
            words,
            (asked, "asked pairs"),
            (seconds["plain"], seconds["ours"]),
            ratio=f"{ratio(seconds['plain'], seconds['ours']):.2f}x on top",
            floor="no slower",
            goal="1.3x",
            notes=[f"A4: both directions want {both} of {asked - both} pairs; the plain side is our own way, twice"],
        )
    ]


def similarity_of_pairs(count: int) -> Tensor:
    """Similarities (count, count) of pairs that share 8 latent numbers, as a trained dual encoder gives them."""
    generator = torch.Generator().manual_seed(0)
    latent = torch.randn(count, 8, generator=generator)
    image, text = (F.normalize(latent + 0.4 * torch.randn(count, 8, generator=generator), dim=1) for _ in range(2))
    return image @ text.T


def _rows_of(row: str, image_sizes: tuple[int, ...], options: Options) -> list[Result]:
    return [result for size in image_sizes for result in run_size(size, options) if result.row == row]


ROWS = {
    "A1": partial(_rows_of, "A1", (224,)),
    "A2": partial(_rows_of, "A2", (384,)),
    "A3": partial(_rows_of, "A3", (224, 384)),
    "A4": run_both_directions,
}
