"""Whole training steps of CCLM-base: losses, backward, AdamW. A5: images with captions, in fp32; A6: parallel texts, in
fp32; A7: A5 in bf16.

The plain step pads, repeats images, runs the fusion stack three times, holds all logits and draws negatives one by one,
always in fp32. Its AdamW walks over the parameters as the originals' does, ours is the trainer's; it has glibc's own
allocator settings, ours the trainer's. Both steps share the model, the image tower's code, the batch and the moments;
dropout is off on both sides.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
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
    ratio,
    spread,
)
from dataset.batch import ImageTextBatch, MaskedText, TextBatch, TextPairBatch
from models.model import Model
from objectives import OBJECTIVES
from objectives.matching import match_logits, match_loss
from optim import OptimConfig, make_optimizer
from tasks.image_text import ImageText
from utils.allocator import give_back_freed_memory, keep_freed_memory
from utils.config import build
from utils.precision import Precision, autocast

TOLERANCE = 1e-4
MATCHING = ("itm", "ttm")
CPU = torch.device("cpu")
# A7: how many steps the losses of both number formats are held against each other, and how far they may part.
NUM_COMPARED_STEPS, COMPARED_LR, ALLOWED_SHARE = 50, 1e-5, 0.01

Negatives = tuple[Tensor, Tensor]  # image of each text, text of each image
Losses = dict[str, Tensor]


@dataclass(frozen=True)
class Shape:
    """Texts of a batch: their mean length, what the originals pad them to, and their slots for masked words."""

    mean_length: int
    padded: int
    slots: int


CAPTIONS = Shape(mean_length=18, padded=40, slots=12)
PARALLEL = Shape(mean_length=28, padded=64, slots=20)


@dataclass
class Sizes:
    """How large the model and the batch are."""

    batch: int
    image: dict[str, Any]
    text: dict[str, Any]
    fusion_layers: int


BASE = Sizes(
    batch=8,
    image={"name": "swin", "drop_path": 0.0},
    text={"name": "bert", "dropout": 0.0, "attention_dropout": 0.0},
    fusion_layers=6,
)
SMALL = Sizes(
    batch=4,
    image={"name": "vit", "image_size": 32, "patch_size": 16, "width": 32, "num_layers": 1, "num_heads": 2},
    text=BASE.text | {"vocab_size": 200, "width": 32, "num_layers": 1, "num_heads": 2, "mlp_width": 64},
    fusion_layers=2,
)


def make_task(sizes: Sizes, names: tuple[str, ...]) -> ImageText:
    """The task as a configuration builds it, without data."""
    torch.manual_seed(0)
    fusion = {"num_layers": sizes.fusion_layers}
    tree = {"image_encoder": sizes.image, "text_encoder": sizes.text, "text_fusion": fusion}
    model = Model(build(Model.Config, tree | {"has_masked_language_head": True}))
    objectives = {name: OBJECTIVES.load(name).Config() for name in names}
    return ImageText(model, objectives, None, None)


def make_image_batch(task: ImageText, size: int, seed: int = 0) -> ImageTextBatch:
    """Random pictures with one caption each."""
    generator = torch.Generator().manual_seed(seed)
    texts, masked = make_texts(task, size, CAPTIONS, generator, seed)
    side = task.model.config.image_encoder.image_size
    images = torch.randint(0, 256, (size, 3, side, side), generator=generator).to(torch.uint8)
    number = torch.arange(size)
    return ImageTextBatch(images, number, texts, number, torch.zeros_like(number), masked)


def make_pair_batch(task: ImageText, size: int, seed: int = 0) -> TextPairBatch:
    """Random texts, and as many others that stand for their translations."""
    generator = torch.Generator().manual_seed(seed)
    (first, masked), (second, _) = (make_texts(task, size, PARALLEL, generator, seed + side) for side in (0, 1))
    return TextPairBatch(first, second, masked, stream="image")


def make_texts(
    task: ImageText, size: int, shape: Shape, generator: torch.Generator, seed: int = 0
) -> tuple[TextBatch, MaskedText]:
    """Random texts; a quarter of their words is masked, at most as many as there are slots."""
    config = task.model.config.text_encoder
    lengths = caption_lengths(size, shape.mean_length, shape.padded, seed)
    is_real = torch.arange(shape.padded)[None, :] < torch.tensor(lengths)[:, None]
    ids = torch.randint(4, config.vocab_size - 1, (size, shape.padded), generator=generator)
    ids = ids.masked_fill(~is_real, config.pad_id)
    positions, targets = torch.zeros(size, shape.slots, dtype=torch.long), torch.full((size, shape.slots), -100)
    masked_ids = ids.clone()
    for row, length in enumerate(lengths):
        count = min(shape.slots, max(1, length // 4))
        chosen = 1 + torch.randperm(length - 2, generator=generator)[:count].sort().values
        positions[row, :count], targets[row, :count] = chosen, ids[row, chosen]
        masked_ids[row, chosen] = config.vocab_size - 1
    return TextBatch(ids, lengths), MaskedText(masked_ids, positions, targets)


def plain_image_losses(task: ImageText, batch: ImageTextBatch, negatives: Negatives | None) -> Losses:
    """The losses the original way; negatives are drawn where absent."""
    model = task.model
    images = model.encode_image(batch.images)
    mask, hidden, text_embed = plain_texts(model, batch.texts)
    itc, itm = plain_pair_losses(model, images.tokens, None, images.embed, (hidden, mask, text_embed), negatives)
    masked = batch.masked
    mlm = plain.word_loss(model, masked.ids, mask, images.tokens, masked.positions, masked.targets)
    return {"itc": itc, "itm": itm, "mlm": mlm}


def plain_text_losses(task: ImageText, batch: TextPairBatch, negatives: Negatives | None) -> Losses:
    """The same of parallel texts, the first ones in the place of images."""
    model = task.model
    first_mask, first, first_embed = plain_texts(model, batch.first)
    mask, second, embed = plain_texts(model, batch.second)
    ttc, ttm = plain_pair_losses(model, first, first_mask, first_embed, (second, mask, embed), negatives)
    masked = batch.masked
    mlm = plain.word_loss(model, masked.ids, first_mask, second, masked.positions, masked.targets, mask)
    return {"ttc": ttc, "ttm": ttm, "mlm": mlm}


def plain_texts(model: Model, texts: TextBatch) -> tuple[Tensor, Tensor, Tensor]:
    """Mask (B, L), all padded tokens after the tower (B, L, D), embeddings (B, E)."""
    mask = torch.arange(texts.ids.shape[1])[None, :] < torch.tensor(texts.lengths)[:, None]
    hidden = plain.encode_text(model.text_encoder, texts.ids, mask)
    return mask, hidden, plain.embed_text(model, hidden, mask)


def plain_pair_losses(
    model: Model,
    images: Tensor,
    image_mask: Tensor | None,
    image_embed: Tensor,
    texts: tuple[Tensor, Tensor, Tensor],
    negatives: Negatives | None,
) -> tuple[Tensor, Tensor]:
    """Contrastive and matching loss of images (B, N, V), or of what stands for them, with padded texts."""
    hidden, mask, text_embed = texts
    temperature = model.temperature()
    contrastive = plain.contrastive_loss(image_embed, text_embed, temperature)
    of_texts, of_images = negatives or draw_one_by_one(image_embed @ text_embed.T / temperature)
    masks = [None, None] if image_mask is None else [image_mask, torch.cat([image_mask[of_texts], image_mask])]
    positive = plain.match_logits(model, hidden, mask, images, masks[0])
    negative = plain.match_logits(
        model,
        torch.cat([hidden, hidden[of_images]]),
        torch.cat([mask, mask[of_images]]),
        torch.cat([images[of_texts], images]),
        masks[1],
    )
    logits = torch.cat([positive, negative])
    return contrastive, match_loss(logits, torch.ones(len(logits), dtype=torch.bool))


def draw_one_by_one(similarity: Tensor) -> Negatives:
    """A hard negative for every text and every image, one draw and one copy to the host each."""
    with torch.no_grad():
        own = torch.eye(len(similarity), dtype=torch.bool)
        sides = [(side.softmax(dim=1) + 1e-5).masked_fill(own, 0) for side in (similarity.T, similarity)]
        of_texts, of_images = (torch.tensor([torch.multinomial(row, 1).item() for row in side]) for side in sides)
    return of_texts, of_images


@dataclass(frozen=True)
class Row:
    """One row: objectives, how its batch is made, the plain form of its losses, and what it has to reach."""

    what: str
    objectives: tuple[str, ...]
    shape: Shape
    make_batch: Callable[..., Any]
    plain_losses: Callable[[ImageText, Any, Negatives | None], Losses]
    floor: str
    goal: str
    precision: Precision = "fp32"


IMAGES = ("itc", "itm", "mlm"), CAPTIONS, make_image_batch, plain_image_losses
TEXTS = ("ttc", "ttm", "mlm"), PARALLEL, make_pair_batch, plain_text_losses
KINDS = {
    "A5": Row("image-text step", *IMAGES, floor="1.35x", goal="1.55x"),
    "A6": Row("parallel-text step", *TEXTS, floor="1.8x", goal="2.3x"),
    "A7": Row("image-text step", *IMAGES, floor="3.2x", goal="4.5x", precision="bf16"),
}


def settled_negatives(number: Tensor) -> Negatives:
    """The neighbours of texts and images numbered 0, 1, ... in place of drawn ones."""
    return number.roll(1), number.roll(-1)


def settled_losses(task: ImageText, batch: Any) -> Losses:
    """Our losses with negatives that no draw decides."""
    step = task.encode(batch)
    own = torch.arange(len(step.image_id))
    logits = match_logits(step, own, *settled_negatives(own))
    matching = match_loss(logits, torch.ones(len(logits), dtype=torch.bool))
    return {name: matching if name in MATCHING else each(step) for name, each in task.objectives.items()}


def check(task: ImageText, batch: Any, plain_losses: Callable[..., Losses]) -> str:
    """Every loss of both ways agrees in fp32, with the same negatives."""
    with torch.no_grad():
        ours = settled_losses(task, batch)
        expected = plain_losses(task, batch, settled_negatives(torch.arange(len(batch.masked.ids))))
    return "; ".join(agree(ours[name], expected[name], TOLERANCE, name) for name in expected)


def compare_formats(task: ImageText, batches: Sequence[Any], precision: Precision) -> str:
    """How far the loss of any of our steps parts from that in fp32: from the same start, a batch for each step, as in
    training, the same negatives (a draw may go another way after the least change of a probability).
    """
    start = {name: value.clone() for name, value in task.model.state_dict().items()}
    curves = []
    for kind in ("fp32", precision):
        task.model.load_state_dict(start)
        optimizer = make_optimizer(task, OptimConfig(lr=COMPARED_LR))
        curves.append([_descend(task, batch, optimizer, kind) for batch in batches])
    task.model.load_state_dict(start)
    del optimizer
    gc.collect()
    give_back_freed_memory()
    share = max(abs(found / expected - 1) for expected, found in zip(*curves, strict=True))
    words = f"losses of {len(batches)} steps within {100 * share:.2f} % of fp32"
    if not share <= ALLOWED_SHARE:
        raise Disagreement(f"{words}, allowed {100 * ALLOWED_SHARE:.0f} %")
    return words


def _descend(task: ImageText, batch: Any, optimizer: Any, precision: Precision) -> float:
    with autocast(precision, CPU):
        loss = torch.stack([part.float() for part in settled_losses(task, batch).values()]).sum()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


@torch.no_grad()
def update_one_by_one(optimizer: torch.optim.AdamW) -> None:
    """AdamW as the originals' library wrote it, on the moments of `optimizer`."""
    for group in optimizer.param_groups:
        beta1, beta2 = group["betas"]
        for parameter in group["params"]:
            if parameter.grad is None:  # the image tower, where there are only texts
                continue
            state = optimizer.state[parameter]
            state["step"] += 1
            count = state["step"].item()
            state["exp_avg"].mul_(beta1).add_(parameter.grad, alpha=1 - beta1)
            state["exp_avg_sq"].mul_(beta2).addcmul_(parameter.grad, parameter.grad, value=1 - beta2)
            root = state["exp_avg_sq"].sqrt().add_(group["eps"])
            size = group["lr"] * (1 - beta2**count) ** 0.5 / (1 - beta1**count)
            parameter.addcdiv_(state["exp_avg"], root, value=-size)
            parameter.add_(parameter, alpha=-group["lr"] * group["weight_decay"])


def run(name: str, options: Options) -> list[Result]:
    """A row of the table."""
    keep_freed_memory()
    row, sizes = KINDS[name], SMALL if options.is_small else BASE
    task = make_task(sizes, row.objectives).train()
    batch = row.make_batch(task, sizes.batch)
    words = check(task, batch, row.plain_losses)
    if row.precision != "fp32":
        num_steps = 3 if options.is_small else NUM_COMPARED_STEPS
        batches = [row.make_batch(task, sizes.batch, seed) for seed in range(num_steps)]
        words += "; " + compare_formats(task, batches, row.precision)
    optimizer = make_optimizer(task, OptimConfig(lr=1e-6))

    def step(losses: Callable[[], Losses], update: Callable[[], object], precision: Precision) -> None:
        with autocast(precision, CPU):
            loss = sum(part.float() for part in losses().values())
        loss.backward()
        update()
        optimizer.zero_grad()

    ways = {
        "ours": lambda: step(lambda: task(batch), optimizer.step, row.precision),  # first, for it makes the moments
        "plain": as_by_default(
            lambda: step(lambda: row.plain_losses(task, batch, None), lambda: update_one_by_one(optimizer), "fp32")
        ),
    }
    seconds = interleaved(ways, options.repeats, is_repeated=True)
    lengths = batch.texts.lengths if isinstance(batch, ImageTextBatch) else batch.first.lengths + batch.second.lengths
    padding = f"the plain step pads to {row.shape.padded} and fills {row.shape.slots} mask slots"
    return [
        Result(
            row=name,
            what=f"{row.what}, {'small' if options.is_small else 'CCLM-base'}, batch {sizes.batch}, {row.precision}",
            plain=spread(seconds["plain"]),
            ours=spread(seconds["ours"]),
            ratio=f"{ratio(seconds['plain'], seconds['ours']):.2f}x",
            floor=row.floor,
            goal=row.goal,
            agreement=words,
            notes=[f"{name}: {histogram(lengths)}; {padding}"],
        )
    ]


ROWS = {name: partial(run, name) for name in KINDS}
