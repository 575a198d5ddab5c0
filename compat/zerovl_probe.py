"""ZeroVL's linear probe: its configuration file and overrides as settings of our tool."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from compat.zerovl import image_steps, is_original
from compat.zerovl_defaults import PUBLISHED, knows, resolve
from utils.config import ConfigError
from utils.config_tree import Node, located, plain, read_file

TASK = "linear_prob"
# What our tool does in one way only: the original's setting, and the one value that it may have.
FIXED = {
    "model.name": TASK,
    "optim.name": "LARS",
    "optim.lr.name": "cosine_schedule_with_warmup",
    "optim.grad_clip": {},
    "optim.param_group_rules": {},
    "model.image_encoder.trainable": False,
    "loss.extra_losses": [],
}


def split_words(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """`key=value` words in our keys alone, and those in the original's; `data` alone is ours, `data.data_path` not."""

    def is_theirs(word: str) -> bool:
        key = word.partition("=")[0].strip()
        return key == "epoch" or ("." in key and knows(key, TASK))

    return [word for word in words if not is_theirs(word)], [word for word in words if is_theirs(word)]


def original_file(config: str | None) -> Node | None:
    """The original's settings that a --config names: its file, or the published one's content where no file is."""
    if not config:
        return None
    path = Path(config)
    if path.is_file():
        tree = read_file(path)
        return tree if is_original(tree) else None
    return located(PUBLISHED[path.name], config) if path.name in PUBLISHED else None


def settings_of(tree: Node, words: Sequence[str]) -> dict[str, Any]:
    """The tool's settings for an original file under overrides in the original's keys."""
    try:
        original = resolve(plain(tree), words, TASK)
    except ConfigError as error:
        raise ConfigError(str(error) if "command line" in str(error) else f"{tree.place}: {error}") from error
    for key, wanted in FIXED.items():
        found: Any = original
        for part in key.split("."):
            found = found[part]
        if found != wanted:
            raise ConfigError(f"{tree.place}: {key} must be {wanted!r} for --task {TASK}, found {found!r}")
    optim, data, transforms = original["optim"], original["data"], original["transforms"]
    epochs, warmup = original["epoch"], optim["lr"]["warmup_proportion"]
    if epochs is None or not original["ckpt"]["external_resume"]:
        raise ConfigError(f"{tree.place}: 'epoch' and 'ckpt.external_resume' are needed; one of them is not set")
    if optim["lr"]["warmup_epoch"] is not None:
        warmup = optim["lr"]["warmup_epoch"] / epochs
    settings = {
        "data": data["data_path"],
        "checkpoint": original["ckpt"]["external_resume"],
        "output_dir": original["ckpt"]["dir"],
        "train_transform": image_steps(transforms, "train_transforms"),
        "val_transform": image_steps(transforms, "valid_transforms"),
        **transforms["normalize"],
        "epochs": epochs,
        "batch_size": data["batch_size"],
        "lr": float(optim["lr"]["init"]),
        "warmup": float(warmup),
        "cycles": float(optim["lr"]["param"].get("num_cycles", 0.5)),
        "momentum": float(optim["param"].get("momentum", 0.0)),
        "weight_decay": float(optim["param"].get("weight_decay", 0.0)),
        "evaluate_every_epochs": original["runner"]["val_interval"],
        "precision": "fp16" if original["dist"]["fp16"] else "fp32",
        "num_workers": data["num_workers"],
        "seed": original["seed"],
    }
    return {key: value for key, value in settings.items() if value is not None}
