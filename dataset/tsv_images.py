"""Chinese-CLIP's `<split>_imgs.tsv`: one line per image, its id, a tab and the base64 of its file."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np

from dataset.batch import Skipped
from dataset.files import BadRecord, DataError, Files
from dataset.lmdb_pairs import whole_number
from dataset.readers import LineIndex, LineSource

MAX_ID_BYTES = 24  # a 64-bit number, its sign and the tab
log = logging.getLogger(__name__)


def parse_line(line: bytes) -> dict[str, Any]:
    """{image_id, image: base64} of a line."""
    key, tab, image = line.strip().partition(b"\t")
    if not tab or not image.strip():
        raise BadRecord("broken line", f"needed: <id> TAB <base64>; found {line[:40]!r}")
    image_id = whole_number(key.decode("ascii", "replace").strip(), "image id")
    return {"image_id": image_id, "image": image.strip().decode("latin-1")}


class TsvImages:
    """Images by id, read from where their lines begin; in the order of the file.

    `skipped` lists the lines that hold no image.
    """

    def __init__(self, path: str, files: Files, index: LineIndex) -> None:
        self.path = path
        self.source = LineSource(path, files, index.load(path), parse_line)
        self.skipped: list[Skipped] = []
        ids, lines = [], []
        for line in range(len(self.source)):
            try:
                ids.append(self._id_of(line))
                lines.append(line)
            except BadRecord as error:
                self.skipped.append(Skipped(self.source.where(line), error.reason, error.detail))
        self._ids, self._lines = np.array(ids, np.int64), np.array(lines, np.int64)
        self._order = np.argsort(self._ids, kind="stable")
        self._check_repeats()

    def __len__(self) -> int:
        return len(self._ids)

    def ids(self) -> list[int]:
        """All ids in the order of the file."""
        return list(dict.fromkeys(self._ids.tolist()))

    def where(self, image_id: int) -> str:
        """`file:line` of an image."""
        line = self._line(image_id)
        return self.path if line is None else self.source.where(line)

    def read(self, image_id: int) -> str:
        """The base64 of an image; BadRecord if there is none."""
        line = self._line(image_id)
        if line is None:
            raise BadRecord("unknown image id", f"{image_id} is not in {self.path}")
        return self.source.read(line)["image"]

    def _line(self, image_id: int) -> int | None:
        place = int(np.searchsorted(self._ids, image_id, side="left", sorter=self._order))
        if place == len(self._ids) or int(self._ids[self._order[place]]) != image_id:
            return None
        return int(self._lines[self._order[place]])

    def _id_of(self, line: int) -> int:
        start, end = (int(self.source.lines.starts[k]) for k in (line, line + 1))
        head = self.source.read_bytes(start, min(end, start + MAX_ID_BYTES)).lstrip()
        return parse_line(head if b"\t" in head[:-1] else self.source.read_bytes(start, end))["image_id"]

    def _check_repeats(self) -> None:
        """Two lines of one id must be the same picture."""
        ordered = self._ids[self._order]
        for place in np.flatnonzero(ordered[1:] == ordered[:-1]).tolist():
            first, second = (int(self._lines[self._order[k]]) for k in (place, place + 1))
            if self.source.read(first) != self.source.read(second):
                raise DataError(
                    f"{self.source.where(second)}: image id {ordered[place]} stands for another picture than in line "
                    f"{self.source.lines.line_number(first)}; ids must be unique"
                )
