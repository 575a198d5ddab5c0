"""`python -m bench A1 A12` or `python -m bench --all`: run programs and print their rows as one table."""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from bench.common import Options, Result, run_program

PROGRAMS = {
    "A1": "bench.reranking",
    "A2": "bench.reranking",
    "A3": "bench.reranking",
    "A4": "bench.reranking",
    "A5": "bench.training_step",
    "A6": "bench.training_step",
    "A7": "bench.training_step",
    "A8": "bench.masked_words",
    "A9": "bench.dual_encoder",
    "decoupled": "bench.dual_encoder",
    "curve": "bench.decoupled_curve",
    "A10": "bench.search",
    "A11": "bench.image_pipeline",
    "A12": "bench.contrastive",
    "A13": "bench.start_up",
    "A14": "bench.two_stacks",
    "A15": "bench.answers",
    "A16": "bench.two_images",
    "extraction": "bench.extraction",
}
COLUMNS = ("row", "what", "plain", "ours", "ratio", "floor", "goal", "agreement")


def main(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser("python -m bench", description=__doc__)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of {', '.join(PROGRAMS)}")
    parser.add_argument("--all", action="store_true", help="every row")
    parser.add_argument("--small", action="store_true", help="tiny sizes: shows that programs work, measures nothing")
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="timed repetitions of each way")
    parser.add_argument("--threads", type=int, metavar="N", help="threads of torch; the same for both ways")
    arguments = parser.parse_args(words)
    rows = list(PROGRAMS) if arguments.all else arguments.rows
    if unknown := [row for row in rows if row not in PROGRAMS]:
        parser.error(f"unknown row {unknown[0]}; allowed: {', '.join(PROGRAMS)}")
    if not rows:
        parser.error("name rows, or --all")
    options = Options(arguments.small, arguments.repeats, arguments.threads)
    results, failed = run(rows, options)
    print(machine(arguments.threads))
    print(table(results))
    for note in dict.fromkeys(note for result in results for note in result.notes):
        print(f"- {note}")
    for line in failed:
        print(f"FAILED {line}")
    return 1 if failed else 0


def run(rows: Sequence[str], options: Options) -> tuple[list[Result], list[str]]:
    """Results of the rows, and what did not agree.

    Each program runs in a process of its own: memory that an earlier one has touched would hide what a row needs.
    """
    results, failed = [], []
    for module in dict.fromkeys(PROGRAMS[row] for row in rows):
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
            own = [row for row in rows if PROGRAMS[row] == module]
            found, disagreements = process.submit(run_program, module, own, options).result()
        results += found
        failed += disagreements
    return results, failed


def table(results: Sequence[Result]) -> str:
    """Markdown, as BENCHMARKS.md shows it."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + " --- |" * len(COLUMNS)]
    lines += ["| " + " | ".join(getattr(result, column) for column in COLUMNS) + " |" for result in results]
    return "\n".join(lines)


def machine(threads: int | None) -> str:
    """Where the numbers come from, in one line."""
    import torch

    return (
        f"{platform.machine()}, {os.cpu_count()} cores, {threads or torch.get_num_threads()} threads, "
        f"torch {torch.__version__}, "
        f"{torch.backends.cpu.get_cpu_capability()}"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
