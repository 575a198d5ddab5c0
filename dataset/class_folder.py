"""Pictures in one folder per class: ImageNet's layout, and ELEVATER's with numbered folders."""

from __future__ import annotations

import os
from pathlib import Path

from dataset.files import MAX_FILE_BYTES, BadRecord, DataError, Files

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")


class ClassFolder:
    """The pictures of a folder, class by class in the order of their folders' names.

    `labels` holds the class number of every picture: its folder's place, or the folder's own number where they are
    numbered from 0, so that a class without pictures moves no other one.
    """

    def __init__(self, path: str) -> None:
        self.path, self._files = path, Files()
        if not os.path.isdir(path):
            raise FileNotFoundError(f"{path}: no such folder; expected a folder for each class in it")
        self.classes = sorted(entry.name for entry in os.scandir(path) if entry.is_dir())
        if not self.classes:
            raise DataError(f"{path}: holds no folders; expected one for each class")
        numbers = self._numbers()
        self.ids: list[int | str] = []
        self.labels: list[int] = []
        for name, number in zip(self.classes, numbers, strict=True):
            inside = _pictures(Path(path) / name)
            self.ids += [os.path.relpath(place, path) for place in inside]
            self.labels += [number] * len(inside)
        if not self.ids:
            raise DataError(f"{path}: no pictures in its folders; looked for {', '.join(SUFFIXES)}")
        self.num_classes = max(numbers) + 1

    def __len__(self) -> int:
        return len(self.ids)

    def read(self, place: int) -> bytes:
        try:
            return self._files.read(self.where(place), MAX_FILE_BYTES)
        except OSError as error:
            raise BadRecord("unreadable image file", str(error)[:200]) from error

    def where(self, place: int) -> str:
        return os.path.join(self.path, str(self.ids[place]))

    def stamps(self) -> list[str]:
        """What changes with the content."""
        return [f"{self.where(place)} {self._files.stamp(self.where(place))}" for place in range(len(self))]

    def _numbers(self) -> list[int]:
        if all(name.isascii() and name.isdigit() for name in self.classes):
            numbers = [int(name) for name in self.classes]
            if len(set(numbers)) == len(numbers) and min(numbers) == 0:
                return numbers
        return list(range(len(self.classes)))


def _pictures(folder: Path) -> list[str]:
    found = []
    for inner, folders, names in os.walk(folder, followlinks=True):
        folders.sort()
        found += [os.path.join(inner, name) for name in sorted(names) if name.lower().endswith(SUFFIXES)]
    return found
