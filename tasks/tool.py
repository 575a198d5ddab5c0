"""The seam between run.py and everything that is neither trained nor a run's evaluation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass
class ToolConfig:
    """What every tool has; run.py fills these from the flags of the same names, and batch_size, images and texts where
    a tool has them from --bs, --image and --text.
    """

    output_dir: str = "output"
    checkpoint: str = ""
    seed: int = 42


class Tool:
    """A program behind `--task NAME` with settings of its own, run on every rank of a group.

    `load` is `rosetta.load`: a path, and optionally a config, to a model that encodes and scores.
    """

    Config = ToolConfig
    # True: the settings are those of a training run (configs/schema.py), read as for training.
    reads_run_config = False

    def __init__(self, config: Any, load: Callable[..., Any]) -> None:
        self.config, self.load = config, load

    def run(self) -> dict[str, Any]:
        """Do the work; what metrics.json will hold, the same on all ranks. {}: no such file is written."""
        raise NotImplementedError

    def summary(self, result: dict[str, Any]) -> str:
        """The lines that run.py prints at the end; none by default."""
        return ""
