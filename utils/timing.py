"""How long a call takes: many runs after a few that do not count."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np


def time_calls(
    call: Callable[[], object],
    num_runs: int,
    num_warmup_runs: int,
    synchronise: Callable[[], object] = lambda: None,
) -> dict[str, float]:
    """Milliseconds of a call: mean, sd, min, max, median, p95, p99; synchronise waits for work that a call began."""
    found = []
    for run in range(num_warmup_runs + num_runs):
        synchronise()
        started = time.perf_counter()
        call()
        synchronise()
        if run >= num_warmup_runs:
            found.append(1000 * (time.perf_counter() - started))
    return spread(found)


def spread(values: list[float]) -> dict[str, float]:
    """mean, sd, min, max, median, p95, p99 of some numbers."""
    array = np.asarray(values)
    median, p95, p99 = np.percentile(array, [50, 95, 99])
    found = {"mean": array.mean(), "sd": array.std(), "min": array.min(), "max": array.max()}
    return {
        name: round(float(value), 4) for name, value in (found | {"median": median, "p95": p95, "p99": p99}).items()
    }
