"""Optimizer, schedule, precision, and when to evaluate and save, from CCLM's and CCRK's files."""

from __future__ import annotations

from typing import Any

from compat.original import Original
from utils.config import ConfigError
from utils.config_tree import plain, type_name

PRECISIONS = {"O0": "fp32", "O1": "fp16", "O2": "fp16", "O3": "fp16"}
ACCELERATOR_KEYS = {
    "SYNCBN", "FP16_OPT_LEVEL", "FP16_LOSS_SCALE", "RNG_SEED", "GRAD_ACCUMULATE_STEPS", "CLIP_GRAD_NORM"
}  # fmt: skip


def training_settings(original: Original, kind: str, notices: list[str]) -> dict[str, Any]:
    """Our settings by dotted key, for one of the kinds of `compat.cclm`."""
    optimizer = original.section("optimizer", {"opt", "lr", "weight_decay", "lr_mult"})
    schedule = original.section("schedular", {"sched", "lr", "epochs", "num_warmup_steps"})
    for value, allowed, key in (
        (optimizer.get("opt"), "adamW", "optimizer.opt"),
        (schedule.get("sched"), "linear", "schedular.sched"),
    ):
        if value is not None and value != allowed:
            place = original.place(key.partition(".")[0])
            raise ConfigError(f"{place}: '{key}' must be {allowed}, found {type_name(value)}")
    test = original.node("test_file")
    return {
        "optim.lr": schedule.get("lr", optimizer.get("lr")),
        "optim.weight_decay": optimizer.get("weight_decay"),
        "optim.flavour": "hf",
        "optim.decays_vectors": True,
        "optim.no_decay": ["bias", r"norm(_pre|[12])?\.weight$"],
        **_fresh_rate(optimizer.get("lr_mult"), kind),
        "schedule.warmup": schedule.get("num_warmup_steps"),
        "train.epochs": schedule.get("epochs"),
        "train.first_evaluation_epoch": original.node("start_eval"),
        "train.eval_every_epochs": original.node("eval_interval"),
        # Few-shot files watch the test set and have no other: there the best weights would be chosen on the test.
        "train.keeps_best": False if test is not None and not plain(test) else None,
        "train.save_every_epochs": original.node("ckpt_frequent"),
        "train.save_every_steps": original.node("ckpt_frequent_step"),
        **_accelerator_settings(original, notices),
    }


def _fresh_rate(factor: float | None, kind: str) -> dict[str, Any]:
    """Which parameters train at lr times lr_mult, and what no checkpoint need hold."""
    if kind in ("pretraining", "questions"):
        return {"optim.fresh_lr_multiplier": factor}
    if kind not in ("labels", "picture_pairs"):
        return {}  # the originals' retrieval programs give the factor to nothing
    settings: dict[str, Any] = {
        "optim.lr_multipliers": None if factor is None else {r"classifier\.": factor},
        "init.allow_missing": ["classifier."],
    }
    # Only likeness of pictures is read from the projection: it gets no gradient.
    return settings | ({"optim.frozen": [r"image_projection\."]} if kind == "picture_pairs" else {})


def _accelerator_settings(original: Original, notices: list[str]) -> dict[str, Any]:
    """Apex's keys in today's terms."""
    keys = original.section("accelerator", ACCELERATOR_KEYS)
    if not keys:
        return {}
    level = keys.get("FP16_OPT_LEVEL", "O0")
    if level not in PRECISIONS:
        raise ConfigError(
            f"{original.place('accelerator')}: 'accelerator.FP16_OPT_LEVEL' cannot be {type_name(level)}; "
            f"allowed: {', '.join(PRECISIONS)}"
        )
    clip, accumulate = keys.get("CLIP_GRAD_NORM", 0.0), keys.get("GRAD_ACCUMULATE_STEPS", 1)
    notices.append(
        f"accelerator: FP16_OPT_LEVEL {level} is precision {PRECISIONS[level]}, CLIP_GRAD_NORM {clip} and "
        f"GRAD_ACCUMULATE_STEPS {accumulate} are kept; SYNCBN, FP16_LOSS_SCALE and RNG_SEED have no counterpart"
    )
    return {
        "train.precision": PRECISIONS[level],
        "train.clip_norm": max(0.0, float(clip)),
        "train.accumulate": accumulate,
    }
