"""Decoupled accumulation learns as the large batch does: loss curves on the bundled emoji set, with the same batches,
weights and augmentations, without dropout.

Plain accumulation of the same micro-batches is the contrast: it sees the negatives of a micro-batch alone.
"""

from __future__ import annotations

import tempfile
from typing import Any

import torch

from bench.common import Options, Result, agree
from configs.schema import Config
from rosetta import ROOT
from tasks import TASKS
from trainer import Trainer
from utils.config import build

EMOJI = f"{ROOT}/assets/emoji/emoji_96px.zip::"
# Of the first losses. Later AdamW has enlarged rounding: there the distance of two initialisations is the measure.
NUM_FIRST, TOLERANCE = 10, 2e-3


def settings(batch_size: int, **train: Any) -> Config:
    """A small dual encoder on English names of emoji."""
    emoji = {"name": "captioned_images", "files": [f"{EMOJI}annotations/pretrain/train.jsonl"], "image_root": EMOJI,
             "image_key": "image", "languages": ["en"], "caption_num": 1}  # fmt: skip
    tree = {
        "task": "clip",
        "model": {
            "image_encoder": {"name": "vit", "image_size": 32, "patch_size": 8, "width": 64, "num_layers": 2,
                              "num_heads": 2, "class_token": False},
            "text_encoder": {"name": "bert", "vocab_size": 4000, "width": 64, "num_layers": 1, "num_heads": 2,
                             "mlp_width": 128, "max_positions": 64, "dropout": 0.0, "attention_dropout": 0.0,
                             "pooling": "mean"},
            "embed_dim": 32,
            "temperature": {"initial": 0.07, "clamps": "used"},
        },
        "objectives": {"nce": {}},
        "data": {
            "tokenizer": f"{ROOT}/assets/emoji/tokenizer.json",
            # Draws of whole steps, so that all ways take the same records in every epoch.
            "train": {"name": "mixture", "order": "debias", "sets": {"emoji": emoji}},
            "batches_per_draw": train.get("accumulate", 1),
            "train_transform": {"name": "shift", "max_shift": 2},
            "batch_size": batch_size,
            "max_tokens": 16,
        },
        "optim": {"lr": 1e-3, "eps": 1e-6},
        "schedule": {"name": "constant", "warmup": 0.2},
        "train": train,
    }  # fmt: skip
    return build(Config, tree)


def curve(num_steps: int, batch_size: int, model_seed: int = 0, **train: Any) -> torch.Tensor:
    """The loss of every step (S,)."""
    config = settings(batch_size, max_steps=num_steps, **train)
    torch.manual_seed(model_seed)
    task = TASKS.load(config.task).from_config(config, ("train",))
    options = {"output_dir": tempfile.gettempdir(), "seed": 0, "device": torch.device("cpu")}
    trainer = Trainer(config.train, task, config.optim, config.schedule, **options)
    batches, losses = trainer.stream(), []
    task.train()
    for step in range(num_steps):
        trainer.train_step(step, batches)
        losses.append(trainer.meter.report(batch_size)["loss"])
        trainer.meter.reset()
    return torch.tensor(losses)


def learning(options: Options) -> list[Result]:
    """Batches of 256 at once, and as 4 micro-batches of 64."""
    num_steps, size = (6, 32) if options.is_small else (80, 128)
    whole = curve(num_steps, size)
    decoupled = curve(num_steps, size // 4, accumulate=4, accumulate_decoupled=True)
    apart = curve(num_steps, size // 4, accumulate=4)
    noise = (curve(num_steps, size, model_seed=1) - whole).abs().mean()
    distance = (decoupled - whole).abs().mean()
    words = agree(decoupled[:NUM_FIRST], whole[:NUM_FIRST], TOLERANCE, f"first {NUM_FIRST} losses")
    agree(
        (distance - noise).clamp_min(0), torch.zeros(()), 0.0, f"distance of the curves beyond the noise of {noise:.3f}"
    )
    words += f"; mean distance {distance:.3f}, of two initialisations {noise:.3f}"
    every = max(1, num_steps // 10)

    def told(losses: torch.Tensor) -> str:
        return " ".join(f"{value:.2f}" for value in losses[::every].tolist())

    return [
        Result(
            row="curve",
            what=f"{num_steps} steps on emoji, batch {size} against 4 micro-batches of {size // 4}",
            plain=f"loss {whole[0]:.3f} -> {whole[-1]:.3f}",
            ours=f"loss {decoupled[0]:.3f} -> {decoupled[-1]:.3f}",
            ratio="-",
            floor="same curve",
            goal="same curve",
            agreement=words,
            notes=[
                f"curve, every {every} steps: at once {told(whole)}; decoupled {told(decoupled)}; "
                f"plain accumulation, which has fewer negatives, {told(apart)}"
            ],
        )
    ]


ROWS = {"curve": learning}
