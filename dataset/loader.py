"""Batches in an order that depends on seed and epoch only, from a position counted in samples of the whole run.

Every rank computes the same global order and takes its slice of every global batch, so a run may go on with another
number of ranks or workers: no sample is lost or repeated, and a sample's random draws depend on seed, epoch, its number
and how often the epoch had it before, only.
"""

from __future__ import annotations

import functools
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from dataset.bad_records import BadRecords
from dataset.batch import Skipped, map_tensors
from dataset.files import BadRecord, DataError
from dataset.samples import SampleDataset

NUM_SPARES = 64


@dataclass(frozen=True)
class Share:
    """What one rank reads for one batch: record numbers, how often the epoch had each of them before, and the numbers
    that follow in case none of them is readable.
    """

    epoch: int
    indices: np.ndarray
    repeats: np.ndarray
    spares: np.ndarray
    num_global: int


@dataclass(frozen=True)
class Layout:
    """How the records of an epoch are cut into global batches, and those into the shares of the ranks."""

    num_records: int
    batch_size: int
    rank: int
    world_size: int
    drop_last: bool

    def count_batches(self, consumed: int) -> int:
        """Batches that are left after `consumed` records."""
        whole, rest = divmod(self.num_records - consumed, self.batch_size)
        if self.drop_last or rest == 0 or (rest < self.world_size and whole > 0):
            return whole
        return whole + (rest >= self.world_size)

    def cut(self, order: np.ndarray, epoch: int, start: int, has_repeats: bool = False) -> Iterator[Share]:
        """This rank's shares of the batches that are left; has_repeats: the order may name a record several times."""
        repeats = count_repeats(order) if has_repeats else np.broadcast_to(0, len(order))
        num_batches = self.count_batches(start)
        for k in range(num_batches):
            stop = start + self.batch_size
            if k == num_batches - 1 and not self.drop_last:
                stop = len(order)  # fewer records than ranks join the last batch: no rank may be left without any
            size = stop - start
            first, last = (start + size * r // self.world_size for r in (self.rank, self.rank + 1))
            spares = np.take(order, range(stop, stop + NUM_SPARES), mode="wrap")
            yield Share(epoch, order[first:last], repeats[first:last], spares, size)
            start = stop


def count_repeats(order: np.ndarray) -> np.ndarray:
    """How often each record of an order stood in it before: (n,)."""
    by_record = np.argsort(order, kind="stable")
    place, ordered = np.arange(len(order)), order[by_record]
    is_first = np.append(True, ordered[1:] != ordered[:-1])[: len(order)]
    repeats = np.empty(len(order), np.int64)
    repeats[by_record] = place - np.maximum.accumulate(np.where(is_first, place, 0))
    return repeats


class Loader:
    """Iterates over what is left of the current epoch and then turns to the next one.

    The state says what was handed out, not what workers have read ahead. No global random state is touched.
    """

    def __init__(
        self,
        dataset: SampleDataset,
        *,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
        num_workers: int = 0,
        shuffle: bool = True,
        drop_last: bool = True,
        max_bad_share: float = 0.01,
        pin_memory: bool = False,
        batches_per_draw: int = 1,
    ) -> None:
        if batch_size < world_size:
            raise ValueError(f"batch_size is global and must be at least {world_size} (processes), found {batch_size}")
        if fault := too_few_records(len(dataset), batch_size, drop_last=drop_last, world_size=world_size):
            raise DataError(fault)
        self.dataset, self.shuffle = dataset, shuffle
        make_plan = getattr(dataset, "plan", None)  # of data sets that have an order of their own
        self.plan = make_plan(batch_size, world_size, batches_per_draw) if make_plan and shuffle else None
        num_records = len(dataset) if self.plan is None else self.plan.num_records
        self.layout = Layout(num_records, batch_size, rank, world_size, drop_last)
        self.seed, self.epoch, self.consumed = seed, 0, 0
        self.bad_records = BadRecords(max_bad_share)
        cv2.setNumThreads(0)  # its thread pool does not survive a fork; the workers are the parallelism
        # Many batches are held at once then, and shared memory keeps a file open for each of their tensors.
        self._is_gathering = batches_per_draw > 1 and num_workers > 0
        self._shares = _ShareSampler()
        self._batches = DataLoader(
            _ShareReader(dataset, seed),
            batch_size=None,
            sampler=self._shares,
            num_workers=num_workers,
            collate_fn=_unchanged,
            pin_memory=pin_memory,
            worker_init_fn=start_worker,
            persistent_workers=num_workers > 0,
            generator=torch.Generator().manual_seed(seed),  # else the loader draws from the global one
        )

    def __len__(self) -> int:
        """Batches of a whole epoch."""
        return self.layout.count_batches(0)

    @property
    def batch_size(self) -> int:
        """Records of a batch over all ranks."""
        return self.layout.batch_size

    def __iter__(self) -> Iterator[Any]:
        if self.consumed == 0:
            self.bad_records.start_epoch()
        order = self.order(self.epoch)
        cut = functools.partial(self.layout.cut, order, self.epoch, self.consumed, has_repeats=self.plan is not None)
        # No reference back to this loader: workers end at once when it goes, not when cycles are collected.
        self._shares.cut = cut
        for share, batch in zip(cut(), self._batches):
            if isinstance(batch, DataError):
                raise batch
            if self._is_gathering:
                batch = map_tensors(batch, torch.clone)
            self.consumed += share.num_global
            if self.layout.count_batches(self.consumed) == 0:  # a state saved from here on belongs to the next epoch
                self.epoch, self.consumed = self.epoch + 1, 0
            self.bad_records.add(len(share.indices), batch.skipped)
            if self.consumed == 0:
                self.bad_records.end_epoch()
            yield batch

    def state_dict(self) -> dict[str, int]:
        """The position in samples of the whole run; equal on all ranks."""
        return {"seed": self.seed, "epoch": self.epoch, "consumed": self.consumed}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from a position, also one saved with another number of ranks or workers."""
        if "consumed" not in state:
            raise DataError("the state was saved with several streams; now there is one")
        if not 0 <= state["consumed"] <= self.layout.num_records:
            found = f"position {state['consumed']} lies outside the data set of {self.layout.num_records} records"
            raise DataError(f"{found}; the data has changed since the state was saved")
        if state["seed"] != self.seed:
            raise DataError(f"the state was saved with seed {state['seed']}, found {self.seed}")
        self.epoch, self.consumed = state["epoch"], state["consumed"]
        if self.layout.count_batches(self.consumed) == 0:
            self.epoch, self.consumed = self.epoch + 1, 0

    def order(self, epoch: int) -> np.ndarray:
        """The record numbers of an epoch, for all ranks together."""
        if not self.shuffle:
            return np.arange(len(self.dataset))
        if self.plan is not None:
            return self.plan.order(self.seed, epoch)
        return np.random.default_rng([self.seed, epoch]).permutation(len(self.dataset))


class _ShareSampler(Sampler):
    """Hands the shares that the loader lays out to the workers."""

    def __init__(self) -> None:
        self.cut: Callable[[], Iterator[Share]] = lambda: iter(())

    def __iter__(self) -> Iterator[Share]:
        return self.cut()


class _ShareReader(Dataset):
    """Makes the batch of a share; runs in the workers."""

    def __init__(self, dataset: SampleDataset, seed: int) -> None:
        self.dataset, self.seed = dataset, seed

    def __getitem__(self, share: Share) -> Any:
        samples, skipped = [], []
        for index, repeat in zip(share.indices.tolist(), share.repeats.tolist(), strict=True):
            sample = self._read(index, share.epoch, skipped, repeat)
            if sample is not None:
                samples.append(sample)
        for index in share.spares.tolist() if not samples else ():  # a rank without any record would stall the others
            sample = self._read(index, share.epoch, [])
            if sample is not None:
                samples.append(sample)
                break
        if not samples:
            listed = "\n  ".join(map(str, skipped[:5]))
            return DataError(f"none of {len(share.indices) + len(share.spares)} records could be used:\n  {listed}")
        return self.dataset.collate(samples, skipped)

    def _read(self, index: int, epoch: int, skipped: list[Skipped], repeat: int = 0) -> Any:
        # A record that an epoch has again (a small set of a debiased mixture) is drawn anew.
        generator = np.random.default_rng([self.seed, epoch, index] + [repeat] * (repeat > 0))
        try:
            return self.dataset.sample(index, generator)
        except BadRecord as error:
            skipped.append(Skipped(error.where or self.dataset.where(index), error.reason, str(error.detail)))
            return None


def _unchanged(batch: Any) -> Any:
    return batch


def start_worker(worker: int) -> None:
    """Make this process a reader of data: one thread, and the main process decides about signals."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    cv2.setNumThreads(0)
    # The main process decides what a signal means; a status other than 0 would raise in the midst of its saving.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))


def too_few_records(num_records: int, batch_size: int, *, drop_last: bool, world_size: int = 1) -> str:
    """Why a loader cannot make a single batch of so many records; empty if it can."""
    smallest = batch_size if drop_last else world_size
    if num_records >= smallest:
        return ""
    return (
        f"the training data has {num_records} records that can be used; needed: at least {smallest}, "
        f"the {'batch size' if drop_last else 'number of processes'}; lower data.batch_size (--bs) or add data"
    )
