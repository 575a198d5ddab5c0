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
    remote_output: str = ""  # the address that the files in output_dir are sent to, where --output_dir was one
    checkpoint: str = ""
    seed: int = 42


@dataclass
class RunToolConfig(ToolConfig):
    """A tool's settings beside those of the run that it looks at, a `configs.schema.Config`, which run.py fills in."""

    output_dir: str = ""  # none: a folder of the tool's name in the run's
    run: Any = None


class Tool:
    """A program behind `--task NAME` with settings of its own, run on every rank of a group.

    `load` is `rosetta.load`: a path, and optionally a config, to a model that encodes and scores.
    """

    Config = ToolConfig
    # True: --config and the flags mean a training run (configs/schema.py), read as for training; `Config` is then a
    # RunToolConfig, and of the key=value words it gets those that it has a field for.
    reads_run_config = False

    def __init__(self, config: Any, load: Callable[..., Any]) -> None:
        self.config, self.load = config, load

    def run(self) -> dict[str, Any]:
        """Do the work; what metrics.json will hold, the same on all ranks. {}: no such file is written."""
        raise NotImplementedError

    def summary(self, result: dict[str, Any]) -> str:
        """The lines that run.py prints at the end; none by default."""
        return ""

    def succeeded(self, result: dict[str, Any]) -> bool:
        """Whether run.py ends with status 0; the same on all ranks."""
        return True
