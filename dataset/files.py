"""Bytes from wherever they lie: local files, members of a zip (`set.zip::images/x.webp`), remote files through fsspec.

An object of this module holds open handles per process only; it can be pickled and survives a fork.
"""

from __future__ import annotations

import json
import os
import stat
import zipfile
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

import fsspec

from utils.remote import is_remote

MAX_OPEN_HANDLES = 64
MAX_FILE_BYTES = 256 * 1024 * 1024


class DataError(ValueError):
    """Data that cannot be used at all; the message says where, what was found and what is allowed."""


class BadRecord(ValueError):
    """One record that cannot be used: `reason` is a few words that are the same for the same fault."""

    def __init__(self, reason: str, detail: str = "", where: str = "") -> None:
        super().__init__((f"{where}: " if where else "") + reason + (f"; {detail}" if detail else ""))
        self.reason, self.detail, self.where = reason, detail, where


@dataclass(frozen=True)
class Stamp:
    """What tells that a file is still the same one."""

    size: int
    mtime_ns: int


def json_fault(error: Exception) -> str:
    """What is wrong with the JSON of one line, and where in it."""
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at character {error.pos + 1}"
    return str(error)[:200]


def split_member(path: str) -> tuple[str, str | None]:
    """`a.zip::b/c.json` as ("a.zip", "b/c.json"); a plain path as (path, None)."""
    archive, separator, member = path.partition("::")
    return (archive, member.lstrip("/")) if separator else (path, None)


def join_path(root: str, path: str) -> str:
    """A path below a root; the root may be a folder, a URL or a zip, an absolute path or URL stays as it is."""
    if not root or "::" in path or is_remote(path) or (os.path.isabs(path) and "::" not in root):
        return path
    if root.lower().endswith(".zip"):
        return f"{root}::{path}"
    return root + path if root.endswith(("/", "::")) else f"{root}/{path}"


@dataclass
class Files:
    """Reads files, zip members and remote files; handles are opened late, few at a time, and per process."""

    _handles: OrderedDict[str, Any] = field(default_factory=OrderedDict, repr=False, compare=False)
    _process: int = 0

    def __getstate__(self) -> dict[str, Any]:
        return {"_handles": OrderedDict(), "_process": 0}

    def stamp(self, path: str) -> Stamp:
        """Size and time of change of a file (of the zip for a member); FileNotFoundError if there is none."""
        archive, member = split_member(path)
        if is_remote(archive):
            size = fsspec.core.url_to_fs(archive)[0].size(archive)
            return Stamp(int(size or 0), 0)
        status = os.stat(archive)
        if not stat.S_ISREG(status.st_mode):
            raise FileNotFoundError(f"{archive}: not a regular file")
        if member is not None:
            self._member(archive, member)
        return Stamp(status.st_size, status.st_mtime_ns)

    def exists(self, path: str) -> bool:
        try:
            self.stamp(path)
        except OSError:
            return False
        return True

    def is_seekable(self, path: str) -> bool:
        """Whether parts of the file can be read without all that lies before them."""
        return split_member(path)[1] is None and not path.endswith(".gz")

    def read(self, path: str, limit: int | None = None) -> bytes:
        """The whole content; OSError if there is none, BadRecord when it is longer than `limit`."""
        archive, member = split_member(path)
        size = -1 if limit is None else limit + 1
        if is_remote(archive):
            with fsspec.open(path, "rb", compression="infer" if path.endswith(".gz") else None) as file:
                content = file.read(size)
        elif member is not None:
            content = self._read_member(archive, member, size)
        else:
            content = self._read_local(path, size)
        if limit is not None and len(content) > limit:
            raise BadRecord("file too large", f"more than {limit} bytes; allowed at most {limit}")
        return content

    def read_part(self, path: str, start: int, length: int) -> bytes:
        """Some bytes of a seekable file."""
        handle = self._handle(path)
        if isinstance(handle, int):
            return os.pread(handle, length, start)
        handle.seek(start)
        return handle.read(length)

    def list_folder(self, path: str) -> list[str]:
        """The files below a folder, sorted; a file stands for itself."""
        archive, member = split_member(path)
        if member is not None:
            names = self._zip(archive).namelist()
            folder = member.rstrip("/") + "/" if member else ""  # `a.zip::` is all of it
            inside = [name for name in names if name.startswith(folder) and not name.endswith("/")]
            return [path] if member in names else [f"{archive}::{name}" for name in sorted(inside)]
        if is_remote(path):
            system, inner = fsspec.core.url_to_fs(path)
            found = sorted(system.find(inner)) if system.isdir(inner) else [inner]
            return [system.unstrip_protocol(name) for name in found]
        if not os.path.isdir(path):
            return [path]
        return sorted(os.path.join(folder, name) for folder, _, names in os.walk(path) for name in names)

    def _read_local(self, path: str, size: int) -> bytes:
        # A pipe or a device would block for ever, so only regular files are opened.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise OSError(f"{path}: not a regular file")
            if not path.endswith(".gz"):
                return file.read(size)
            with fsspec.open(path, "rb", compression="gzip") as unpacked:
                return unpacked.read(size)

    def _read_member(self, archive: str, member: str, size: int) -> bytes:
        try:
            with self._zip(archive).open(self._member(archive, member)) as file:
                return file.read(size)
        except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
            raise OSError(f"{archive}::{member}: {error}") from error

    def _member(self, archive: str, member: str) -> zipfile.ZipInfo:
        try:
            return self._zip(archive).getinfo(member)
        except KeyError:
            raise FileNotFoundError(f"{archive}: has no member '{member}'") from None

    def _zip(self, archive: str) -> zipfile.ZipFile:
        handle = self._handle(archive + "::")
        assert isinstance(handle, zipfile.ZipFile)
        return handle

    def _handle(self, key: str) -> Any:
        # A forked child shares file offsets with its parent: it must open its own.
        if self._process != os.getpid():
            self._handles, self._process = OrderedDict(), os.getpid()
        if key not in self._handles:
            self._handles[key] = _open_handle(key)
            if len(self._handles) > MAX_OPEN_HANDLES:
                _close_handle(self._handles.popitem(last=False)[1])
        self._handles.move_to_end(key)
        return self._handles[key]


def _open_handle(key: str) -> Any:
    if key.endswith("::"):
        archive = key.removesuffix("::")
        if not is_remote(archive) and not os.path.isfile(archive):
            raise FileNotFoundError(f"{archive}: no such file")
        try:
            return zipfile.ZipFile(fsspec.open(archive, "rb").open() if is_remote(archive) else archive)
        except zipfile.BadZipFile as error:
            raise DataError(f"{archive}: not a zip file; {error}") from error
    return fsspec.open(key, "rb").open() if is_remote(key) else os.open(key, os.O_RDONLY)


def _close_handle(handle: Any) -> None:
    if isinstance(handle, int):
        os.close(handle)
    else:
        handle.close()
