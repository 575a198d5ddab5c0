"""The output folder of a run: one run at a time writes to it, and it stays with the model that it was begun with."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from utils.checkpoint import CheckpointFolder
from utils.config import ConfigError, dump_yaml, read_yaml, to_tree
from utils.environment import describe_run
from utils.results import write_json

SETTINGS = "config.yaml"
RESULTS = ("metrics.jsonl", "metrics.json", "gallery.json", "report.html")
# What the weights, the random draws and the order of the data of a run depend on.
LASTING = ("task", "seed", "model")
_held: set[int] = set()  # descriptors of the folders that this process holds


@contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """Makes the folder and holds it until the block ends or the process dies; ConfigError where another run does.

    The folder itself is locked, so that no file is left behind. A file system without locks is trusted.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"output_dir {folder} cannot be made: {error.strerror}") from error
    if not hasattr(os, "register_at_fork"):  # neither forks nor such locks
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    _held.add(descriptor)
    try:
        _lock(descriptor, folder)
        yield
    finally:
        _held.discard(descriptor)
        os.close(descriptor)


def _lock(descriptor: int, folder: Path) -> None:
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ConfigError(
            f"output_dir {folder}: another run is writing there; wait for its end, or name another --output_dir"
        ) from None
    except OSError:
        pass  # some network file systems know no locks


def _let_go() -> None:
    """A forked child shares its parent's locks, and a loader's worker may outlive a run that was killed."""
    while _held:
        os.close(_held.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)


def begin(output_dir: Path, config: Any, command: Sequence[str], data_files: Sequence[str], root: Path) -> list[str]:
    """Write the resolved settings and what the run is made with; notes on settings that the run began without.

    ConfigError where the folder has checkpoints of a run that these settings cannot continue: nothing is written.
    """
    notes = compare(output_dir, to_tree(config)) if CheckpointFolder(output_dir / "checkpoints").steps() else []
    dump_yaml(config, output_dir / SETTINGS)
    write_json(output_dir / "environment.json", describe_run(command, data_files, root))
    return notes


def clear(output_dir: Path) -> None:
    """Remove what an earlier run left, for one that starts over."""
    shutil.rmtree(output_dir / "checkpoints", ignore_errors=True)
    for name in RESULTS:
        (output_dir / name).unlink(missing_ok=True)


def compare(output_dir: Path, settings: dict[str, Any]) -> list[str]:
    """How settings differ from those of the folder, of the keys that both have; ConfigError where they must not."""
    path = output_dir / SETTINGS
    if not path.is_file():
        return []
    changes = list(_differences(read_yaml(path), settings, ""))
    lasting = [told for key, told in changes if key.partition(".")[0] in LASTING]
    if lasting:
        raise ConfigError(
            f"{output_dir} holds a run with other settings: {', '.join(lasting[:8])}; "
            "name another --output_dir, or start over with --restart"
        )
    told = ", ".join(told for key, told in changes if key != "output_dir")
    return [f"{output_dir} was begun with other settings, the new ones are taken: {told}"] if told else []


def _differences(old: Any, new: Any, key: str) -> Iterator[tuple[str, str]]:
    """Dotted keys whose values differ, each with `key old -> new`."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in old:
            if name in new:
                yield from _differences(old[name], new[name], f"{key}.{name}" if key else name)
    elif old != new:
        is_long = any(isinstance(value, (dict, list)) for value in (old, new))
        yield key, key if is_long else f"{key} {old} -> {new}"
