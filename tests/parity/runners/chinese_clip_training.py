"""Chinese-CLIP's training loop: groups, updates, clamping of the temperature, schedule."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

import rosetta
from compat.chinese_clip_flags import FROZEN_VISION
from compat.chinese_clip_sizes import model_section
from compat.flags import nested
from compat.weights import read_progress, tensors_of, translate
from configs.schema import Config, load_settings
from models.model import Model
from objectives.contrastive import PairContrastive
from optim import OptimConfig, freeze, make_optimizer, set_learning_rate
from scheduler import ScheduleConfig, learning_rate_factor
from tasks.image_text import ImageText
from tests.parity.runners.chinese_clip_losses import decoupled_step, make_batch, plain_step
from tests.parity.runners.chinese_clip_model import own_state, written
from tests.parity.runners.common import Case, assert_close, read_case
from utils.checkpoint import read_weights
from utils.config import build, to_tree
from utils.config_tree import merge, plain
from utils.precision import guarded_step
from utils.wrapping import load_moments

# Of the fixtures' README: losses 2e-4, final parameter norms 2e-3 relative; without those whose gradient is zero but
# for rounding, which Adam turns into steps.
LOSS, NORM = 2e-4, 2e-3
# Weights one epoch after a resume; with moments begun anew they would differ by 1e-2.
RESUMED = 1e-5


def is_noise(name: str) -> bool:
    return name.endswith(("attention.self.key.bias", "attn.in_proj_bias", "attnpool.k_proj.bias"))


def recipe(hyper: dict[str, Any]) -> Config:
    """Our settings of the vision model's trainer."""
    name = "rn50" if hyper.get("vision_model") == "RN50" else "vit_b_16"
    return load_settings(rosetta.ROOT / f"configs/chinese_clip/{name}.yaml")


def run_train(folder: Path) -> None:
    case = read_case(folder)
    hyper, expected = case.config["_hparams"], case.outputs
    settings = recipe(hyper)
    task, optim = make_task(folder, case, settings.optim)
    schedule = replace(settings.schedule, warmup=hyper["warmup"])
    optimizer = make_optimizer(task, optim)
    size, count = hyper["batch_size"], hyper["accum_freq"]
    parts = list(zip(case.inputs["images"].split(size), case.inputs["texts"].split(size), strict=True))
    losses, scales, per_epoch, step = [], [], [], 0
    for _ in range(hyper["epochs"]):
        for first in range(0, len(parts) // count * count, count):
            if step == hyper["total_steps"]:
                break
            factor = learning_rate_factor(schedule, step, hyper["total_steps"])
            assert abs(optim.lr * factor - float(expected["lrs"][step])) <= 1e-9
            set_learning_rate(optimizer, optim, factor, step)
            batches = [make_batch(*part) for part in parts[first : first + count]]
            scales += [task.model.temperature.log_scale.item()] * count
            loss = plain_step(task, batches[0]) if count == 1 else decoupled_step(task, batches, repeats=True)
            losses += [loss] * count
            guarded_step(optimizer, torch.tensor(1.0), torch.tensor(0.0))
            task.after_step()
            step += 1
        per_epoch.append(task.model.temperature.log_scale.item())
    assert step == int(expected["steps_done"])
    assert_close(torch.stack(losses), expected["losses"], "losses", LOSS)
    assert_close(torch.tensor(scales), expected["logit_scale_at_each_loss"], "logit_scale_at_each_loss", LOSS)
    assert_close(torch.tensor(per_epoch), expected["logit_scale_after_each_epoch"], "logit_scale after epochs", LOSS)
    check_final(written(task.model), expected)


def make_task(folder: Path, case: Case, optim: OptimConfig) -> tuple[ImageText, OptimConfig]:
    """The task in training mode, and the case's optimizer."""
    hyper = case.config["_hparams"]
    tree: Any = nested({"model": model_section(case.config)}, "case")
    if hyper.get("freeze_vision"):
        tree = merge(tree, nested(FROZEN_VISION, "case"))
        optim = replace(optim, frozen=FROZEN_VISION["optim.frozen"])
    tree = plain(tree)["model"]
    model = Model(build(Model.Config, tree))
    model.load_state_dict(translate(own_state(folder, case), tree).state)
    if "logit_scale_start" in hyper:
        model.temperature.log_scale.data.fill_(hyper["logit_scale_start"])
    task = ImageText(model, {"nce": PairContrastive.Config()}, None, SimpleNamespace(headline="r_mean")).train()
    freeze(task, optim.frozen)
    betas = [hyper["beta1"], hyper["beta2"]]
    return task, replace(optim, lr=hyper["lr"], weight_decay=hyper["wd"], betas=betas, eps=hyper["eps"])


def run_resumed_training(folder: Path) -> None:
    """From a file of the original's trainer, moments and all, onward as it went on itself."""
    case = read_case(folder)
    hyper, expected = case.config["_hparams"], case.outputs
    content = read_weights(next(folder.glob("epoch*.pt")))
    case.state = tensors_of(content)
    settings = recipe(hyper)
    task, optim = make_task(folder, case, settings.optim)
    optimizer, schedule = make_optimizer(task, optim), replace(settings.schedule, warmup=hyper["warmup"])
    progress = read_progress(content, to_tree(task.model.config))
    moments = {f"model.{name}": value for name, value in progress.moments.items()}
    load_moments(task, optimizer, moments, progress.num_updates)
    assert (progress.epoch, progress.step, progress.num_updates) == (
        hyper["first_epochs"],
        content["step"],
        content["step"],
    )
    size, count = hyper["batch_size"], hyper["accum_freq"]
    batches = [make_batch(*pair) for pair in zip(*(case.inputs[name].split(size) for name in ("images", "texts")))]
    losses, step = [], progress.step
    for epoch in range(progress.epoch, hyper["epochs"]):
        for first in range(0, len(batches) // count * count, count):
            factor = learning_rate_factor(schedule, step, hyper["total_steps"])
            set_learning_rate(optimizer, optim, factor, step)
            group = batches[first : first + count]
            loss = plain_step(task, group[0]) if count == 1 else decoupled_step(task, group, repeats=True)
            losses += [loss] * count
            guarded_step(optimizer, torch.tensor(1.0), torch.tensor(0.0))
            task.after_step()
            step += 1
        if epoch == progress.epoch:
            wanted = {n.replace("next.", "final."): v for n, v in expected.items() if n.startswith("next.")}
            check_final(written(task.model), wanted, RESUMED)
    assert step == int(expected["steps_done"])
    assert_close(torch.stack(losses), expected["losses"], "losses", LOSS)
    check_final(written(task.model), expected)


def check_final(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = NORM) -> None:
    for key, value in expected.items():
        kind, _, name = key.partition(".")
        if kind == "final_norm" and not is_noise(name):
            norm = float(found[name].float().norm())
            assert abs(norm - float(value)) <= tolerance * float(value), (
                f"{key}: {norm:.8g}, expected {float(value):.8g}"
            )
        elif kind == "final" and not is_noise(name):
            assert (found[name] - value).float().norm() <= tolerance * value.float().norm(), key


def run_schedule(folder: Path) -> None:
    warm = load_settings(rosetta.ROOT / "configs/chinese_clip/vit_b_16.yaml").schedule
    for name, case in json.loads((folder / "schedule.json").read_text(encoding="utf-8")).items():
        schedule: ScheduleConfig = replace(warm, warmup=case["warmup"])
        for step, expected in enumerate(case["lr"]):
            found = case["base_lr"] * learning_rate_factor(schedule, step, case["total_steps"])
            assert abs(found - expected) <= 1e-9 * case["base_lr"], (name, step, found, expected)


KINDS = {
    ("chinese_clip", "resumed_training"): run_resumed_training,
    ("chinese_clip", "schedule"): run_schedule,
    ("chinese_clip", "train"): run_train,
}
