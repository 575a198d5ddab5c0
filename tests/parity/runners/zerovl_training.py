"""ZeroVL's training: LARS, schedules, and the first steps of a run."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from compat import zerovl_rules
from objectives.step import Step
from optim import GroupRule, OptimConfig, make_optimizer, set_learning_rate
from scheduler import ScheduleConfig, learning_rate_factor
from tasks.image_text import ImageText, join_batches
from tests.parity.runners.common import Case, assert_close, read_case
from tests.parity.runners.zerovl_losses import decoupled_step, make_task, original_tensors, plain_step
from tests.parity.runners.zerovl_model import make_batch
from utils.config import to_tree
from utils.lars import Lars
from utils.precision import guarded_step

SCHEDULES = {
    "cosine_schedule_with_warmup_min_lr_scale": "cosine",
    "cosine_schedule_with_warmup": "cosine",
    "linear_schedule_with_warmup": "linear",
    "constant_schedule_with_warmup": "constant",
    "constant_schedule": "constant",
    "multi_step_schedule_with_warmup": "steps",
}
TRAJECTORY_TOLERANCE = 1e-4  # of losses and final weights, absolute (the fixtures' README)


def run_lr_schedules(folder: Path) -> None:
    for case in json.loads((folder / "cases.json").read_text(encoding="utf-8")):
        config = schedule(case["name"], case["param"], case["num_warmup_steps"])
        for step, expected in enumerate(case["lr_at_step"]):
            found = case["base_lr"] * learning_rate_factor(config, step, case["num_training_steps"])
            assert abs(found - expected) <= 1e-9 * case["base_lr"], (case["name"], step, found, expected)


def schedule(name: str, param: dict[str, Any], warmup: int | float) -> ScheduleConfig:
    """Our schedule for an original's name and parameters."""
    has_floor = name.endswith("min_lr_scale")
    return ScheduleConfig(
        name=SCHEDULES[name],
        warmup=0 if name == "constant_schedule" else warmup,
        floor=param.get("min_lr_scale", 0.01) if has_floor else 0.0,
        cycles=param.get("num_cycles", 0.5),
        milestones=param.get("milestone_steps", []),
        gamma=param.get("gamma", 0.1),
    )


def run_lars(folder: Path) -> None:
    case = read_case(folder)
    for variant in case.config["variants"]:
        parameters = [nn.Parameter(case.inputs[f"p{k}"].clone()) for k in range(case.config["n"])]
        options = {"momentum": 0.0} | variant["kw"]
        options["is_nesterov"] = options.pop("nesterov", False)
        excluded = set(variant.get("exclude", []))
        groups = [{"params": [p], "is_adapted": k not in excluded} for k, p in enumerate(parameters)]
        optimizer = Lars(groups, **options)
        for step in range(case.config["steps"]):
            for group in optimizer.param_groups:
                group["lr"] = variant["lrs"][step] if "lrs" in variant else options["lr"]
            for k, parameter in enumerate(parameters):
                parameter.grad = case.inputs[f"g{k}"][step].clone()
            guarded_step(optimizer, torch.tensor(1.0), torch.tensor(0.0))
            for k, parameter in enumerate(parameters):
                where = f"{variant['name']}.p{k}.step{step}"
                assert_close(parameter, case.outputs[where], where)


def run_trajectory(folder: Path) -> None:
    case = read_case(folder)
    for variant in case.config["variants"]:
        check_trajectory(case, variant)


def check_trajectory(case: Case, variant: dict[str, Any]) -> None:
    config, name = case.config, variant["name"]
    expected = {n.removeprefix(f"{name}."): v for n, v in case.outputs.items() if n.startswith(f"{name}.")}
    task = make_task(config, variant, case.state)
    total = config["epochs"] * config["steps_per_epoch"]
    param = {"num_cycles": 0.5, "min_lr_scale": config.get("min_lr_scale", 0.1)}
    plan = schedule("cosine_schedule_with_warmup_min_lr_scale", param, config["warmup_proportion"])
    optim = OptimConfig(
        lr=config["lr"], weight_decay=variant.get("weight_decay", 0.001), betas=[0.9, 0.98], eps=1e-6,
        decays_vectors=True, no_decay=[], rules=group_rules(variant.get("rules", {}), to_tree(task.model.config)),
    )  # fmt: skip
    optimizer = make_optimizer(task, optim)
    inner = getattr(next(iter(task.objectives.values())), "objective", None)
    for step in range(total):
        factor = learning_rate_factor(plan, step, total)
        assert abs(config["lr"] * factor - float(expected["lr"][step])) <= 1e-6 * config["lr"], (name, step)
        set_learning_rate(optimizer, optim, factor, step)
        inputs = [case.inputs[n][step % config["steps_per_epoch"]] for n in ("image", "input_ids", "attention_mask")]
        if variant["runner"] == "dga":
            size = config["batch_size_train"]
            parts = [[x[start : start + size] for x in inputs] for start in range(0, len(inputs[0]), size)]
            batches = [make_batch(*part) for part in parts]
            loss = unmixed_loss(task, inner, batches)
            decoupled_step(task, batches)
        else:
            loss = plain_step(task, make_batch(*inputs))
        assert abs(loss.item() - float(expected["loss"][step])) <= TRAJECTORY_TOLERANCE, (name, step, loss.item())
        if "alpha" in expected and task.mixup is not None:
            mix = task.mixup.draw(step)
            assert abs(mix.share - float(expected["alpha"][step])) < 1e-6 and mix.is_image == expected["is_image"][step]
        guarded_step(optimizer, torch.tensor(1.0), torch.tensor(0.0))
        optimizer.zero_grad()
        task.after_step()
    final = original_tensors(task, task.model.state_dict())
    for key, value in expected.items():
        if key.startswith("final."):
            found = final[key.removeprefix("final.")]
            assert float((found.reshape(value.shape) - value).abs().max()) <= TRAJECTORY_TOLERANCE, (name, key)
    for key, norm in zip(config["param_order"], expected["final_norms"].tolist()):
        if key in final:
            assert abs(float(final[key].norm()) - norm) <= TRAJECTORY_TOLERANCE * max(1.0, norm), (name, key)


def unmixed_loss(task: ImageText, inner: Any, batches: list[Any]) -> torch.Tensor:
    """The loss that the original reports: of the mixed embeddings with the unmixed targets."""
    if inner is None:
        inner = next(iter(task.objectives.values()))
    with torch.no_grad():
        embeds = [task.embed(batch) for batch in batches]
        joint = {side: torch.cat([each[side] for each in embeds]) for side in ("image", "text")}
    step = task_step(task, join_batches(batches, torch.device("cpu")), joint)
    return inner(step)


def task_step(task: ImageText, batch: Any, joint: dict[str, torch.Tensor]) -> Step:
    images, texts = (SimpleNamespace(embed=joint[side]) for side in ("image", "text"))
    return Step(task.model, batch, images, texts)


def group_rules(rules: dict[str, Any], model: dict[str, Any]) -> list[GroupRule]:
    """Rules on original names as rules on ours."""
    return [
        GroupRule(rule["match"], rule.get("lr"), rule.get("weight_decay"))
        for rule in zerovl_rules.group_rules(rules, model, "rules")
    ]


KINDS = {
    ("zerovl", "lars"): run_lars,
    ("zerovl", "lr_schedules"): run_lr_schedules,
    ("zerovl", "trajectory"): run_trajectory,
}
