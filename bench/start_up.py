"""A13: how long `run.py --help` takes, and a dry run, which checks a whole configuration."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path

from bench.common import Options, Result, spread

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = {
    "run.py --help": (["--help"], "1.0 s", "0.3 s"),
    "run.py --dry_run": (["--task", "pretrain", "--config", "configs/quickstart.yaml", "--dry_run"], "6 s", "3 s"),
}


def run(options: Options) -> list[Result]:
    """Row A13, one line per command; there is no other way to compare with, so the ratio is to the floor."""
    results = []
    for what, (words, floor, goal) in COMMANDS.items():
        seconds = [_seconds(words) for _ in range(1 if options.is_small else options.repeats + 1)]
        timed = seconds[1:] or seconds  # the first fills the file cache
        share = float(floor.removesuffix(" s")) / statistics.median(timed)
        results.append(Result("A13", what, "", spread(timed), f"{share:.1f}x the floor", floor, goal, "exit status 0"))
    return results


def _seconds(words: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, str(ROOT / "run.py"), *words], check=True, capture_output=True, cwd=ROOT)
    return time.perf_counter() - start


ROWS = {"A13": run}
