"""R2D2's YAML files, config/retrieval_*.yaml and config/matching_*.yaml, as trees of ours.

Each of them stands for one of our configurations, which hold the same recipe; what its keys say is laid over that.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compat.flags import nested
from utils.config import ConfigError
from utils.config_tree import Node, join, plain, read_tree
from utils.registry import nearest

ROOT = Path(__file__).resolve().parent.parent
# Their names of the sets: our name, and the files of train, val and test below ann_path.
DATA = {
    "flickrcna": (
        "flickr_cna",
        ("train/flickr30k_cna_train.txt", "val/flickr30k_cna_val.txt", "test/flickr30k_cna_test.txt"),
    ),
    "icr": ("icr", ("train/long_itr_train.json", "val/long_itr_val.json", "val/long_itr_val.json")),
    "iqr": ("iqr", ("train/short_itr_train.json", "val/short_itr_val.json", "val/short_itr_val.json")),
    "icm": ("icm", ("train/long_itm_train.json", "val/long_itm_val.json", "val/long_itm_val.json")),
    "iqm": ("iqm", ("train/short_itm_train.json", "val/short_itm_val.json", "val/short_itm_val.json")),
}
MATCHING = ("icm", "iqm")
# Two spellings in the same place: matching_icm_large.yaml has the second.
ALIASES = {"model_type": "vit_type", "checkpoint": "pretrained_model", "num_epochs": "num_epoch"}
BATCH_KEYS = ("train_batch_size", "batch_size_train", "batch_size")
KNOWN_KEYS = {
    "data", "vit_type", "image_size", "image_path", "ann_path", "pretrained_model", "num_epoch", "base_lr", "min_lr",
    "weight_decay", "warmup_lr", "warmup_steps", "top_k", "test_batch_size", "valid_batch_size", "num_workers", "gpus",
    "model_name", "max_words", "prompt", *ALIASES, *BATCH_KEYS,
}  # fmt: skip
# They name what the data set or the program decides, or are read by nobody.
WITHOUT_EFFECT = {"model_name", "max_words", "prompt"}


def is_original(tree: Node) -> bool:
    """Whether a file is written in R2D2's keys."""
    return "data" in tree.value and not isinstance(tree.value["data"].value, dict) and "image_path" in tree.value


def translate_config(
    tree: Node, path: Path, world_size: int, _placeholders: Mapping[str, str], _task: str | None
) -> tuple[Node, list[str]]:
    """Our tree for an original file, and the lines of notice. Batch sizes there are per process, ours over all."""
    keys = _keys(tree)
    name = _choice(keys, tree, "data", DATA)
    vit = _choice(keys, tree, "vit_type", ("base", "large")) if "vit_type" in keys else "large"
    ours, files = DATA[name]
    notices = [f"{path}: {ours}_{vit} of R2D2; what it says is laid over configs/r2d2/{ours}_{vit}.yaml"]
    if "gpus" in keys:
        notices.append(f"gpus: {plain(keys['gpus'])} chooses nothing here; --dist and --device do")
    settings = {
        **_data_settings(keys, files),
        **_common_settings(keys, world_size),
        **(_matching_settings(keys) if name in MATCHING else _retrieval_settings(keys)),
    }
    given = {key: value for key, value in settings.items() if value is not None}
    base = read_tree(ROOT / "configs" / "r2d2" / f"{ours}_{vit}.yaml")
    return join(base, [nested(given, tree.place)]), notices


def _keys(tree: Node) -> dict[str, Node]:
    """The values by key, aliases brought to one spelling."""
    keys: dict[str, Node] = {}
    for key, node in tree.value.items():
        if key not in KNOWN_KEYS:
            close = nearest(key, KNOWN_KEYS)
            hint = f"did you mean '{close}'?" if close else f"allowed: {', '.join(sorted(KNOWN_KEYS))}"
            raise ConfigError(f"{node.place}: unknown key '{key}'; {hint}")
        keys[ALIASES.get(key, key)] = node
    return {key: node for key, node in keys.items() if key not in WITHOUT_EFFECT}


def _choice(keys: dict[str, Node], tree: Node, key: str, allowed: Any) -> str:
    node = keys.get(key)
    if node is None or node.value not in allowed:
        found = "it is missing" if node is None else f"found '{node.value}'"
        raise ConfigError(f"{(node or tree).place}: '{key}' must be one of {', '.join(allowed)}; {found}")
    return node.value


def _number(keys: dict[str, Node], key: str) -> float | None:
    """The number at a key; YAML 1.1 takes 3e-6 for a word."""
    node = keys.get(key)
    if node is None:
        return None
    try:
        return float(node.value)
    except (TypeError, ValueError):
        raise ConfigError(f"{node.place}: '{key}' must be a number, found '{node.value}'") from None


def _count(keys: dict[str, Node], key: str) -> int | None:
    number = _number(keys, key)
    if number is not None and number != int(number):
        raise ConfigError(f"{keys[key].place}: '{key}' must be a whole number, found {number}")
    return None if number is None else int(number)


def _data_settings(keys: dict[str, Node], files: tuple[str, str, str]) -> dict[str, Any]:
    """Where captions and pictures lie."""
    settings: dict[str, Any] = {}
    for split, file in zip(("train", "val", "test"), files, strict=True):
        if "ann_path" in keys:
            settings[f"data.{split}.files"] = {"zh": str(Path(str(keys["ann_path"].value)) / file)}
        if "image_path" in keys:
            settings[f"data.{split}.image_root"] = keys["image_path"].value
    return settings


def _common_settings(keys: dict[str, Node], world_size: int) -> dict[str, Any]:
    batch_size = next((_count(keys, key) for key in BATCH_KEYS if key in keys), None)
    pretrained = keys.get("pretrained_model")
    return {
        "init.checkpoint": pretrained.value or None if pretrained else None,
        "model.image_encoder.image_size": _count(keys, "image_size"),
        "data.batch_size": batch_size and batch_size * world_size,
        "data.num_workers": _count(keys, "num_workers"),
        "optim.lr": _number(keys, "base_lr"),
        "optim.weight_decay": _number(keys, "weight_decay"),
        "schedule.warmup": _count(keys, "warmup_steps"),
        "train.epochs": _count(keys, "num_epoch"),
    }


def _retrieval_settings(keys: dict[str, Node]) -> dict[str, Any]:
    """Start and end of the schedule are shares of the peak in ours."""
    peak = _number(keys, "base_lr") or 1e-5
    ends = {"schedule.start": _number(keys, "warmup_lr"), "schedule.floor": _number(keys, "min_lr")}
    return {
        **{key: None if value is None else round(value / peak, 12) for key, value in ends.items()},
        "evaluation.num_candidates": _count(keys, "top_k"),
        "evaluation.batch_size_image": _count(keys, "test_batch_size"),
    }


def _matching_settings(keys: dict[str, Node]) -> dict[str, Any]:
    return {"evaluation.batch_size": _count(keys, "valid_batch_size")}
