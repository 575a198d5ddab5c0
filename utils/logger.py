"""What a run tells: log lines, metrics.jsonl, a progress bar, and the optional sinks."""

import json
import logging
import math
import os
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

# Fields that differ between two runs that compute the same.
TIMING_FIELDS = ("samples_per_second", "data_wait_share", "seconds")


def setup_logging(*, is_main: bool) -> None:
    """Log lines on standard error; processes other than the main one tell warnings only."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname).1s %(name)s: %(message)s", "%H:%M:%S"))
    logging.basicConfig(level=logging.INFO if is_main else logging.WARNING, handlers=[handler])


def progress_bar(total: int, start: int, *, is_shown: bool) -> tqdm:
    """A bar over steps on a terminal; silent elsewhere."""
    is_shown = is_shown and sys.stderr.isatty()
    return tqdm(total=total, initial=start, unit="step", disable=not is_shown, dynamic_ncols=True)


class MetricsFile:
    """metrics.jsonl: one JSON object a line. What lies beyond `num_bytes`, from a run that was cut off, goes."""

    def __init__(self, path: Path, num_bytes: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab")
        self._file.truncate(min(num_bytes, path.stat().st_size))

    def write(self, record: dict[str, Any]) -> None:
        """Append a record; numbers that JSON lacks (infinity, not a number) become null."""
        self._file.write(json.dumps(_finite(record)).encode() + b"\n")
        self._file.flush()

    def sync(self) -> int:
        """Wait until everything written is on the disk; the size in bytes."""
        os.fsync(self._file.fileno())
        return os.fstat(self._file.fileno()).st_size

    def close(self) -> None:
        self._file.close()


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def flat_numbers(tree: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """{"a": {"b": 1}} -> {"a/b": 1}; only numbers."""
    flat: dict[str, float] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= flat_numbers(value, f"{prefix}{key}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            flat[f"{prefix}{key}"] = value
    return flat


class TensorBoardSink:
    """Curves for TensorBoard in output_dir/tensorboard."""

    def __init__(self, output_dir: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ValueError("train.tensorboard needs the package tensorboard: pip install tensorboard") from error
        self._writer = SummaryWriter(str(output_dir / "tensorboard"))

    def write(self, record: dict[str, Any]) -> None:
        for name, value in flat_numbers(record).items():
            self._writer.add_scalar(name, value, record["step"])

    def close(self) -> None:
        self._writer.close()


class WandbSink:
    """Curves for Weights & Biases; a run that continues keeps its identity by the name of its output folder."""

    def __init__(self, output_dir: Path, project: str) -> None:
        try:
            import wandb
        except ImportError as error:
            raise ValueError("train.wandb_project needs the package wandb: pip install wandb") from error
        name = output_dir.name
        self._run = wandb.init(project=project, dir=str(output_dir), name=name, id=name, resume="allow")

    def write(self, record: dict[str, Any]) -> None:
        self._run.log(flat_numbers(record), step=record["step"])

    def close(self) -> None:
        self._run.finish()
