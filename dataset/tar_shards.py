"""Tar shards of samples (WebDataset's layout): members that share a name up to its first dot are one sample.

A sample's record is its `.json` member, the lines of its `.txt` member as `text`, and its picture as bytes under
`image`. Where every member lies is found once and kept, so that each sample is reachable by its number.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from dataset.files import BadRecord, DataError, Files, json_fault
from dataset.index_cache import index_place, read_index, write_index

# The kinds of members, and the ends of their names; others are left out.
KINDS = (("jpg", "jpeg", "png", "webp", "bmp", "gif"), ("json",), ("txt",))
IMAGE, JSON, TEXT = range(3)
BLOCK = 512
MAX_MEMBER_BYTES = 256 * 1024 * 1024


class TarSource:
    """The samples of one tar file in their order; where (n, 3, 2) begin and length of each kind's member, -1: none."""

    def __init__(self, path: str, files: Files, cache_dir: str | os.PathLike | None) -> None:
        self.path, self.files = path, files
        if not files.is_seekable(path) or not path.lower().endswith(".tar"):
            raise DataError(f"{path}: a packed tar has no random access; unpack it to .tar")
        stamp = files.stamp(path)
        place = index_place(cache_dir, path)
        kept = read_index(place, stamp)
        if kept is None or len(kept) % 6:
            kept = find_samples(path, files, stamp.size).reshape(-1)
            write_index(place, stamp, kept)
        self.places = kept.reshape(-1, len(KINDS), 2)

    def __len__(self) -> int:
        return len(self.places)

    def where(self, i: int) -> str:
        """`shard.tar::name` of a sample."""
        start = min(int(begin) for begin, _ in self.places[i] if begin >= 0)
        try:
            header = self.files.read_part(self.path, start - BLOCK, BLOCK)
            name = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape").name
        except (tarfile.HeaderError, OSError):
            return f"{self.path}[{i}]"
        return f"{self.path}::{split_name(name)[0]}"

    def read(self, i: int) -> dict[str, Any]:
        """The record of a sample."""
        record: dict[str, Any] = {}
        content = self._member(i, JSON)
        if content is not None:
            try:
                record = json.loads(content)
            except (ValueError, RecursionError) as error:
                raise BadRecord("broken JSON", json_fault(error), self.where(i)) from error
            if not isinstance(record, dict):
                found = f"found {type(record).__name__}; allowed: a JSON object"
                raise BadRecord("not an object", found, self.where(i))
        text, image = self._member(i, TEXT), self._member(i, IMAGE)
        if text is not None:
            try:
                lines = [line for line in text.decode("utf-8-sig").splitlines() if line.strip()]
            except UnicodeDecodeError as error:
                raise BadRecord("not UTF-8", str(error)[:200], self.where(i)) from error
            record = {**record, "text": lines}
        return record if image is None else {**record, "image": image}

    def _member(self, i: int, kind: int) -> bytes | None:
        start, length = (int(number) for number in self.places[i, kind])
        if start < 0:
            return None
        if length > MAX_MEMBER_BYTES:
            raise BadRecord("member too large", f"{length} bytes; allowed at most {MAX_MEMBER_BYTES}", self.where(i))
        try:
            return self.files.read_part(self.path, start, length)
        except OSError as error:
            raise BadRecord("unreadable file", str(error), self.where(i)) from error


def split_name(name: str) -> tuple[str, str]:
    """`a/b.c.json` as ("a/b", "json"): what a sample's members share, and the kind of this one."""
    path = PurePosixPath(name)
    stem, _, ending = path.name.partition(".")
    return str(path.with_name(stem)) if stem else name, ending.rpartition(".")[2].lower()


def find_samples(path: str, files: Files, size: int) -> np.ndarray:
    """Where the members of every sample lie: (n, 3, 2); samples without any known member are left out."""
    samples: list[np.ndarray] = []
    last = None
    try:
        with tarfile.open(fileobj=io.BufferedReader(_SeekableFile(path, files, size)), mode="r:") as archive:
            for member in archive:
                key, ending = split_name(member.name)
                kind = next((k for k, endings in enumerate(KINDS) if ending in endings), None)
                archive.members = []  # it would keep the headers of millions of members
                if not member.isreg() or kind is None:
                    continue
                if member.offset_data + member.size > size:
                    raise DataError(f"{path}: cut short; '{member.name}' ends behind the file's {size} bytes")
                if key != last:
                    samples.append(np.full((len(KINDS), 2), -1, np.int64))
                    last = key
                if samples[-1][kind, 0] >= 0:
                    raise DataError(f"{path}: sample '{key}' has two .{'/.'.join(KINDS[kind])} members; allowed: one")
                samples[-1][kind] = member.offset_data, member.size
    except tarfile.TarError as error:
        raise DataError(f"{path}: not a whole tar file; {error}") from error
    return np.stack(samples) if samples else np.zeros((0, len(KINDS), 2), np.int64)


class _SeekableFile(io.RawIOBase):
    """A file of `Files`, local or remote, for who wants a file object."""

    def __init__(self, path: str, files: Files, size: int) -> None:
        self.path, self.files, self.size, self.position = path, files, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self.position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self.position, os.SEEK_END: self.size}[whence]
        return self.position

    def readinto(self, buffer: Any) -> int:
        content = self.files.read_part(self.path, self.position, min(len(buffer), max(0, self.size - self.position)))
        buffer[: len(content)] = content
        self.position += len(content)
        return len(content)
