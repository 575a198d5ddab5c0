"""Checkpoints that are whole or absent: written aside, synced, hashed, renamed; and safe reading of weight files.

checkpoints/<step>/model.safetensors    weights and buffers
                   training.pt          optimizer, schedule position, counters: read back with weights_only=True
                   ranks.pt             random states and running sums of every process
                   manifest.json        size and SHA-256 of the files above, written last
checkpoints/last, checkpoints/best      links to one of them
checkpoints/evaluation.json             what an evaluation found after the checkpoint of its step was written
"""

import hashlib
import json
import logging
import os
import pickle
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

log = logging.getLogger(__name__)

WEIGHTS, TRAINING, RANKS, MANIFEST = "model.safetensors", "training.pt", "ranks.pt", "manifest.json"
NOTE = "evaluation.json"
TEMPORARY = ".writing-"


class CheckpointError(ValueError):
    """A checkpoint or weight file that cannot be used, and why."""


class CheckpointFolder:
    """The checkpoints of a run: saving, finding the newest whole one, pruning. For the main process only."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def begin(self, step: int) -> Path:
        """A fresh folder to write the checkpoint of a step into; leftovers of interrupted writing are removed."""
        self.root.mkdir(parents=True, exist_ok=True)
        self.clean()
        folder = self.root / f"{TEMPORARY}{step}"
        folder.mkdir()
        return folder

    def clean(self) -> None:
        """Remove what an interrupted write left behind."""
        for leftover in self.root.glob(f"{TEMPORARY}*"):
            leftover.unlink() if leftover.is_symlink() or leftover.is_file() else shutil.rmtree(leftover)

    def commit(self, folder: Path, step: int) -> Path:
        """Make a completely written folder the checkpoint of its step, and the last one."""
        write_manifest(folder)
        target = self.root / str(step)
        if target.exists():  # an older, damaged or equal one of the same step
            os.replace(target, self.root / f"{TEMPORARY}old-{step}")
        os.replace(folder, target)
        sync_folder(self.root)
        self.point("last", step)
        self.clean()
        return target

    def point(self, name: str, step: int) -> None:
        """Let `last` or `best` name the checkpoint of a step, at once or not at all."""
        temporary = self.root / f"{TEMPORARY}{name}"
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(str(step))
        os.replace(temporary, self.root / name)
        sync_folder(self.root)

    def named(self, name: str) -> Path | None:
        """The checkpoint that `last` or `best` names."""
        link = self.root / name
        return link.resolve() if link.exists() else None

    def write_note(self, note: dict[str, Any]) -> None:
        """What became known after a checkpoint, at once or not at all."""
        temporary = self.root / f"{TEMPORARY}{NOTE}"
        temporary.write_text(json.dumps(note), encoding="utf-8")
        sync_file(temporary)
        os.replace(temporary, self.root / NOTE)
        sync_folder(self.root)

    def read_note(self) -> dict[str, Any]:
        """The last note; empty if there is none."""
        path = self.root / NOTE
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    def steps(self) -> list[int]:
        """Steps that have a checkpoint, in order."""
        if not self.root.is_dir():
            return []
        return sorted(int(path.name) for path in self.root.iterdir() if path.name.isdecimal() and path.is_dir())

    def newest_whole(self) -> Path | None:
        """The newest checkpoint that agrees with its manifest; damaged ones are named in the log. None without any.

        Raises CheckpointError where checkpoints exist but every one is damaged: starting over must be asked for.
        """
        steps = self.steps()
        for step in reversed(steps):
            fault = find_fault(self.root / str(step))
            if fault is None:
                return self.root / str(step)
            log.warning("checkpoint %s is damaged (%s); trying the one before", self.root / str(step), fault)
        if steps:
            raise CheckpointError(f"every checkpoint in {self.root} is damaged; use --restart to start over")
        return None

    def prune(self, keep: int) -> None:
        """Delete all but the newest `keep` checkpoints, `last` and `best`."""
        kept = {str(step) for step in self.steps()[-keep:]}
        kept |= {path.name for path in (self.named("last"), self.named("best")) if path}
        for step in self.steps():
            if str(step) not in kept:
                aside = self.root / f"{TEMPORARY}old-{step}"  # a half-deleted folder must not look like a checkpoint
                os.replace(self.root / str(step), aside)
                shutil.rmtree(aside)


def write_weights(state: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """A safetensors file; tensors that share memory (tied weights) are written once under each name."""
    seen: set[int] = set()
    tensors = {}
    for name, tensor in state.items():
        tensor = tensor.detach().cpu().contiguous()
        shared = tensor.untyped_storage().data_ptr() in seen
        seen.add(tensor.untyped_storage().data_ptr())
        tensors[name] = tensor.clone() if shared else tensor
    save_file(tensors, path, metadata={"format": "pt", **(metadata or {})})
    path.chmod(0o644)  # the library's own file is for its writer alone; others on the machine may read, as all else


def write_manifest(folder: Path) -> None:
    """Sync every file of a folder and write their sizes and SHA-256, last."""
    files = {}
    for path in sorted(folder.iterdir()):
        sync_file(path)
        files[path.name] = {"bytes": path.stat().st_size, "sha256": hash_file(path)}
    manifest = folder / MANIFEST
    manifest.write_text(json.dumps({"files": files}, indent=1), encoding="utf-8")
    sync_file(manifest)
    sync_folder(folder)


def find_fault(folder: Path) -> str | None:
    """What is wrong with a checkpoint folder, in words; None if it agrees with its manifest."""
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return f"{MANIFEST} is missing or unreadable"
    for name, entry in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != entry["bytes"]:
            return f"{name} has {path.stat().st_size} bytes instead of {entry['bytes']}"
        if hash_file(path) != entry["sha256"]:
            return f"the SHA-256 of {name} is wrong"
    return None


def hash_file(path: Path) -> str:
    """SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def sync_file(path: Path) -> None:
    """Wait until a file's content is on the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Wait until a folder's entries are on the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _numpy_globals() -> list[Callable[..., Any]]:
    """What a weights-only read may build beside tensors: plain numpy values (random states, rates), a version."""
    reconstruct = [numpy.ndarray.__reduce__(numpy.zeros(1))[0], numpy.float64(0).__reduce__()[0]]
    kinds = [type(numpy.dtype(name)) for name in ("uint32", "int64", "float32", "float64")]
    return [*reconstruct, numpy.ndarray, numpy.dtype, *kinds, torch.torch_version.TorchVersion]


# Files written with numpy 1 name the same functions by their old place.
_OLD_NAMES = ("numpy.core.multiarray._reconstruct", "numpy.core.multiarray.scalar")


def read_pickle(path: Path, *, mmap: bool = True) -> Any:
    """The content of a torch file, tensors and plain values only; anything that would run code is refused."""
    allowed: list[Any] = _numpy_globals()
    allowed += [(function, name) for function, name in zip(allowed[:2], _OLD_NAMES, strict=True)]
    try:
        with torch.serialization.safe_globals(allowed):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap and is_zip(path))
    except pickle.UnpicklingError as error:
        reasons = [line.strip() for line in str(error).splitlines() if "GLOBAL" in line or "Unsupported" in line]
        reason = (reasons or [str(error)])[0][:200]
        raise CheckpointError(f"{path}: refused, it holds more than tensors and plain values ({reason})") from error
    except (RuntimeError, EOFError, KeyError, ValueError, AttributeError, IndexError, TypeError) as error:
        reason = (str(error).splitlines() or ["the file ends too early"])[0][:200]
        raise CheckpointError(f"{path}: not a readable torch file ({reason})") from error


def is_zip(path: Path) -> bool:
    """Whether a file begins as a zip archive does, which torch can map into memory."""
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def read_weights(path: str | Path) -> dict[str, Any]:
    """The content of a safetensors or torch file as a dict, running nothing in it; or a checkpoint folder."""
    path = Path(path)
    if path.is_dir():
        path = path / WEIGHTS
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}
        except SafetensorError as error:
            raise CheckpointError(f"{path}: not a readable safetensors file ({error})") from error
    content = read_pickle(path)
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}; needed: a dict of tensors")
    return content
