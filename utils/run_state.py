"""What a run must remember to go on exactly where it stopped, and the way of it to the disk and back."""

from __future__ import annotations

import logging
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from utils.checkpoint import (
    RANKS,
    TRAINING,
    WEIGHTS,
    CheckpointError,
    CheckpointFolder,
    read_pickle,
    read_weights,
    write_weights,
)
from utils.distributed import broadcast_object, gather_objects, is_main, rank, world_size
from utils.random_state import capture_random_state, restore_random_state, seed_random_state
from utils.wrapping import load_moments, load_whole_optimizer, load_whole_weights, whole_state

log = logging.getLogger(__name__)


@dataclass
class Progress:
    """How far another program had come: AdamW's moments by parameter and the number of updates behind them, finished
    epochs and steps; what is not known is empty.
    """

    moments: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    num_updates: int = 0
    epoch: int | None = None
    step: int = 0


class RunState:
    """Counters of a run, and its checkpoints. `run` is the trainer, whose parts are saved and restored in place."""

    def __init__(self, run: Any) -> None:
        self.run = run
        self.folder = CheckpointFolder(run.output_dir / "checkpoints")
        self.step = 0
        self.best_value: float | None = None
        self.best_step: int | None = None
        self.train_seconds = 0.0
        self.saved_step = self.evaluated_step = -1

    def save(self) -> None:
        """Write a checkpoint of the current step; on failure the older ones stay as they are."""
        if self.saved_step == self.step:
            return
        weights, optimizer = whole_state(self.run.task, self.run.optimizer)
        own = {"random": capture_random_state(self.run.device), "meter": self.run.meter.state_dict()}
        ranks = gather_objects(own)
        fault = self._write(weights, optimizer, ranks) if is_main() else None
        fault = broadcast_object(fault)
        if fault:
            raise CheckpointError(f"the checkpoint of step {self.step} could not be written ({fault}); older ones stay")
        self.saved_step = self.step

    @property
    def awaits_evaluation(self) -> bool:
        """Whether the run was stopped after saving, before the evaluation of this step (if one is due) had ended."""
        return 0 < self.step != self.evaluated_step

    def note_evaluation(self, best_value: float | None) -> None:
        """The evaluation of this step has ended, best_value: its value if it is the best up to now.

        What a checkpoint of this step could not know yet is written beside it.
        """
        self.evaluated_step = self.step
        if best_value is not None:
            self.best_value, self.best_step = best_value, self.step
        if self.saved_step == self.step and is_main():
            known = {"step": self.step, "best": [self.best_value, self.best_step]}
            self.folder.write_note({**known, "log_bytes": self.run.metrics_file.sync()})
            if self.best_step == self.step:
                self.folder.point("best", self.step)
                self.folder.prune(self.run.config.keep_checkpoints)

    def _write(self, weights: dict[str, Any], optimizer: dict[str, Any], ranks: list[Any]) -> str | None:
        """The main process's part of `save`; what went wrong, or None."""
        try:
            folder = self.folder.begin(self.step)
            write_weights(weights, folder / WEIGHTS)
            torch.save(self._training_state(optimizer), folder / TRAINING)
            torch.save(ranks, folder / RANKS)
            self.folder.commit(folder, self.step)
            if self.best_step == self.step:
                self.folder.point("best", self.step)
            self.folder.prune(self.run.config.keep_checkpoints)
        except (OSError, RuntimeError, SafetensorError) as error:
            free = shutil.disk_usage(self.folder.root).free
            self.folder.clean()
            return f"{error}; {free / 2**20:.0f} MiB were free"
        return None

    def _training_state(self, optimizer: dict[str, Any]) -> dict[str, Any]:
        run = self.run
        return {
            "step": self.step,
            "world_size": world_size(),
            "optimizer": optimizer,
            "loss_scale": run.loss_scale.state_dict(),
            "num_skipped": (run.num_skipped, run.num_skipped_in_all),
            "num_updates": dict(run.num_updates),
            "loader": run.loader.state_dict(),
            "best": (self.best_value, self.best_step),
            "evaluated_step": self.evaluated_step,
            "train_seconds": self.train_seconds,
            "log_bytes": run.metrics_file.sync(),
        }

    def resume(self) -> int:
        """Go back to the newest whole checkpoint if there is one; how many bytes of metrics.jsonl belong to it."""
        path = self._find()
        if path is None:
            return 0
        run = self.run
        training = read_pickle(path / TRAINING, mmap=False)
        load_whole_weights(run.task, read_weights(path))
        load_whole_optimizer(run.task, run.optimizer, training["optimizer"])
        run.loss_scale.load_state_dict(training["loss_scale"])
        run.num_skipped, run.num_skipped_in_all = (count.to(run.device) for count in training["num_skipped"])
        run.num_updates.update(training["num_updates"])
        run.loader.load_state_dict(training["loader"])
        self.step = self.saved_step = training["step"]
        self.best_value, self.best_step = training["best"]
        self.evaluated_step = training.get("evaluated_step", self.step)
        self.train_seconds = training["train_seconds"]
        log_bytes, note = training["log_bytes"], self.folder.read_note()
        if note.get("step") == self.step:
            self.evaluated_step, log_bytes = self.step, note["log_bytes"]
            self.best_value, self.best_step = note["best"]
        self._resume_rank(read_pickle(path / RANKS, mmap=False), training["world_size"])
        if is_main():
            log.info("continuing from %s", path)
            if self.best_step == self.step:  # the run may have ended between the checkpoint and its name
                self.folder.point("best", self.step)
        return log_bytes

    def adopt(self, progress: Progress) -> None:
        """Go on where another program stopped; a run that has a checkpoint of its own has resumed from that."""
        if self.saved_step >= 0:
            return
        run = self.run
        if progress.moments:
            load_moments(run.task, run.optimizer, progress.moments, progress.num_updates)
            run.num_updates.update(dict.fromkeys(progress.moments, progress.num_updates))
        if progress.epoch is None:
            return
        start = self._start_of(progress)
        if start >= run.total_steps:
            raise ValueError(
                f"init.keeps_position: the checkpoint has finished epoch {progress.epoch}, so nothing is left of this "
                f"run's {run.total_steps} steps; begin at 0 (--reset-data-offset) or train longer"
            )
        batches = start * run.config.accumulate
        epoch, within = divmod(batches, len(run.loader))
        position = {"epoch": epoch, "consumed": within * run.loader.batch_size}
        run.loader.load_state_dict(run.loader.state_dict() | position)
        run.task.set_extra_state(torch.tensor(start))
        self.step = self.evaluated_step = start
        if is_main():
            log.info("continuing at step %d, epoch %d", start, epoch + 1)

    def _start_of(self, progress: Progress) -> int:
        """The step to go on at: the one named if it lies in the epoch named, else the end of this epoch."""
        end = int(progress.epoch * self.run.steps_per_epoch + 1e-9)
        if end - self.run.steps_per_epoch < progress.step <= end:
            return progress.step
        if is_main():
            log.warning(
                "the checkpoint's step %d is not in its epoch %d, which ends at step %d with these data and batches; "
                "going on there",
                *(progress.step, progress.epoch, end),
            )
        return end

    def _find(self) -> Path | None:
        """The checkpoint to go on from, chosen by the main process; all processes raise what it raises."""
        found: Path | str | None = None
        if is_main():
            try:
                found = self.folder.newest_whole()
            except CheckpointError as error:
                found = str(error)
        found = broadcast_object(found)
        if isinstance(found, str):
            raise CheckpointError(found)
        return found

    def _resume_rank(self, ranks: list[Any], saved_world_size: int) -> None:
        if saved_world_size != world_size():
            seed_random_state(self.run.seed, self.step, rank())
            if is_main():
                log.warning(
                    "the checkpoint is of %d processes, now there are %d: the data goes on where it was, "
                    "random draws are seeded anew from seed, step and rank",
                    saved_world_size,
                    world_size(),
                )
            return
        self.run.meter.load_state_dict(ranks[rank()]["meter"], self.run.device)
        restore_random_state(ranks[rank()]["random"], self.run.device)

    def load_best_weights(self) -> None:
        """Put the weights of the best checkpoint into the task."""
        load_whole_weights(self.run.task, read_weights(self.folder.root / str(self.best_step)))
