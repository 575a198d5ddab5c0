"""A9: a whole training step of a dual encoder (ViT-B/16 and BERT-base, ZeroVL's), in fp32 and in bf16; and the memory
of a decoupled step: a global batch in micro-batches against one plain micro-batch.

The plain step pads texts, materialises the softmax and updates parameter by parameter, always in fp32; both steps share
the image tower's code, the weights and the batch. Dropout is off on both sides.
"""

from __future__ import annotations

from types import SimpleNamespace
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
    extra_memory,
    interleaved,
    ratio,
    resident,
    spread,
)
from dataset.batch import ImageTextBatch, TextBatch
from models.model import Model
from objectives.contrastive import PairContrastive
from optim import OptimConfig, make_optimizer
from tasks.image_text import ImageText
from utils.allocator import give_back_freed_memory, keep_freed_memory
from utils.config import build
from utils.decoupled import Replay, decoupled_backward
from utils.precision import Precision, autocast, guarded_step

CPU = torch.device("cpu")
PADDED, MEAN_LENGTH = 25, 14  # tokens: ZeroVL's limit, and captions of web pictures
BERT = {"name": "bert", "vocab_size": 30522, "width": 768, "num_layers": 12, "num_heads": 12, "mlp_width": 3072,
        "max_positions": 512, "pad_id": 0, "dropout": 0.0, "attention_dropout": 0.0}  # fmt: skip
BASE = {"image_encoder": {"name": "vit"}, "text_encoder": BERT, "embed_dim": 512}
TINY = {
    "image_encoder": {"name": "vit", "image_size": 32, "patch_size": 16, "width": 32, "num_layers": 1, "num_heads": 2},
    "text_encoder": BERT | {"vocab_size": 200, "width": 32, "num_layers": 1, "num_heads": 2, "mlp_width": 64},
    "embed_dim": 32,
}


def make_task(tree: dict[str, Any]) -> ImageText:
    """The task as a configuration builds it, without data."""
    torch.manual_seed(0)
    config = PairContrastive.Config()
    model = Model(build(Model.Config, tree | {"temperature": {"initial": 0.05, "clamps": "used"}}))
    return ImageText(model, {config.name: config}, None, SimpleNamespace(headline="r_mean")).train()


def make_batch(task: ImageText, size: int, seed: int = 0) -> ImageTextBatch:
    """Random pictures with one caption each."""
    generator = torch.Generator().manual_seed(seed)
    config, side = task.model.config.text_encoder, task.model.config.image_encoder.image_size
    lengths = caption_lengths(size, MEAN_LENGTH, PADDED, seed)
    ids = torch.randint(4, config.vocab_size, (size, PADDED), generator=generator)
    ids = ids.masked_fill(torch.arange(PADDED)[None, :] >= torch.tensor(lengths)[:, None], config.pad_id)
    images = torch.randint(0, 256, (size, 3, side, side), generator=generator).to(torch.uint8)
    number = torch.arange(size)
    return ImageTextBatch(images, number, TextBatch(ids, lengths), number, torch.zeros_like(number))


def plain_loss(task: ImageText, batch: ImageTextBatch) -> Tensor:
    """The loss over padded texts, as the original computes it."""
    mask = torch.arange(PADDED)[None, :] < torch.tensor(batch.texts.lengths)[:, None]
    text = plain.embed_text(task.model, plain.encode_text(task.model.text_encoder, batch.texts.ids, mask), mask)
    return plain.contrastive_loss(task.model.encode_image(batch.images).embed, text, task.model.temperature())


def steps(options: Options) -> list[Result]:
    """Row A9."""
    keep_freed_memory()
    task = make_task(TINY if options.is_small else BASE)
    batch = make_batch(task, 8 if options.is_small else 16)
    found, expected = sum(task(batch).values()), plain_loss(task, batch)
    words = agree(found, expected, 1e-4, "loss")
    slow = torch.optim.AdamW([{"params": [p]} for p in task.parameters()], lr=0.0, foreach=False)
    fast = make_optimizer(task, OptimConfig(lr=0.0))

    def plainly() -> None:
        plain_loss(task, batch).backward()
        slow.step()
        slow.zero_grad()

    def ours(precision: Precision) -> None:
        with autocast(precision, CPU):
            loss = sum(task(batch).values())
        loss.backward()
        guarded_step(fast, torch.tensor(1.0), torch.tensor(0.0))
        fast.zero_grad()

    ways = {"plain": as_by_default(plainly), "fp32": lambda: ours("fp32"), "bf16": lambda: ours("bf16")}
    seconds = interleaved(ways, options.repeats, is_repeated=True)
    return [
        Result(
            row="A9",
            what=f"dual-encoder step in {precision}, batch {len(batch.image_id)}",
            plain=spread(seconds["plain"]),
            ours=spread(seconds[precision]),
            ratio=f"{ratio(seconds['plain'], seconds[precision]):.2f}x",
            floor=floor,
            goal=goal,
            agreement=words,
        )
        for precision, floor, goal in (("fp32", "1.1x", "1.3x"), ("bf16", "2.5x", "3.5x"))
    ]


def memory(options: Options) -> list[Result]:
    """The decoupled batch: what a step adds to the resident set, against a plain micro-batch."""
    task = make_task(TINY)
    global_batch, size = (256, 16) if options.is_small else (8192, 64)
    batches = [make_batch(task, size, seed) for seed in range(global_batch // size)]
    wrapped, scale = Replay(task), torch.tensor(1.0)

    def one() -> None:
        sum(task(batches[0]).values()).backward()
        task.zero_grad()

    def decoupled() -> None:
        decoupled_backward(wrapped, task, batches, device=CPU, autocast=lambda: autocast("fp32", CPU), scale=scale)

    one()  # buffers that every later step uses again
    give_back_freed_memory()
    held = resident()
    plain_bytes, our_bytes = extra_memory(one), extra_memory(decoupled)
    embed_bytes = 2 * 4 * global_batch * task.model.config.embed_dim  # fp32, images and texts
    times = (held + our_bytes - embed_bytes) / (held + plain_bytes)
    found = {name: p.grad.clone() for name, p in task.named_parameters() if p.grad is not None}
    task.zero_grad()
    embeds = [task.embed(batch) for batch in batches[:4]]
    joint = {side: torch.cat([each[side] for each in embeds]) for side in ("image", "text")}
    expected = torch.autograd.grad(sum(task.joint_losses(batches[:4], joint).values()), list(task.parameters()))
    task.zero_grad()
    decoupled_backward(wrapped, task, batches[:4], device=CPU, autocast=lambda: autocast("fp32", CPU), scale=scale)
    few = [p.grad for p in task.parameters()]
    words = max((agree(a, b, 1e-4, "gradient of 4 micro-batches") for a, b in zip(few, expected)), key=len)
    return [
        Result(
            row="decoupled",
            what=f"memory of a step: global batch {global_batch} in micro-batches of {size}, {len(found)} gradients",
            plain=f"{plain_bytes / 2**20:,.1f} MiB (one micro-batch)",
            ours=f"{our_bytes / 2**20:,.1f} MiB",
            ratio=f"{times:.2f}x of the whole process, beside the embeddings ({embed_bytes / 2**20:,.1f} MiB)",
            floor="1.3x",
            goal="1.3x",
            agreement=words,
        )
    ]


ROWS = {"A9": steps, "decoupled": memory}
