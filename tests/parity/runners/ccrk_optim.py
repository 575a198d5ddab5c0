"""CCRK's optimizer and schedule: rates by step, parameter groups, AdamW's arithmetic, clipping."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from compat import cclm_weights
from models.model import Model
from optim import OptimConfig, make_groups, make_optimizer, set_learning_rate
from scheduler import ScheduleConfig, learning_rate_factor
from tasks.image_text import ImageText
from utils.config import build, read_yaml

ROOT = Path(__file__).resolve().parents[3]


def run_optimizer_schedule(case: Path) -> None:
    config = json.loads((case / "config.json").read_text(encoding="utf-8"))
    inputs, outputs = load_file(case / "inputs.safetensors"), load_file(case / "outputs.safetensors")
    for schedule in config["schedules"].values():
        check_schedule(schedule)
    check_recorded_groups(config["pretrain_groups"], "pretrain")
    check_recorded_groups(config["finetune_groups"], "finetune")
    check_adamw(config["adamw"], inputs, outputs)
    check_clipping(inputs, outputs)


def check_schedule(schedule: dict) -> None:
    total_steps = schedule["spe"] * schedule["epochs"]
    ours = ScheduleConfig(name="linear", warmup=schedule["warm"])
    for step, lr in enumerate(schedule["lr_at_step"]):
        found = schedule["lr"] * learning_rate_factor(ours, step, total_steps)
        assert abs(found - lr) <= 1e-9 * schedule["lr"], (step, found, lr)


def check_recorded_groups(groups: list[dict[str, Any]], stage: str) -> None:
    """The groups of CCRK's models under the settings that it ships."""
    expected = {name: (group["lr"], group["weight_decay"]) for group in groups for name in group["names"]}
    tree = model_tree(set(expected))
    holder = nn.Module()
    holder.model = Model(build(Model.Config, tree))
    settings = read_yaml(ROOT / "configs/base/ccrk.yaml")["optim"]
    multiplier = read_yaml(ROOT / "configs/base/ccrk_pretrain.yaml")["optim"]["fresh_lr_multiplier"]
    config = build(OptimConfig, settings | {"fresh_lr_multiplier": multiplier if stage == "pretrain" else 1})
    config = with_recorded_values(config, expected)
    check_groups(expected, holder, tree, config, ImageText.fresh_parameters(holder), stage)


def with_recorded_values(config: OptimConfig, expected: dict[str, tuple[float, float]]) -> OptimConfig:
    """The shipped rules with the case's decay and, wherever they let a parameter learn faster, the case's factor."""
    rates, decays = zip(*expected.values(), strict=True)
    factor = max(rates) / min(rates)
    return replace(
        config,
        weight_decay=max(decays),
        fresh_lr_multiplier=1.0 if config.fresh_lr_multiplier == 1 else factor,
        lr_multipliers={rule: 1.0 if value == 1 else factor for rule, value in config.lr_multipliers.items()},
    )


def check_groups(
    expected: dict[str, tuple[float, float]],
    holder: nn.Module,
    tree: dict[str, Any],
    config: OptimConfig,
    fresh: set[str],
    stage: str,
) -> None:
    """Every original parameter of holder.model is in the group of the same rate and decay."""
    config = replace(config, lr=min(lr for lr, _ in expected.values()))
    ours = make_groups(holder, config, fresh)
    # Each of our tensors is filled with its group's number and translated: originals then show which group they are in.
    tags = {
        name.removeprefix("model."): torch.full_like(parameter.detach(), number)
        for number, group in enumerate(ours)
        for name, parameter in group["params"]
    }
    theirs = cclm_weights.to_checkpoint(holder.model.state_dict() | tags, tree, stage)
    for name, (lr, decay) in expected.items():
        group = ours[int(theirs[name].flatten()[0])]
        assert abs(group["lr"] - lr) <= 1e-9 * lr and group["weight_decay"] == decay, (name, group["lr"], lr, decay)


def model_tree(names: set[str]) -> dict[str, Any]:
    """The smallest model with the layers that the names tell of."""
    layers = {int(n) for name in names for n in re.findall(r"encoder\.layer\.(\d+)\.", name)}
    fused = {int(n) for name in names for n in re.findall(r"layer\.(\d+)\.crossattention", name)}
    blocks = {(int(a), int(b)) for name in names for a, b in re.findall(r"layers\.(\d+)\.blocks\.(\d+)\.", name)}
    depths = [max(b for a, b in blocks if a == stage_number) + 1 for stage_number in sorted({a for a, _ in blocks})]
    sizes = {"width": 8, "num_heads": 2, "mlp_width": 16}
    return {
        "image_encoder": {"name": "swin", "image_size": 96, "window_size": 3, "width": 8, "depths": depths,
                          "num_heads": [1, 2, 2, 4][: len(depths)]},
        "text_encoder": {"name": "bert", "vocab_size": 12, "max_positions": 8, "pad_id": 1,
                         "num_layers": len(layers - fused), **sizes},
        "text_fusion": {"num_layers": len(fused)},
        "embed_dim": 8,
        "has_masked_language_head": any(".cls." in name for name in names),
    }  # fmt: skip


def check_adamw(adamw: dict, inputs: dict[str, Tensor], outputs: dict[str, Tensor]) -> None:
    names = [name for name in adamw if name.startswith("p_")]
    for name in names:
        parameter = nn.Parameter(inputs[name].clone())
        module = nn.ParameterDict({name: parameter})
        config = OptimConfig(
            lr=adamw[name]["lr"],
            weight_decay=adamw[name]["weight_decay"],
            betas=adamw["betas"],
            eps=adamw["eps"],
            flavour="hf",
            decays_vectors=True,
        )
        optimizer = make_optimizer(module, config)
        steps = sorted(int(key.rpartition("/")[2]) for key in outputs if key.startswith(f"{name}/"))
        for step in steps:
            parameter.grad = inputs[f"grad{name.removeprefix('p')}/{step}"].clone()
            set_learning_rate(optimizer, config, 1.0, step)
            optimizer.step()
            torch.testing.assert_close(parameter.data, outputs[f"{name}/{step}"], rtol=1e-6, atol=1e-7)


def check_clipping(inputs: dict[str, Tensor], outputs: dict[str, Tensor]) -> None:
    from utils.precision import clip_divisor, gradient_norm

    shapes = [outputs["clip/0"].shape, outputs["clip/1"].shape]
    gradients = [inputs["grad_nodecay/0"], inputs["grad_decay/0"]]
    parameters = [nn.Parameter(torch.zeros(shape)) for shape in shapes]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient[tuple(slice(size) for size in parameter.shape)].clone()
    norm = gradient_norm(parameters)
    torch.testing.assert_close(norm.reshape(1), outputs["clip/total_norm"], rtol=1e-6, atol=0)
    for i, parameter in enumerate(parameters):
        clipped = parameter.grad / clip_divisor(norm, 1.0)
        torch.testing.assert_close(clipped, outputs[f"clip/{i}"], rtol=1e-6, atol=1e-8)


KINDS = {("ccrk", "optimizer_schedule"): run_optimizer_schedule}
