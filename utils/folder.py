"""A folder that may be remote: files appear in it whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from utils.remote import open_system


class Folder:
    """Files below an address that fsspec knows: a local path, file://, s3://, hdfs://, memory://."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.filesystem, self.root = open_system(address)

    @property
    def full_address(self) -> str:
        """Its address as the file system itself spells it."""
        return self.filesystem.unstrip_protocol(self.root)

    def names(self) -> set[str]:
        """The files below it, hidden ones too."""
        self.filesystem.invalidate_cache()
        if not self.filesystem.isdir(self.root):
            return set()
        root = self.root.rstrip("/")
        return {path[len(root) :].lstrip("/") for path in self.filesystem.find(root)}

    def read(self, name: str) -> bytes:
        return self.filesystem.cat_file(self._path(name))

    def write(self, name: str, content: bytes) -> None:
        with self.create(name) as file:
            file.write(content)

    @contextmanager
    def create(self, name: str) -> Iterator[BinaryIO]:
        """A file to write; it gets its name when the block ends well."""
        place = self._path(name)
        folder, _, last = place.rpartition("/")
        self.filesystem.makedirs(folder, exist_ok=True)
        temporary = f"{folder}/.{last.lstrip('.')}.tmp"
        with self.filesystem.open(temporary, "wb") as file:
            yield file
        self.filesystem.mv(temporary, place)

    def remove(self, name: str) -> None:
        self.filesystem.rm_file(self._path(name))

    def _path(self, name: str) -> str:
        return f"{self.root.rstrip('/')}/{name}"
