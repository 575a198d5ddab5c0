"""The only training loop. It counts steps, and knows a task only as something that gives losses, batches and metrics.

A step: `accumulate` batches forward and backward, norm over all ranks, clipped update that skips itself where the norm
is not finite, then - when due - a log line, an evaluation, a checkpoint. The schedule moves on at skipped steps, too.
A loader of several streams hands out a list of batches for a step: each is an update of its own at the step's rate.
"""

import itertools
import logging
import signal
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from optim import OptimConfig, counted_updates, freeze, make_optimizer, set_learning_rate
from scheduler import ScheduleConfig, learning_rate_factor
from utils.decoupled import Replay, decoupled_backward
from utils.distributed import STOPPED_STATUS, any_true, is_main, rank, world_size
from utils.logger import MetricsFile, TensorBoardSink, WandbSink, flat_numbers, progress_bar
from utils.meters import Meter
from utils.precision import LossScale, Precision, autocast, clip_divisor, gradient_norm, guarded_step
from utils.random_state import capture_random_state, restore_random_state, seed_random_state
from utils.run_state import Progress, RunState
from utils.wrapping import Wrap, gradient_exchange, whole_parameters, wrap_module

log = logging.getLogger(__name__)


@dataclass
class TrainConfig:
    """How long, in which numbers, and when to log, evaluate and save."""

    epochs: int = 1
    max_steps: int = 0  # 0: as many as the epochs have
    accumulate: int = 1  # batches per step
    # One contrastive batch of all `accumulate` batches, at the memory of one of them (utils/decoupled.py).
    accumulate_decoupled: bool = False
    # `repeated`: the temperature's gradient `accumulate` times, as in Chinese-CLIP's accum_freq.
    decoupled_parameter_gradient: Literal["exact", "repeated"] = "exact"
    precision: Precision = "fp32"
    clip_norm: float = 0.0  # 0: no clipping
    log_every_steps: int = 50
    eval_every_epochs: int = 1  # 0: no evaluation at the end of epochs
    eval_every_steps: int = 0
    first_evaluation_epoch: int = 0  # epochs are counted from 0
    save_every_epochs: int = 1
    save_every_steps: int = 0
    keep_checkpoints: int = 1  # the newest ones, beside the best
    test_weights: Literal["best", "last"] = "best"  # which weights the final test takes
    keeps_best: bool = True  # False where all that is watched is the test set, which must not choose weights
    wrap: Wrap = "ddp"
    find_unused_parameters: bool = False
    max_skipped_steps: int = 20  # so many in a row without a finite gradient end the run
    compile: bool = False
    tensorboard: bool = False
    wandb_project: str = ""

    def __post_init__(self) -> None:
        for name in ("epochs", "accumulate", "log_every_steps", "keep_checkpoints", "max_skipped_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, found {getattr(self, name)}")
        if self.accumulate_decoupled and self.wrap == "fsdp2":
            raise ValueError("accumulate_decoupled replays batches under DDP; allowed for wrap: ddp, none")
        not_negative = ("max_steps", "clip_norm", "eval_every_epochs", "eval_every_steps", "first_evaluation_epoch")
        for name in (*not_negative, "save_every_epochs", "save_every_steps"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, found {getattr(self, name)}")


class Trainer:
    """Trains a task (see tasks/task.py) and keeps everything that a run needs to continue in output_dir/checkpoints."""

    def __init__(
        self,
        config: TrainConfig,
        task: nn.Module,
        optim: OptimConfig,
        schedule: ScheduleConfig,
        *,
        output_dir: str | Path,
        seed: int,
        device: torch.device,
    ) -> None:
        self.config, self.optim, self.schedule = config, optim, schedule
        self.output_dir, self.seed, self.device = Path(output_dir), seed, device
        self.task = task.to(device)
        freeze(task, optim.frozen)
        if config.compile:
            task.compile()
        fresh = task.fresh_parameters()
        self.loader = task.train_loader(rank(), world_size())
        self.steps_per_epoch = len(self.loader) / config.accumulate
        task.before_training(self.steps_per_epoch)
        trained = Replay(task) if config.accumulate_decoupled else task
        self.wrapped = wrap_module(trained, config.wrap, device, find_unused=config.find_unused_parameters)
        self.parameters = [parameter for parameter in task.parameters() if parameter.requires_grad]
        self.optimizer = make_optimizer(task, optim, fresh)
        self.total_steps = config.max_steps or int(config.epochs * self.steps_per_epoch)
        if self.total_steps < 1:
            batches = f"{config.epochs} epochs of {len(self.loader)} batches"
            raise ValueError(f"{batches} are less than one step of {config.accumulate} (train.accumulate)")
        self.meter = Meter()
        self.loss_scale = LossScale(config.precision, device)
        self.num_skipped = torch.zeros((), device=device)  # in a row, up to now
        self.num_skipped_in_all = torch.zeros((), device=device)
        self.num_updates: Counter[str] = Counter()  # by parameter: a stream need not reach all of them
        self.state = RunState(self)
        self.stop_signal = 0

    def fit(self, progress: Progress | None = None) -> dict[str, Any]:
        """Train to the end, from the last checkpoint if there is one; the metrics of the test split and the time taken.

        progress: of another program's run, which a run without a checkpoint goes on from. Leaves with status 75 after
        SIGTERM or SIGINT, when everything is saved.
        """
        seed_random_state(self.seed, 0, rank())
        log_bytes = self.state.resume()
        if progress is not None:
            self.state.adopt(progress)
        self.open_logs(log_bytes)
        previous = {kind: signal.signal(kind, self._note_signal) for kind in (signal.SIGTERM, signal.SIGINT)}
        try:
            self.train()
            return self.test()
        finally:
            for kind, handler in previous.items():
                signal.signal(kind, handler)
            self.close_logs()

    def train(self) -> None:
        """All remaining steps."""
        if self.state.awaits_evaluation and self.is_due("eval"):
            self.evaluate()
        batches = self.stream()
        self.task.train()
        self.meter.started = started = time.perf_counter()
        for step in range(self.state.step, self.total_steps):
            norm = self.train_step(step, batches)
            self.state.step = step + 1
            self.state.train_seconds += time.perf_counter() - started
            started = time.perf_counter()
            self.bar.update()
            if self.state.step % self.config.log_every_steps == 0 or self.state.step == self.total_steps:
                self.log_step(norm)
            is_save_due = self.is_due("save") or self.state.step == self.total_steps
            if is_save_due:
                self.state.save()  # first: whoever stops the process need not wait for an evaluation
            is_best = self.is_due("eval") and self.evaluate()
            if is_best and not is_save_due:
                self.state.save()
            if any_true(bool(self.stop_signal)):
                self.leave()

    def train_step(self, step: int, batches: Iterator[Any]) -> Tensor:
        """The updates of a step, mostly one; the norm () of the last one's gradient before clipping."""
        factor = learning_rate_factor(self.schedule, step, self.total_steps, self.steps_per_epoch)
        set_learning_rate(self.optimizer, self.optim, factor, step)
        for own_batches in self.sub_steps(batches):
            norm = self.sub_step(iter(own_batches))
        self.task.after_step()
        return norm

    def sub_steps(self, batches: Iterator[Any]) -> Iterator[Iterable[Any]]:
        """For each update of a step the batches that it takes: with several streams one batch of a stream each."""
        waiting = time.perf_counter()
        first = next(batches)
        self.meter.waited_seconds += time.perf_counter() - waiting
        if isinstance(first, list):
            yield from ([batch] for batch in first)
        else:
            yield itertools.chain([first], batches)

    def sub_step(self, batches: Iterator[Any]) -> Tensor:
        """One update; the norm () of its gradient before clipping."""
        if self.config.accumulate_decoupled:
            self.decoupled_backward(batches)
            return self.update()
        for k in range(self.config.accumulate):
            waiting = time.perf_counter()
            batch = next(batches)
            waited = time.perf_counter() - waiting
            batch = batch.to(self.device, non_blocking=True)
            with gradient_exchange(self.wrapped, is_wanted=k == self.config.accumulate - 1):
                with autocast(self.config.precision, self.device):
                    parts = self.wrapped(batch)
                    loss = torch.stack([part.float() for part in parts.values()]).sum()
                (loss * self.loss_scale.scale / self.config.accumulate).backward()
            self.meter.add(parts, batch, waited, self.task.statistics())
        return self.update()

    def decoupled_backward(self, batches: Iterator[Any]) -> None:
        """Gradients of `accumulate` batches as one."""
        waiting = time.perf_counter()
        taken = [next(batches) for _ in range(self.config.accumulate)]
        waited = time.perf_counter() - waiting
        parts = decoupled_backward(
            self.wrapped,
            self.task,
            taken,
            device=self.device,
            autocast=lambda: autocast(self.config.precision, self.device),
            scale=self.loss_scale.scale,
            repeats_parameter_gradient=self.config.decoupled_parameter_gradient == "repeated",
        )
        for batch in taken:
            self.meter.add(parts, batch, waited / len(taken), self.task.statistics())

    def update(self) -> Tensor:
        """Apply the gradients if they are finite on all ranks, and forget them; their norm ()."""
        norm = gradient_norm(self.parameters) / self.loss_scale.scale
        is_bad = 1 - norm.isfinite().float()
        with counted_updates(self.optimizer, self.optim, self.num_updates):
            guarded_step(self.optimizer, self.loss_scale.scale * clip_divisor(norm, self.config.clip_norm), is_bad)
        self.optimizer.zero_grad(set_to_none=True)
        self.loss_scale.update(is_bad)
        self.num_skipped = (self.num_skipped + is_bad) * is_bad
        self.num_skipped_in_all = self.num_skipped_in_all + is_bad
        return norm

    def stream(self) -> Iterator[Any]:
        """Batches without end; the loader knows its own place in the epochs."""
        while True:
            num_batches = 0
            for batch in self.loader:
                num_batches += 1
                yield batch
            if not num_batches:
                raise ValueError("the training data has no batch")

    def is_due(self, what: Literal["eval", "save"]) -> bool:
        """Whether evaluation or saving is scheduled after the current step."""
        config, step = self.config, self.state.step
        every_steps, every_epochs = {
            "eval": (config.eval_every_steps, config.eval_every_epochs),
            "save": (config.save_every_steps, config.save_every_epochs),
        }[what]
        num_epochs = int(step / self.steps_per_epoch + 1e-9)
        epoch = int((step - 1) / self.steps_per_epoch + 1e-9)  # that the step belongs to
        if what == "eval" and epoch < config.first_evaluation_epoch and step < self.total_steps:
            return False
        ends_epoch = num_epochs > epoch
        at_epoch = every_epochs > 0 and ends_epoch and num_epochs % every_epochs == 0
        return at_epoch or (every_steps > 0 and step % every_steps == 0)

    def log_step(self, norm: Tensor) -> None:
        """Report the means since the last report; ends a run whose gradients stay without finite values."""
        record = {
            "kind": "train",
            "step": self.state.step,
            "epoch": self.state.step / self.steps_per_epoch,
            **self.meter.report(self.loader.batch_size),
            "lr": self.optim.lr
            * learning_rate_factor(self.schedule, self.state.step - 1, self.total_steps, self.steps_per_epoch),
            "grad_norm": norm.item(),
            "skipped_steps": int(self.num_skipped_in_all.item()),
        }
        self.meter.reset()
        self.write(record)
        num_skipped = int(self.num_skipped.item())
        if num_skipped >= self.config.max_skipped_steps:
            raise ValueError(
                f"step {self.state.step}: the last {num_skipped} steps had gradients that are not finite and were "
                "skipped, train.max_skipped_steps allows no more; lower optim.lr or set train.clip_norm"
            )

    def evaluate(self) -> bool:
        """Evaluate the validation split; whether it is the best up to now."""
        metrics = self.run_evaluation("val")
        value, is_best = None, False
        if metrics:
            value = self.task.headline_value(metrics)
            log.info("step %d: %s on validation %.4g", self.state.step, self.task.headline, value)
            is_best = self.config.keeps_best and (self.state.best_value is None or value > self.state.best_value)
        self.state.note_evaluation(value if is_best else None)
        return is_best

    def run_evaluation(self, split: str) -> dict[str, Any]:
        """The metrics of a split, also written to the log; training draws on as if there had been none."""
        random_state = capture_random_state(self.device)
        self.task.eval()
        with whole_parameters(self.task), torch.no_grad(), autocast(self.config.precision, self.device):
            metrics = self.task.evaluate(split)
        self.task.train()
        restore_random_state(random_state, self.device)
        if metrics:
            self.write({"kind": "eval", "split": split, "step": self.state.step, "metrics": metrics})
        self.meter.started = time.perf_counter() if not self.meter.num_batches else self.meter.started
        return metrics

    def test(self) -> dict[str, Any]:
        """The final metrics: the test split with the best or the last weights."""
        if self.config.test_weights == "best" and self.state.best_step not in (None, self.state.step):
            log.info("testing the weights of step %d, the best on validation", self.state.best_step)
            self.state.load_best_weights()
        return {"test": self.run_evaluation("test"), "train_seconds": round(self.state.train_seconds, 1)}

    def leave(self) -> None:
        """Save and end the process because a signal asked for it."""
        self.state.save()
        if is_main():
            log.warning("stopped by a signal at step %d; the same command continues", self.state.step)
        raise SystemExit(STOPPED_STATUS)

    def _note_signal(self, number: int, _frame: Any) -> None:
        self.stop_signal = number
        signal.signal(number, signal.SIG_DFL)  # a second one ends the process at once

    def open_logs(self, log_bytes: int) -> None:
        """The metrics file and the sinks; they exist on the main process only."""
        self.bar = progress_bar(self.total_steps, self.state.step, is_shown=is_main())
        self.metrics_file, self.sinks = None, []
        if not is_main():
            return
        self.metrics_file = MetricsFile(self.output_dir / "metrics.jsonl", log_bytes)
        if self.config.tensorboard:
            self.sinks.append(TensorBoardSink(self.output_dir))
        if self.config.wandb_project:
            self.sinks.append(WandbSink(self.output_dir, self.config.wandb_project))

    def close_logs(self) -> None:
        """Close whatever `open_logs` opened."""
        self.bar.close()
        for sink in [self.metrics_file, *self.sinks] if self.metrics_file else []:
            sink.close()

    def write(self, record: dict[str, Any]) -> None:
        """Hand a record to the metrics file, the sinks and the log."""
        if self.metrics_file is None:
            return
        for sink in (self.metrics_file, *self.sinks):
            sink.write(record)
        if record["kind"] == "train":
            numbers = flat_numbers({key: value for key, value in record.items() if key not in ("step", "epoch")})
            told = "  ".join(f"{name} {value:.4g}" for name, value in numbers.items())
            log.info("step %d/%d  %s", record["step"], self.total_steps, told)
