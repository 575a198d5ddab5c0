"""Indices of data files, kept in a folder as long as size and time of change of a file stay the same."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

import numpy as np

from dataset.files import Stamp
from utils.remote import is_remote

VERSION = 2
HEADER = 3  # version, file size, time of change


def index_place(cache_dir: str | os.PathLike | None, path: str, kind: str = "") -> Path | None:
    """Where the index of a file belongs; None without a folder, and for remote files: they do not say when they
    changed, so nothing kept of them could be trusted.
    """
    if not cache_dir or is_remote(path):
        return None
    key = os.path.abspath(path) + (f"?{kind}" if kind else "")
    return Path(cache_dir) / (hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()[:32] + ".npy")


def read_index(place: Path | None, stamp: Stamp) -> np.ndarray | None:
    """The numbers (n,) that were kept, mapped from the file; None where there are none of this stamp."""
    try:
        table = np.load(place, mmap_mode="r", allow_pickle=False) if place else None
    except (OSError, ValueError, EOFError):
        return None  # absent or cut short: build it anew
    if table is None or table.ndim != 1 or table.dtype != np.int64 or len(table) < HEADER:
        return None
    is_current = [int(number) for number in table[:HEADER]] == [VERSION, stamp.size, stamp.mtime_ns]
    return table[HEADER:] if is_current else None


def write_index(place: Path | None, stamp: Stamp, numbers: np.ndarray) -> None:
    """Keep the numbers (n,) of a file; where that is not possible they stay in memory only."""
    if place is None:
        return
    table = np.concatenate([np.array([VERSION, stamp.size, stamp.mtime_ns], np.int64), numbers])
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=place.parent, suffix=".tmp")
    except OSError:
        return  # a read-only place
    try:
        with os.fdopen(handle, "wb") as file:
            np.save(file, table)
        os.replace(temporary, place)
    except OSError:
        os.unlink(temporary)
