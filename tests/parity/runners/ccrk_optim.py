"""CCRK's optimizer and schedule: rates by step, AdamW's arithmetic, clipping."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from optim import OptimConfig, make_optimizer, set_learning_rate
from scheduler import ScheduleConfig, learning_rate_factor


def run_optimizer_schedule(case: Path) -> None:
    config = json.loads((case / "config.json").read_text(encoding="utf-8"))
    inputs, outputs = load_file(case / "inputs.safetensors"), load_file(case / "outputs.safetensors")
    for schedule in config["schedules"].values():
        check_schedule(schedule)
    check_adamw(config["adamw"], inputs, outputs)
    check_clipping(inputs, outputs)


def check_schedule(schedule: dict) -> None:
    total_steps = schedule["spe"] * schedule["epochs"]
    ours = ScheduleConfig(name="linear", warmup=schedule["warm"])
    for step, lr in enumerate(schedule["lr_at_step"]):
        found = schedule["lr"] * learning_rate_factor(ours, step, total_steps)
        assert abs(found - lr) <= 1e-9 * schedule["lr"], (step, found, lr)


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
