"""Runner of the parity cases about recall and the spread of ranks over languages."""

import json
import pathlib

import torch
from safetensors.torch import load_file

from utils.metrics import mean_rank_spread, recall_metrics, retrieval_ranks

# Shares of whole numbers and a mean of float64 numbers: only the order of additions may differ.
TOLERANCE = 1e-9


def _check(found: float, expected: float, what: str) -> None:
    assert abs(found - expected) <= TOLERANCE * max(1.0, abs(expected)), f"{what}: found {found}, expected {expected}"


def run_recall_and_spread(case: pathlib.Path) -> None:
    """Recall of two score matrices, any number of captions per image; rank spread over any number of languages."""
    expected = json.loads((case / "config.json").read_text())["expected"]
    inputs = load_file(case / "inputs.safetensors")
    ranks = retrieval_ranks(inputs["score_i2t"], inputs["score_t2i"], inputs["txt2img"])
    metrics = recall_metrics(*ranks)
    assert set(metrics) == {*expected["metrics"], "rsum"}, sorted(metrics)
    for key, value in expected["metrics"].items():
        _check(metrics[key], value, key)

    rank_per_language = torch.stack([value for key, value in inputs.items() if key.startswith("rank/")])  # (L, N)
    spread = mean_rank_spread(rank_per_language)
    _check(spread, expected["mrv"], "mrv in config.json")
    _check(spread, load_file(case / "outputs.safetensors")["mrv"].item(), "mrv in outputs.safetensors")


KINDS = {("ccrk", "metrics_recall_mrv"): run_recall_and_spread}
