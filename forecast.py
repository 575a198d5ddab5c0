"""What a run will cost: parameters, arithmetic, memory and time, from a few steps of it that leave nothing behind."""

from __future__ import annotations

import math
import resource
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from tempfile import TemporaryDirectory
from textwrap import indent
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from tasks import TASKS
from trainer import Trainer
from utils.config import ConfigError
from utils.distributed import is_main, world_size
from utils.precision import autocast

if TYPE_CHECKING:
    from configs.schema import Config

MIN_STEPS, MAX_STEPS, MIN_SECONDS = 3, 20, 3.0
LONGEST_PERIOD = 12  # of objectives that take part in some steps only


@dataclass(frozen=True)
class StepCost:
    """A step of one process. executed and useful: floating-point operations, the useful ones without padded rows and
    without the pass of decoupled accumulation that is computed again.
    """

    seconds: float
    waited: float
    executed: float
    useful: float

    def extended(self, longer: StepCost, times: int) -> StepCost:
        """This step with `times` as much more as `longer` has."""
        return StepCost(*(a + times * (b - a) for a, b in zip(self.values(), longer.values(), strict=True)))

    def values(self) -> tuple[float, ...]:
        return tuple(getattr(self, field.name) for field in fields(self))


@dataclass(frozen=True)
class Memory:
    """Bytes of one process; peak is what it held at most, on the accelerator or as a whole."""

    weights: int
    gradients: int
    optimizer: int
    peak: int


@dataclass(frozen=True)
class Forecast:
    """The cost of a run. num_parameters: by part of the model."""

    num_parameters: dict[str, int]
    num_trained: int
    step: StepCost
    memory: Memory
    measured_batches: int  # of the `accumulate` batches of a step
    accumulate: int
    steps_per_epoch: float
    total_steps: int
    padding_share: float

    @property
    def seconds(self) -> float:
        """The whole run without evaluations and checkpoints."""
        return self.step.seconds * self.total_steps

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {number(count)}" for name, count in self.num_parameters.items())
        total, memory, step = sum(self.num_parameters.values()), self.memory, self.step
        scaled = f", scaled from {self.measured_batches} of {self.accumulate} batches"
        lines = {
            "parameters": f"{number(total)} ({parts}), trained {number(self.num_trained)}",
            "FLOPs": f"{number(step.useful)} useful, {number(step.executed)} executed per step and process; "
            f"{self.padding_share:.0%} of the tokens would be padding, which is not computed",
            "memory": f"{size(memory.weights)} weights, {size(memory.gradients)} gradients, "
            f"{size(memory.optimizer)} optimizer, {size(memory.peak)} in all at the peak",
            "step": f"{step.seconds:.3g} s, {step.waited / max(step.seconds, 1e-9):.0%} of it waiting for data"
            + (scaled if self.measured_batches < self.accumulate else ""),
            "epoch": f"{self.steps_per_epoch:,.1f} steps, {duration(step.seconds * self.steps_per_epoch)}",
            "run": f"{self.total_steps:,} steps, {duration(self.seconds)} without evaluations and checkpoints",
        }
        return "".join(f"{name:<12}{words}\n" for name, words in lines.items())


def forecast(config: Config, device: torch.device) -> Forecast:
    """The cost of a configuration's training in this process, alone or as one of a group; weights stay random."""
    try:
        task = TASKS.load(config.task).from_config(config, ("train",))
    except (ValueError, OSError) as error:
        raise ConfigError(str(error)) from error
    with TemporaryDirectory() as folder:  # a trainer wants one; these steps write nothing to it
        options = {"output_dir": folder, "seed": config.seed, "device": device}
        trainer = Trainer(config.train, task, config.optim, config.schedule, **options)
    accumulate, batches = config.train.accumulate, trainer.stream()
    trainer.task.train()
    period = math.lcm(*(objective.every_steps for objective in config.objectives.values()))
    cost = [measure(trainer, batches, num, min(period, LONGEST_PERIOD)) for num in range(1, min(accumulate, 2) + 1)]
    measured = cost[-1] if accumulate <= 2 else cost[0].extended(cost[1], accumulate - 1)
    num_held = accumulate - len(cost) if config.train.accumulate_decoupled else 0
    return Forecast(
        count_parameters(task),
        sum(p.numel() for p in trainer.parameters),
        measured,
        measure_memory(trainer, device, num_held * num_bytes(next(batches)) if device.type == "cpu" else 0),
        len(cost),
        accumulate,
        trainer.steps_per_epoch,
        trainer.total_steps,
        1 - trainer.meter.num_tokens / max(1, trainer.meter.num_padded_tokens),
    )


def measure(trainer: Trainer, batches: Iterator[Any], accumulate: int, period: int) -> StepCost:
    """The mean cost of a step of so many batches, over whole periods of the objectives."""
    settings = trainer.config
    trainer.config = replace(settings, accumulate=accumulate)
    executed = statistics.fmean(count_step(trainer, batches) for _ in range(period))
    useful = executed
    if trainer.device.type == "cpu" and settings.precision == "bf16":  # only there rows are added to texts
        trainer.config = replace(trainer.config, precision="fp32")
        useful = statistics.fmean(count_step(trainer, batches) for _ in range(period))
    if settings.accumulate_decoupled:
        useful -= accumulate * count_first_pass(trainer, next(batches))
    trainer.config = replace(settings, accumulate=accumulate)
    seconds, waited = time_steps(trainer, batches, period)
    trainer.config = settings
    return StepCost(seconds, waited, executed, useful)


def count_step(trainer: Trainer, batches: Iterator[Any]) -> float:
    """Operations of the next step."""
    with FlopCounterMode(display=False) as counter:
        trainer.train_step(trainer.state.step, batches)
    trainer.state.step += 1
    return float(counter.get_total_flops())


def count_first_pass(trainer: Trainer, batch: Any) -> float:
    """Operations that decoupled accumulation does for a batch before it knows the loss."""
    batch = batch.to(trainer.device)
    with (
        torch.no_grad(),
        autocast(trainer.config.precision, trainer.device),
        FlopCounterMode(display=False) as counter,
    ):
        trainer.task.embed(batch)
    return float(counter.get_total_flops())


def time_steps(trainer: Trainer, batches: Iterator[Any], period: int) -> tuple[float, float]:
    """Seconds of a step, and those of them spent waiting for data; means over whole periods."""
    synchronise(trainer.device)
    waited, started, num_steps = trainer.meter.waited_seconds, time.perf_counter(), 0
    while num_steps < MAX_STEPS and (num_steps < MIN_STEPS or time.perf_counter() - started < MIN_SECONDS):
        for _ in range(period):
            trainer.train_step(trainer.state.step, batches)
            trainer.state.step += 1
        num_steps += period
        synchronise(trainer.device)
    return (time.perf_counter() - started) / num_steps, (trainer.meter.waited_seconds - waited) / num_steps


def measure_memory(trainer: Trainer, device: torch.device, held: int) -> Memory:
    """What the process holds, and at most held; `held` bytes of batches would come to it in a whole step."""
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    state = [value for entry in trainer.optimizer.state.values() for value in entry.values()]
    return Memory(
        weights=sum(map(tensor_bytes, trainer.task.state_dict().values())),
        gradients=sum(map(tensor_bytes, trainer.parameters)),
        optimizer=sum(tensor_bytes(value) for value in state if isinstance(value, Tensor)),
        peak=peak + held,
    )


def count_parameters(task: nn.Module) -> dict[str, int]:
    """Numbers of the model's parts, in its order; a part that two share counts once."""
    counts: dict[str, int] = {}
    for name, parameter in task.named_parameters():
        part = name.removeprefix("model.").split(".")[0]
        counts[part] = counts.get(part, 0) + parameter.numel()
    return counts


def num_bytes(batch: Any) -> int:
    """Bytes of all tensors of a batch, or of the batches of several streams."""
    if isinstance(batch, Tensor):
        return tensor_bytes(batch)
    if isinstance(batch, list):
        return sum(map(num_bytes, batch))
    return sum(num_bytes(getattr(batch, field.name)) for field in fields(batch)) if is_dataclass(batch) else 0


def tensor_bytes(x: Tensor) -> int:
    return x.numel() * x.element_size()


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def number(value: float) -> str:
    """Three digits and a decimal prefix: 86.4 M."""
    for factor, unit in ((1e15, " P"), (1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= factor:
            return f"{value / factor:.3g}{unit}"
    return f"{value:.3g}"


def size(value: float) -> str:
    return f"{value / 2**30:.2f} GiB" if value >= 2**30 else f"{value / 2**20:.1f} MiB"


def duration(seconds: float) -> str:
    """Hours, minutes or seconds, whichever is readable."""
    if seconds >= 2 * 86400:
        return f"{seconds / 86400:.1f} days"
    if seconds >= 2 * 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.1f} min" if seconds >= 120 else f"{seconds:.1f} s"


def told_by_main(config: Config, device: torch.device, *, mark: str = "") -> str:
    """The forecast as text, each line behind the mark; all processes take part, the main one has something to say."""
    found = forecast(config, device)
    return indent(f"processes   {world_size()}\n{found}", mark) if is_main() else ""
