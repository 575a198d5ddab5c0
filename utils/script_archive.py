"""TorchScript archives, as OpenAI publishes CLIP (`ViT-B-16.pt`): their tensors by name, with nothing in them run.

torch.jit.load would run what the archive's classes define for loading; here their names only hold attributes.
"""

from __future__ import annotations

import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from utils.checkpoint import CheckpointError, is_zip

_DTYPES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "BoolStorage": torch.bool,
}


class _Part:
    """A module or class of an archive: its attributes."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


def _strided(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    """What torch._utils._rebuild_tensor_v2 comes to, gradients and hooks aside."""
    return storage.as_strided(size, stride, offset)


def _values(values: Any, *_: Any) -> Any:
    """A typed list or dict of TorchScript as the plain one."""
    return values


class _Reader(pickle.Unpickler):
    """Builds tensors, containers and attribute holders; refuses every other name."""

    def __init__(self, archive: zipfile.ZipFile, root: str) -> None:
        super().__init__(archive.open(f"{root}/data.pkl"))
        self.archive, self.root = archive, root

    def find_class(self, module: str, name: str) -> Any:
        if module == "__torch__" or module.startswith("__torch__."):
            return type(name, (_Part,), {})
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _strided
        if module == "torch.jit._pickle" and name.startswith(("build_", "restore_type_tag")):
            return _values
        raise pickle.UnpicklingError(f"names {module}.{name}")

    def persistent_load(self, key: tuple[Any, ...]) -> Tensor:
        _, dtype, name, *_ = key
        return torch.frombuffer(bytearray(self.archive.read(f"{self.root}/data/{name}")), dtype=dtype)


def is_script_archive(path: str | Path) -> bool:
    """Whether a file is a TorchScript archive: a zip with constants beside its data."""
    path = Path(path)
    if not path.is_file() or not is_zip(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def read_script_archive(path: str | Path) -> dict[str, Tensor]:
    """Parameters and buffers of the scripted module by name, on the CPU; CheckpointError if it holds anything else."""
    try:
        with zipfile.ZipFile(path) as archive:
            root = next(name.removesuffix("/data.pkl") for name in archive.namelist() if name.endswith("/data.pkl"))
            module = _Reader(archive, root).load()
    except (pickle.UnpicklingError, zipfile.BadZipFile, KeyError, StopIteration, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path}: not a readable TorchScript archive ({str(error)[:200]})") from error
    tensors: dict[str, Tensor] = {}
    _collect(module, "", tensors)
    return tensors


def _collect(part: Any, prefix: str, tensors: dict[str, Tensor]) -> None:
    for name, value in vars(part).items():
        if isinstance(value, Tensor):
            tensors[prefix + name] = value
        elif isinstance(value, _Part):
            _collect(value, f"{prefix}{name}.", tensors)
