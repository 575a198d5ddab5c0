"""A14: R2D2's two fusion stacks. Re-ranking in both directions at ViT-L size, one padded query at a time, and our way:
both get the same encoded texts and images, only the stacks are timed. And a whole fine-tuning step for retrieval at
ViT-B size.

The plain step pads to 64, runs the stacks on the positive and on the negative pairs, draws negatives one by one and
walks over the parameters in AdamW. Both steps share the model, the frozen image tower's code, the batch and the
moments; dropout is off on both sides.
Letters: M images, T texts, L text tokens, N image tokens, V and D widths of image and text tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench import plain
from bench.common import (
    Options,
    Result,
    agree,
    as_by_default,
    caption_lengths,
    histogram,
    interleaved,
    rates,
    ratio,
    spread,
)
from bench.reranking import similarity_of_pairs
from bench.training_step import Negatives, draw_one_by_one, plain_texts, update_one_by_one
from dataset.batch import ImageTextBatch, TextBatch
from models.model import Model
from models.text_encoder import TextState
from objectives import OBJECTIVES
from objectives.matching import match_logits, match_loss
from optim import OptimConfig, make_optimizer
from tasks.encode import encode_step
from tasks.image_text import ImageText
from tasks.rerank import Candidates, choose_candidates, rerank
from utils.allocator import keep_freed_memory
from utils.config import build

PADDED, MEAN_LENGTH = 64, 16  # what the released program pads to; Chinese captions of Flickr30k-CNA
IMAGE_TOKENS = 257
SCORE_TOLERANCE, HALF_TOLERANCE = 1e-4, 5e-2


# R2D2 with ViT-B/16, as configs/base/r2d2_towers.yaml has it, without dropout; and the same tiny.
BASE_IMAGE = {"name": "vit", "patch_size": 16, "width": 768, "num_layers": 12, "num_heads": 12}
BASE_TEXT = {"name": "bert", "vocab_size": 21128, "width": 768, "num_layers": 12, "num_heads": 12, "mlp_width": 3072,
             "max_positions": 512, "num_token_types": 2, "layer_norm_eps": 1e-12, "pad_id": 0,
             "dropout": 0.0, "attention_dropout": 0.0}  # fmt: skip
CLIP = {"is_clip": True, "layer_norm_eps": 1e-5, "final_norm": False, "is_frozen": True}
TINY = {"width": 32, "num_layers": 1, "num_heads": 2}
CLASS_WEIGHTS = [1.0, 2.0]
LOSS_TOLERANCE = 1e-4


def make_model(is_small: bool) -> Model:
    """Random weights; the towers, which are not timed, have one layer."""
    image_width, width, layers = (64, 48, 2) if is_small else (1024, 768, 6)
    image = {"name": "vit", "image_size": 32, "patch_size": 32, "width": image_width, "num_layers": 1, "num_heads": 16}
    sizes = {"width": width, "mlp_width": 4 * width, "num_heads": 12, "num_layers": 1, "layer_norm_eps": 1e-12}
    text = {"name": "bert", "vocab_size": 1000, "pad_id": 0} | sizes
    stack = {"num_layers": layers}
    tree = {"image_encoder": image, "text_encoder": text, "text_fusion": stack, "image_fusion": stack}
    torch.manual_seed(0)
    return Model(build(Model.Config, tree | {"match_head": "linear"})).eval().requires_grad_(False)


@dataclass
class Fixture:
    """A model with images (M, N, V), texts, and the same texts as padded hidden states (T, L, D) with mask (T, L)."""

    model: Model
    images: Tensor
    texts: TextState
    hidden: Tensor
    mask: Tensor


@torch.inference_mode()
def one_query_at_a_time(fixture: Fixture, candidates: Candidates) -> Tensor:
    """The released way: every image with its texts, then every text with its images, each pair padded and with an
    image of its own, every layer at every position: scores of the first and of the second, one after another.
    """
    model, images, hidden, mask = fixture.model, fixture.images, fixture.hidden, fixture.mask
    found = []
    for image, texts in zip(images, candidates.of_images, strict=True):
        copies = image.repeat(int(texts.sum()), 1, 1)
        found.append(plain.match_probability(model, hidden[texts], mask[texts], copies))
    for own, own_mask, wanted in zip(hidden, mask, candidates.of_texts.T, strict=True):
        count = int(wanted.sum())
        copies = own.repeat(count, 1, 1), own_mask.repeat(count, 1)
        found.append(plain.match_probability(model, *copies, images[wanted]))
    return torch.cat(found)


@torch.inference_mode()
def our_way(fixture: Fixture, candidates: Candidates, *, is_half: bool = False) -> Tensor:
    """The evaluation's own code, in fp32 or under bf16 autocast: the same scores in the same order."""
    with torch.autocast("cpu", torch.bfloat16, enabled=is_half):
        scores = rerank(fixture.model, lambda own: fixture.images[own], fixture.texts, candidates, is_probability=True)
    return torch.cat([scores[candidates.of_images], scores.T[candidates.of_texts.T]])


def reranking(options: Options) -> list[Result]:
    """Both directions, as an evaluation asks for them."""
    keep_freed_memory()
    count, num_candidates, num_tokens = (4, 2, 17) if options.is_small else (16, 4, IMAGE_TOKENS)
    model = make_model(options.is_small)
    lengths = caption_lengths(count, MEAN_LENGTH, PADDED)
    mask = torch.arange(PADDED)[None, :] < torch.tensor(lengths)[:, None]
    ids = torch.randint(4, 1000, mask.shape).masked_fill(~mask, 0)
    images = torch.randn(count, num_tokens, model.image_encoder.width)
    hidden = plain.encode_text(model.text_encoder, ids, mask)
    fixture = Fixture(model, images, model.encode_text(ids, lengths), hidden, mask)
    candidates = choose_candidates(similarity_of_pairs(count), num_candidates)
    ways = {
        "plain": as_by_default(partial(one_query_at_a_time, fixture, candidates)),
        "fp32": partial(our_way, fixture, candidates),
        "bf16": partial(our_way, fixture, candidates, is_half=True),
    }
    expected, exact, half = (way() for way in ways.values())
    words = {
        "fp32": agree(exact, expected, SCORE_TOLERANCE, "scores"),
        "bf16": agree(half, expected, HALF_TOLERANCE, "scores"),
    }
    seconds = interleaved(ways, options.repeats, is_repeated=True)
    both, asked = int((candidates.of_images & candidates.of_texts).sum()), len(expected)
    what = f"re-ranking both ways, {count} images with one text each, top {num_candidates}"
    shared = f"both directions want {both} of {asked - both} pairs"
    notes = [f"A14: {histogram(lengths)}; the plain way pads to {PADDED}; {shared}"]
    return [
        rates(
            "A14",
            f"{what}, two fusion stacks at {num_tokens} image tokens, {precision}",
            words[precision],
            (asked, "asked pairs"),
            (seconds["plain"], seconds[precision]),
            floor="2.5x",
            goal="3.5x",
            notes=notes,
        )
        for precision in words
    ]


def make_task(is_small: bool) -> ImageText:
    """Fine-tuning for retrieval as its configurations build it, without data."""
    torch.manual_seed(0)
    stack = {"num_layers": 2 if is_small else 6}
    tree = {
        "image_encoder": BASE_IMAGE | CLIP | ({"image_size": 32} | TINY if is_small else {}),
        "text_encoder": BASE_TEXT | (TINY | {"vocab_size": 200, "mlp_width": 64} if is_small else {}),
        "text_fusion": stack,
        "image_fusion": stack,
        "match_head": "linear",
        "embed_dim": 32 if is_small else 768,
    }
    model = Model(build(Model.Config, tree))
    for head in (model.match_head, model.image_match_head):
        torch.nn.init.normal_(head.weight)  # fresh ones are so small that any two pairs would agree
    itm = OBJECTIVES.load("itm").Config(
        candidates="all", floor=0.0, class_weights=CLASS_WEIGHTS, positive_text="uniform"
    )
    return ImageText(model, {"itc": OBJECTIVES.load("itc").Config(), "itm": itm}, None, None).train()


def make_batch(task: ImageText, size: int) -> ImageTextBatch:
    """Random pictures with one caption each."""
    generator = torch.Generator().manual_seed(0)
    config, side = task.model.config.text_encoder, task.model.config.image_encoder.image_size
    lengths = caption_lengths(size, MEAN_LENGTH, PADDED)
    is_padded = torch.arange(PADDED)[None, :] >= torch.tensor(lengths)[:, None]
    ids = torch.randint(4, config.vocab_size, is_padded.shape, generator=generator).masked_fill(is_padded, 0)
    images = torch.randint(0, 256, (size, 3, side, side), generator=generator).to(torch.uint8)
    number = torch.arange(size)
    return ImageTextBatch(images, number, TextBatch(ids, lengths), number, torch.zeros_like(number))


def plain_losses(task: ImageText, batch: ImageTextBatch, negatives: Negatives | None) -> dict[str, Tensor]:
    """Both losses the released way; negatives are drawn where absent."""
    model = task.model
    images = model.encode_image(batch.images)
    mask, hidden, text_embed = plain_texts(model, batch.texts)
    temperature = model.temperature()
    of_texts, of_images = negatives or draw_one_by_one(images.embed @ text_embed.T / temperature)
    positive = both_sides(model, hidden, mask, images.tokens)
    negative = both_sides(
        model,
        torch.cat([hidden, hidden[of_images]]),
        torch.cat([mask, mask[of_images]]),
        torch.cat([images.tokens[of_texts], images.tokens]),
    )
    logits = torch.cat([positive, negative])
    return {
        "itc": plain.contrastive_loss(images.embed, text_embed, temperature),
        "itm": match_loss(logits, torch.ones(len(logits), dtype=torch.bool), CLASS_WEIGHTS),
    }


def both_sides(model: Model, hidden: Tensor, mask: Tensor, image: Tensor) -> Tensor:
    """Logits of both stacks for every pair of a padded text and an image: (B, 2, 2)."""
    sides = plain.match_logits(model, hidden, mask, image), plain.image_match_logits(model, hidden, mask, image)
    return torch.stack(sides, dim=1)


@torch.no_grad()
def check(task: ImageText, batch: ImageTextBatch) -> str:
    """Both losses agree, with the same negatives."""
    step = encode_step(task.model, batch, "uniform")
    own = torch.arange(len(step.image_id))
    negatives = own.roll(1), own.roll(-1)
    logits = match_logits(step, own, *negatives)
    ours: dict[str, Any] = task(batch)
    ours["itm"] = match_loss(logits, torch.ones(len(logits), dtype=torch.bool), CLASS_WEIGHTS)
    expected = plain_losses(task, batch, negatives)
    return "; ".join(agree(ours[name], expected[name], LOSS_TOLERANCE, name) for name in expected)


def fine_tuning(options: Options) -> Result:
    """A step: both losses, backward, AdamW."""
    keep_freed_memory()
    task = make_task(options.is_small)
    batch = make_batch(task, 4)
    words = check(task, batch)
    optimizer = make_optimizer(task, OptimConfig(lr=1e-6, no_decay=[]))

    def ours() -> None:
        sum(task(batch).values()).backward()
        optimizer.step()
        optimizer.zero_grad()

    def plainly() -> None:
        sum(plain_losses(task, batch, None).values()).backward()
        update_one_by_one(optimizer)
        optimizer.zero_grad()

    ways = {"ours": ours, "plain": as_by_default(plainly)}  # ours first, for it makes the moments
    seconds = interleaved(ways, options.repeats, is_repeated=True)
    size = "small" if options.is_small else "R2D2 with ViT-B/16"
    return Result(
        row="A14",
        what=f"retrieval fine-tuning step, {size}, batch {len(batch.image_id)}, fp32",
        plain=spread(seconds["plain"]),
        ours=spread(seconds["ours"]),
        ratio=f"{ratio(seconds['plain'], seconds['ours']):.2f}x",
        floor="1.2x",
        goal="1.5x",
        agreement=words,
        notes=[f"A14: {histogram(batch.texts.lengths)}; the plain step pads to {PADDED}"],
    )


def run(options: Options) -> list[Result]:
    """A14: re-ranking, and the step that trains for it."""
    return [*reranking(options), fine_tuning(options)]


ROWS = {"A14": run}
