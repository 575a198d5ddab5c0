"""Files behind an address (hdfs://, s3://, ...): copies here of what needs a path, copies there of results."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any

import fsspec

from utils.config import ConfigError

log = logging.getLogger(__name__)
SECONDS_BETWEEN_LOOKS = 30.0
CACHE = "~/.cache/rosetta-vl/remote"
# What only the continuing of a run needs: many gigabytes that a reader of weights does not fetch.
TRAINING_STATE = ("training.pt", "ranks.pt")


def is_remote(path: str | os.PathLike) -> bool:
    """Whether a path (or the archive before `::`) is an address that only fsspec can open."""
    return "://" in os.fspath(path).partition("::")[0]


def open_system(address: str) -> tuple[Any, str]:
    """The file system of an address and the path within it; ConfigError if it cannot be reached."""
    try:
        return fsspec.url_to_fs(address)
    except (ValueError, ImportError, OSError) as error:
        raise ConfigError(f"{address}: cannot be reached: {error}") from error


def local_copy(address: str | os.PathLike, cache_dir: str = CACHE) -> Path:
    """A path to the content of a file or folder: itself where it is local, else a copy that is made once.

    The copy is renewed when the remote file changes. A name like checkpoint_best.pth that only stands for a folder of
    ours beside it brings that folder.
    """
    if not is_remote(address):
        return Path(address)
    address = os.fspath(address)
    system, inner = open_system(address)
    folder, name = inner.rstrip("/").rpartition("/")[::2]
    try:
        if not system.exists(inner) and system.isdir(f"{folder}/checkpoints"):
            return local_copy(address.rstrip("/").rpartition("/")[0], cache_dir) / name
        if not system.exists(inner):
            raise FileNotFoundError(f"{address}: no such file or folder")
        names = system.find(inner) if system.isdir(inner) else [inner]
        # Where `best` and `last` are links to folders, as on a disk, a search does not enter them.
        linked = [f"{inner.rstrip('/')}/checkpoints/{link}/model.safetensors" for link in ("best", "last")]
        names += [found for found in linked if found not in names and system.isfile(found)]
        names = [found for found in names if found.rpartition("/")[2] not in TRAINING_STATE]
        stamps = [address, *(f"{found} {system.ukey(found)}" for found in sorted(names))]
        place = Path(cache_dir).expanduser() / hashlib.sha256("\n".join(stamps).encode()).hexdigest()[:24]
        if not place.is_dir():
            _copy_here(system, {found: found.removeprefix(folder).lstrip("/") for found in names}, place)
    except OSError as error:
        raise FileNotFoundError(f"{address}: cannot be read: {error}") from error
    return place / name


def _copy_here(system: Any, names: dict[str, str], place: Path) -> None:
    """The named files below a folder that appears when all of them are there."""
    place.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=place.parent, prefix=".copying-"))
    try:
        for source, target in names.items():
            (temporary / target).parent.mkdir(parents=True, exist_ok=True)
            system.get_file(source, str(temporary / target))
        temporary.chmod(0o755)
        try:
            os.replace(temporary, place)
        except OSError:
            if not place.is_dir():  # another process was faster
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def put_file(path: Path, address: str) -> None:
    """A copy of a file at an address whose folders are made."""
    system, place = open_system(address)
    system.makedirs(place.rpartition("/")[0], exist_ok=True)
    system.put_file(str(path), place)


class RemoteOutput:
    """An output folder that lies elsewhere: the run works in a local one, which is filled at its start and copied back
    when it ends or is stopped.
    """

    STATE, LAST = ("metrics.jsonl", "config.yaml"), "checkpoints/LAST"

    def __init__(self, address: str, folder: Path) -> None:
        self.address, self.folder = address.rstrip("/"), folder

    def fetch(self) -> None:
        """What continuing needs: the last checkpoint and the log, unless this machine has checkpoints of its own."""
        self.folder.mkdir(parents=True, exist_ok=True)
        system, place = open_system(self.address)
        if (self.folder / "checkpoints").is_dir() or not system.exists(f"{place}/{self.LAST}"):
            return
        step = system.cat_file(f"{place}/{self.LAST}").decode().strip()
        names = [name for name in system.find(f"{place}/checkpoints/{step}")]
        aside = self.folder / ".fetching"
        for name in names:
            (aside / step).mkdir(parents=True, exist_ok=True)
            system.get_file(name, str(aside / step / name.rpartition("/")[2]))
        for name in self.STATE:
            if system.exists(f"{place}/{name}"):
                system.get_file(f"{place}/{name}", str(self.folder / name))
        (aside / "last").symlink_to(step)
        os.replace(aside, self.folder / "checkpoints")

    def send(self) -> None:
        """Everything that is small, and the last and the best checkpoint whole; the name of the last goes last."""
        if not self.folder.is_dir():
            return
        for path in sorted(path for path in self.folder.iterdir() if path.is_file()):
            put_file(path, f"{self.address}/{path.name}")
        checkpoints = self.folder / "checkpoints"
        steps = {name: (checkpoints / name).resolve() for name in ("best", "last") if (checkpoints / name).exists()}
        for folder in dict.fromkeys(steps.values()):
            for path in folder.iterdir():
                put_file(path, f"{self.address}/checkpoints/{folder.name}/{path.name}")
        for name, folder in steps.items():
            put_file(folder / "model.safetensors", f"{self.address}/checkpoints/{name}/model.safetensors")
        if "last" in steps:
            system, place = open_system(f"{self.address}/{self.LAST}")
            system.pipe_file(place, steps["last"].name.encode())

    def send_checkpoints(self, left: Event, seconds: float) -> None:
        """Until the run has left, send the folder whenever there is a new last checkpoint."""
        last, sent = self.folder / "checkpoints" / "last", None
        while not left.wait(seconds):
            newest = last.resolve().name if last.exists() else sent
            if newest == sent:
                continue
            try:
                self.send()
                sent = newest
            except OSError as error:  # also a checkpoint that was pruned meanwhile: the next one comes
                log.warning("%s: not sent, will be tried again: %s", self.address, error)


@contextmanager
def sent_when_left(
    address: str | None, folder: Path, *, is_main: bool, seconds: float = SECONDS_BETWEEN_LOOKS
) -> Iterator[None]:
    """While the block runs, the main process sends every new checkpoint to the output folder's address, and at its end,
    also by an error or a signal, everything.
    """
    if not (address and is_main):
        yield
        return
    output, left = RemoteOutput(address, folder), Event()
    sender = Thread(target=output.send_checkpoints, args=(left, seconds), daemon=True)
    sender.start()
    try:
        yield
    finally:
        left.set()
        sender.join()
        output.send()
