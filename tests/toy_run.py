"""A training program around a tiny task, for tests that kill, stop and resume it: toy_run.py '{"output_dir": ...}'.

Keys: output_dir; train, optim, schedule (fields of the configs); slow_writes (seconds around each part of writing a
checkpoint); bad_steps (batches whose loss is not a number); nproc; dropout; seconds_per_step;
seconds_per_evaluation; seen (a file).
"""

import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from optim import OptimConfig
from scheduler import ScheduleConfig
from trainer import TrainConfig, Trainer
from utils import checkpoint, distributed, run_state
from utils.logger import setup_logging


@dataclass
class ToyBatch:
    x: Tensor
    indices: list[int]
    is_bad: bool = False

    @property
    def num_tokens(self) -> int:
        return len(self.x)

    @property
    def num_padded_tokens(self) -> int:
        return 2 * len(self.x)

    def to(self, device: torch.device, non_blocking: bool = False) -> "ToyBatch":
        return ToyBatch(self.x.to(device), self.indices, self.is_bad)


class ToyLoader:
    """Numbers in an order by seed and epoch; global batches of which a rank takes its share."""

    def __init__(self, rank: int, world_size: int, bad_steps: set[int]) -> None:
        self.rank, self.world_size, self.bad_steps = rank, world_size, bad_steps
        self.batch_size, self.size = 4, 32
        self.epoch, self.consumed = 0, 0

    def __len__(self) -> int:
        return self.size // self.batch_size

    def __iter__(self):
        order = torch.randperm(self.size, generator=torch.Generator().manual_seed(self.epoch)).tolist()
        while True:
            step = self.epoch * len(self) + self.consumed // self.batch_size
            batch = order[self.consumed : self.consumed + self.batch_size]
            self.consumed += self.batch_size
            own = batch[self.rank :: self.world_size]
            if self.consumed == self.size:
                self.epoch, self.consumed = self.epoch + 1, 0
            yield ToyBatch(torch.tensor(own)[:, None] / self.size, own, step in self.bad_steps)
            if self.consumed == 0:
                return

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "consumed": self.consumed}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.epoch, self.consumed = state["epoch"], state["consumed"]


class ToyTask(nn.Module):
    """Learns a sine through a layer with dropout; keeps a running mean as a buffer and notes what it was shown."""

    headline = "fit"

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__()
        self.settings = settings
        self.layers = nn.ModuleList([nn.Linear(1, 8), nn.Linear(8, 8)])
        self.dropout, self.head = nn.Dropout(settings.get("dropout", 0.2)), nn.Linear(8, 1)
        self.register_buffer("mean", torch.zeros(1))

    def predict(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = self.dropout(layer(x).tanh())
        return self.head(x)

    def forward(self, batch: ToyBatch) -> dict[str, Tensor]:
        time.sleep(self.settings.get("seconds_per_step", 0))
        if "seen" in self.settings:
            with open(f"{self.settings['seen']}.{distributed.rank()}", "a", encoding="utf-8") as file:
                file.write("".join(f"{index}\n" for index in batch.indices))
        loss = (self.predict(batch.x) - (6 * batch.x).sin()).square().mean()
        if batch.is_bad:
            loss = loss * torch.nan
        return {"square": loss, "size": 1e-3 * self.head.weight.square().sum()}

    def before_training(self, steps_per_epoch: float) -> None:
        pass

    def after_step(self) -> None:
        self.mean.lerp_(torch.full_like(self.mean, self.mean.item() + 1), 0.5)

    def train_loader(self, rank: int, world_size: int) -> ToyLoader:
        return ToyLoader(rank, world_size, set(self.settings.get("bad_steps", ())))

    def evaluate(self, split: str) -> dict[str, Any]:
        time.sleep(self.settings.get("seconds_per_evaluation", 0))
        torch.rand(1)  # what an evaluation draws must not show in training
        x = torch.linspace(0, 1, 9)[:, None]
        return {"mean": {"fit": -(self.predict(x) - (6 * x).sin()).square().mean().item()}}

    def headline_value(self, metrics: dict[str, Any]) -> float:
        return metrics["mean"][self.headline]

    def statistics(self) -> dict:
        return {}

    def fresh_parameters(self) -> set[str]:
        return set()


def make_trainer(settings: dict[str, Any]) -> Trainer:
    torch.manual_seed(0)
    return Trainer(
        TrainConfig(**{"epochs": 2, "log_every_steps": 3, "save_every_steps": 2, **settings.get("train", {})}),
        ToyTask(settings),
        OptimConfig(**{"lr": 0.01, **settings.get("optim", {})}),
        ScheduleConfig(**settings.get("schedule", {})),
        output_dir=settings["output_dir"],
        seed=3,
        device=torch.device("cpu"),
    )


def slow_down(seconds: float) -> None:
    """Makes every step of writing a checkpoint take a while, so that a kill falls into it."""

    def slowly(function):
        def wait_and_call(*arguments, **keywords):
            time.sleep(seconds)
            result = function(*arguments, **keywords)
            time.sleep(seconds)
            return result

        return wait_and_call

    run_state.write_weights = slowly(run_state.write_weights)
    checkpoint.hash_file = slowly(checkpoint.hash_file)
    checkpoint.sync_folder = slowly(checkpoint.sync_folder)
    checkpoint.os = OsWithSlowReplace(seconds)


class OsWithSlowReplace:
    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __getattr__(self, name: str) -> Any:
        if name == "replace":
            time.sleep(self.seconds)
        return getattr(os, name)


def main(text: str) -> int:
    settings = json.loads(text)
    if settings.get("nproc", 1) > 1:
        argv = [__file__, json.dumps(settings | {"nproc": 1})]
        return distributed.launch(argv, nproc=settings["nproc"])
    if settings.get("slow_writes"):
        slow_down(settings["slow_writes"])
    torch.set_num_threads(1)
    distributed.setup(torch.device("cpu"))
    setup_logging(is_main=distributed.is_main())
    try:
        metrics = make_trainer(settings).fit()
    finally:
        distributed.shutdown()
    if os.environ.get("RANK", "0") == "0":
        (Path(settings["output_dir"]) / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
