"""What every benchmark shares: interleaved timing, peak memory, caption lengths, and the row that it ends in.

A program module has ROWS: name of the row -> function(options) that checks that both ways agree and returns Results.
"""

from __future__ import annotations

import gc
import importlib
import statistics
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from utils.allocator import give_back_freed_memory, keep_freed_memory, set_thresholds


@dataclass(frozen=True)
class Options:
    """How large and how often: `is_small` only shows that a program works, its ratios mean nothing."""

    is_small: bool = False
    repeats: int = 5
    threads: int | None = None  # None: as many as torch takes


@dataclass
class Result:
    """One line of the table; the better of plain / ours is a ratio above 1."""

    row: str
    what: str
    plain: str
    ours: str
    ratio: str
    floor: str
    goal: str
    agreement: str
    notes: list[str] = field(default_factory=list)


class Disagreement(AssertionError):
    """Both ways do not compute the same thing, so a ratio would mean nothing."""


def run_program(module: str, rows: Sequence[str], options: Options) -> tuple[list[Result], list[str]]:
    """The rows of one program, in this process."""
    if options.threads:
        torch.set_num_threads(options.threads)
    results, failed = [], []
    for row in rows:
        start = time.perf_counter()
        try:
            results += importlib.import_module(module).ROWS[row](options)
        except Disagreement as error:
            failed.append(f"{row}: {error}")
        print(f"{row}: {time.perf_counter() - start:.0f} s", file=sys.stderr)
    return results, failed


def agree(found: torch.Tensor, expected: torch.Tensor, tolerance: float, what: str) -> str:
    """The largest difference in words; raises Disagreement above `tolerance`."""
    difference = float((found.detach().float() - expected.detach().float()).abs().max())
    if not difference <= tolerance:
        raise Disagreement(f"{what}: largest difference {difference:.2e}, allowed {tolerance:.0e}")
    return f"{what} within {difference:.0e}"


def interleaved(
    ways: dict[str, Callable[[], object]], repeats: int, *, is_repeated: bool = False
) -> dict[str, list[float]]:
    """Seconds of each way, every repetition running all of them in turn after one run to warm up.

    is_repeated: what is timed follows its like in use, as steps and blocks do, so an untimed one comes first, and finds
    none of the memory that the other way keeps.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for round_number in range(repeats + 1):
        for name, way in ways.items():
            gc.collect()
            if is_repeated and round_number:
                give_back_freed_memory()
                way()
            start = time.perf_counter()
            way()
            if round_number:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def as_by_default(way: Callable[[], object]) -> Callable[[], object]:
    """The way with the allocator of a program that sets nothing, while the other one has those of `run.py`."""

    def with_settings() -> object:
        set_thresholds(32 << 20, 64 << 20)  # where glibc's own adjustment ends
        made = way()
        keep_freed_memory()
        return made

    return with_settings


def ratio(plain: Sequence[float], ours: Sequence[float]) -> float:
    """Median of plain over median of ours."""
    return statistics.median(plain) / statistics.median(ours)


def spread(seconds: Sequence[float]) -> str:
    """Median with the range around it."""
    return f"{statistics.median(seconds):.3g} s ({min(seconds):.3g}-{max(seconds):.3g})"


def rate(count: int, seconds: Sequence[float], unit: str) -> str:
    """Things per second at the median."""
    return f"{count / statistics.median(seconds):,.4g} {unit}/s"


def rates(
    row: str, what: str, agreement: str, counted: tuple[int, str], seconds: Sequence[Sequence[float]], **more: Any
) -> Result:
    """A row of things per second; counted: how many of what each run makes, seconds: of the plain way and of ours."""
    plain, ours = (rate(counted[0], each, counted[1]) for each in seconds)
    words = {"ratio": f"{ratio(*seconds):.2f}x", "floor": "-", "goal": "-"} | more
    return Result(row=row, what=what, plain=plain, ours=ours, agreement=agreement, **words)


def extra_memory(way: Callable[[], object]) -> int:
    """Bytes that `way` holds at its peak beyond those held at its start (resident set, sampled twice a millisecond)."""
    gc.collect()
    give_back_freed_memory()
    before, peak, is_done = resident(), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not is_done.is_set():
            peak = max(peak, resident())
            time.sleep(0.0005)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        way()
    finally:
        is_done.set()
        watcher.join()
    return max(peak - before, 0)


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def caption_lengths(count: int, mean: float, longest: int, seed: int = 0) -> list[int]:
    """Token counts of captions: right-skewed like real ones, 5 to `longest`, with the given mean before clipping."""
    generator = torch.Generator().manual_seed(seed)
    # The sum of four exponentials has the shape of caption lengths; 5 is <s>, </s> and a short noun phrase.
    draws = -torch.rand(count, 4, generator=generator).clamp_min(1e-6).log().sum(dim=1) / 4
    return (5 + (mean - 5) * draws).round().clamp(5, longest).int().tolist()


def histogram(lengths: Sequence[int], width: int = 5) -> str:
    """Lengths as a line of text: mean, and how many fall into each bin of `width` tokens."""
    bins = Counter(length // width * width for length in lengths)
    parts = " ".join(f"{start}-{start + width - 1}:{bins[start]}" for start in sorted(bins))
    return f"token lengths, mean {statistics.fmean(lengths):.1f}: {parts}"
