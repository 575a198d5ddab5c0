"""A5: one image-text training step of CCLM-base in fp32: contrastive, matching and masked-word losses, backward, AdamW.

The plain step pads, repeats images, runs the fusion stack three times, holds all logits and draws negatives one by one.
Its AdamW walks over the parameters as the originals' does, ours is the trainer's. Both steps share the model, the image
tower's code, the batch and the moments; dropout is off on both sides.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bench import plain
from bench.common import Options, Result, agree, caption_lengths, histogram, interleaved, ratio, spread
from dataset.batch import ImageTextBatch, MaskedText, TextBatch
from models.model import Model
from objectives import OBJECTIVES
from objectives.matching import match_logits, match_loss
from objectives.step import Step
from optim import OptimConfig, make_optimizer
from tasks.image_text import ImageText
from utils.config import build

PADDED, MEAN_LENGTH, SLOTS = 40, 18, 12
TOLERANCE = 1e-4


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


def make_task(sizes: Sizes) -> ImageText:
    """The task as a configuration builds it, without data."""
    torch.manual_seed(0)
    fusion = {"num_layers": sizes.fusion_layers}
    tree = {"image_encoder": sizes.image, "text_encoder": sizes.text, "text_fusion": fusion}
    model = Model(build(Model.Config, tree | {"has_masked_language_head": True}))
    objectives = {name: OBJECTIVES.load(name).Config() for name in ("itc", "itm", "mlm")}
    return ImageText(model, objectives, None, None)


def make_batch(task: ImageText, size: int) -> ImageTextBatch:
    """Random pictures with one caption each; a quarter of the words is masked, at most SLOTS."""
    generator = torch.Generator().manual_seed(0)
    config = task.model.config
    lengths = caption_lengths(size, MEAN_LENGTH, PADDED)
    is_real = torch.arange(PADDED)[None, :] < torch.tensor(lengths)[:, None]
    vocabulary = config.text_encoder.vocab_size
    ids = torch.randint(4, vocabulary - 1, (size, PADDED), generator=generator)
    ids = ids.masked_fill(~is_real, config.text_encoder.pad_id)
    positions, targets = torch.zeros(size, SLOTS, dtype=torch.long), torch.full((size, SLOTS), -100)
    for row, length in enumerate(lengths):
        count = min(SLOTS, max(1, length // 4))
        chosen = 1 + torch.randperm(length - 2, generator=generator)[:count].sort().values
        positions[row, :count], targets[row, :count] = chosen, ids[row, chosen]
    masked_ids = ids.clone()
    for row in range(size):
        masked_ids[row, positions[row][targets[row] >= 0]] = vocabulary - 1
    side = config.image_encoder.image_size
    images = torch.randint(0, 256, (size, 3, side, side), generator=generator).to(torch.uint8)
    number = torch.arange(size)
    masked = MaskedText(masked_ids, positions, targets)
    return ImageTextBatch(images, number, TextBatch(ids, lengths), number, torch.zeros_like(number), masked)


def plain_losses(task: ImageText, batch: ImageTextBatch, negatives: tuple[Tensor, Tensor] | None) -> dict[str, Tensor]:
    """The losses the original way; `negatives` (image of each text, text of each image) are drawn where absent."""
    model = task.model
    mask = torch.arange(batch.texts.ids.shape[1])[None, :] < torch.tensor(batch.texts.lengths)[:, None]
    images = model.encode_image(batch.images)
    hidden = plain.encode_text(model.text_encoder, batch.texts.ids, mask)
    text_embed = plain.embed_text(model, hidden, mask)
    temperature = model.temperature()
    itc = plain.contrastive_loss(images.embed, text_embed, temperature)
    of_texts, of_images = negatives or _draw_one_by_one(images.embed @ text_embed.T / temperature)
    positive = plain.match_logits(model, hidden, mask, images.tokens)
    negative = plain.match_logits(
        model,
        torch.cat([hidden, hidden[of_images]]),
        torch.cat([mask, mask[of_images]]),
        torch.cat([images.tokens[of_texts], images.tokens]),
    )
    logits = torch.cat([positive, negative])
    masked = batch.masked
    mlm = plain.word_loss(model, masked.ids, mask, images.tokens, masked.positions, masked.targets)
    return {"itc": itc, "itm": match_loss(logits, torch.ones(len(logits), dtype=torch.bool)), "mlm": mlm}


def _draw_one_by_one(similarity: Tensor) -> tuple[Tensor, Tensor]:
    """A hard negative for every text and every image, one draw and one copy to the host each."""
    with torch.no_grad():
        own = torch.eye(len(similarity), dtype=torch.bool)
        sides = [(side.softmax(dim=1) + 1e-5).masked_fill(own, 0) for side in (similarity.T, similarity)]
        of_texts, of_images = (torch.tensor([torch.multinomial(row, 1).item() for row in side]) for side in sides)
    return of_texts, of_images


def check(task: ImageText, batch: ImageTextBatch) -> str:
    """Every loss of both ways agrees, with the same negatives."""
    negatives = torch.arange(len(batch.image_id)).roll(1), torch.arange(len(batch.image_id)).roll(-1)
    with torch.no_grad():
        model = task.model
        images = model.encode_image(batch.images)
        texts = model.encode_text(batch.texts.ids, batch.texts.lengths)
        logits = match_logits(Step(model, batch, images, texts), batch.image_of_text, *negatives)
        ours = task(batch) | {"itm": match_loss(logits, torch.ones(len(logits), dtype=torch.bool))}
        expected = plain_losses(task, batch, negatives)
    return "; ".join(agree(ours[name], expected[name], TOLERANCE, name) for name in expected)


@torch.no_grad()
def update_one_by_one(optimizer: torch.optim.AdamW) -> None:
    """AdamW as the originals' library wrote it, on the moments of `optimizer`."""
    for group in optimizer.param_groups:
        beta1, beta2 = group["betas"]
        for parameter in group["params"]:
            state = optimizer.state[parameter]
            state["step"] += 1
            count = state["step"].item()
            state["exp_avg"].mul_(beta1).add_(parameter.grad, alpha=1 - beta1)
            state["exp_avg_sq"].mul_(beta2).addcmul_(parameter.grad, parameter.grad, value=1 - beta2)
            root = state["exp_avg_sq"].sqrt().add_(group["eps"])
            size = group["lr"] * (1 - beta2**count) ** 0.5 / (1 - beta1**count)
            parameter.addcdiv_(state["exp_avg"], root, value=-size)
            parameter.add_(parameter, alpha=-group["lr"] * group["weight_decay"])


def run(options: Options) -> list[Result]:
    """Row A5."""
    sizes = SMALL if options.is_small else BASE
    task = make_task(sizes).train()
    batch = make_batch(task, sizes.batch)
    words = check(task, batch)
    optimizer = make_optimizer(task, OptimConfig(lr=1e-6))

    def step(losses: Callable[[], dict[str, Tensor]], update: Callable[[], object]) -> None:
        sum(losses().values()).backward()
        update()
        optimizer.zero_grad()

    ways = {
        "ours": lambda: step(lambda: task(batch), optimizer.step),  # first, for it makes the moments
        "plain": lambda: step(lambda: plain_losses(task, batch, None), lambda: update_one_by_one(optimizer)),
    }
    seconds = interleaved(ways, options.repeats)
    return [
        Result(
            row="A5",
            what=f"image-text step, {'small' if options.is_small else 'CCLM-base'}, batch {sizes.batch}, fp32",
            plain=spread(seconds["plain"]),
            ours=spread(seconds["ours"]),
            ratio=f"{ratio(seconds['plain'], seconds['ours']):.2f}x",
            floor="1.35x",
            goal="1.55x",
            agreement=words,
            notes=[
                f"A5: {histogram(batch.texts.lengths)}; the plain step pads to {PADDED} and fills {SLOTS} mask slots"
            ],
        )
    ]


ROWS = {"A5": run}
