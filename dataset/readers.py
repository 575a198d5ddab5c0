"""Records from JSON lines, JSON lists, CSV tables and tar shards, any number of files and folders, each reachable by
its number.

JSON-lines files and tables are indexed once by the byte offset of every line (8 bytes each, kept in a cache folder).
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from dataset.files import BadRecord, DataError, Files, Stamp, json_fault
from dataset.index_cache import index_place, read_index, write_index
from dataset.tar_shards import TarSource
from utils.registry import nearest

CHUNK_BYTES = 8 * 1024 * 1024
IGNORED_NAME = "_SUCCESS"  # left behind by Hadoop jobs beside their shards
MAX_LISTED = 20  # names that a message shows
MAX_LINE_BYTES = 512 * 1024 * 1024


@dataclass(frozen=True)
class Lines:
    """Where the lines of a file begin: starts (n + 1,) ends with the file's size; blank lines are left out.

    `blanks` holds, for every blank line, how many real lines stand before it: line numbers stay those of the file.
    """

    starts: np.ndarray
    blanks: np.ndarray

    def __len__(self) -> int:
        return len(self.starts) - 1

    def line_number(self, i: int) -> int:
        return i + 1 + int(np.searchsorted(self.blanks, i, side="right"))


def find_lines(chunks: Iterator[bytes], *, is_quoted: bool = False) -> Lines:
    """The line starts of a file that comes in chunks; is_quoted: line breaks between double quotes end no line."""
    is_ink = np.ones(256, bool)
    is_ink[list(b" \t\r\n")] = False
    starts, inked, position, open_line_is_inked, num_quotes = [np.zeros(1, np.int64)], [], 0, False, 0
    for chunk in filter(None, chunks):
        content = np.frombuffer(chunk, np.uint8)
        breaks = content == ord("\n")
        if is_quoted:
            quotes = num_quotes + np.cumsum(content == ord('"'))
            num_quotes, breaks = int(quotes[-1]), breaks & (quotes % 2 == 0)
        ends = np.flatnonzero(breaks).astype(np.int64) + 1
        pieces = np.concatenate([np.zeros(1, np.int64), ends[ends < len(content)]])
        piece_is_inked = np.logical_or.reduceat(is_ink[content], pieces)
        piece_is_inked[0] |= open_line_is_inked
        open_line_is_inked = bool(len(pieces) > len(ends) and piece_is_inked[-1])
        inked.append(piece_is_inked[: len(ends)])
        starts.append(ends + position)
        position += len(content)
    all_starts, is_real = np.concatenate(starts), np.concatenate([*inked, np.zeros(0, bool)])
    if all_starts[-1] != position:  # no line break at the end of the file
        all_starts, is_real = np.append(all_starts, position), np.append(is_real, open_line_is_inked)
    blanks = np.flatnonzero(~is_real)
    return Lines(np.append(all_starts[:-1][is_real], position), (blanks - np.arange(len(blanks))).astype(np.int64))


class LineIndex:
    """Builds line indices and keeps them in a folder; where that cannot be written, in memory only."""

    def __init__(self, files: Files, cache_dir: str | os.PathLike | None) -> None:
        self.files, self.cache_dir = files, cache_dir

    def load(self, path: str, *, is_quoted: bool = False) -> Lines:
        """The lines of a file, from the cache when size and time of change still agree."""
        stamp = self.files.stamp(path)
        place = index_place(self.cache_dir, path, "quoted" if is_quoted else "")
        kept = read_index(place, stamp)
        if kept is not None and len(kept) and len(kept) > int(kept[0]) + 1:
            first_blank = 2 + int(kept[0])
            return Lines(kept[1:first_blank], kept[first_blank:])
        lines = find_lines(self._chunks(path, stamp), is_quoted=is_quoted)
        write_index(place, stamp, np.concatenate([[len(lines)], lines.starts, lines.blanks]).astype(np.int64))
        return lines

    def _chunks(self, path: str, stamp: Stamp) -> Iterator[bytes]:
        if not self.files.is_seekable(path):
            yield self.files.read(path)
            return
        for start in range(0, stamp.size, CHUNK_BYTES):
            yield self.files.read_part(path, start, min(CHUNK_BYTES, stamp.size - start))


class Source(Protocol):
    """Records of one file."""

    path: str

    def __len__(self) -> int: ...
    def where(self, i: int) -> str: ...
    def read(self, i: int) -> dict[str, Any]: ...


Parse = Callable[[bytes], dict[str, Any]]


class LineSource:
    """One record per line: a JSON object, or what `parse` makes of the line."""

    def __init__(self, path: str, files: Files, lines: Lines, parse: Parse | None = None) -> None:
        self.path, self.files, self.lines, self.parse = path, files, lines, parse or json.loads
        self._content: bytes | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_content": None}

    def __len__(self) -> int:
        return len(self.lines)

    def where(self, i: int) -> str:
        return f"{self.path}:{self.lines.line_number(i)}"

    def read(self, i: int) -> dict[str, Any]:
        start, end = int(self.lines.starts[i]), int(self.lines.starts[i + 1])
        if end - start > MAX_LINE_BYTES:
            raise BadRecord("line too long", f"{end - start} bytes; allowed at most {MAX_LINE_BYTES}", self.where(i))
        try:
            raw = self.read_bytes(start, end)
        except OSError as error:
            raise BadRecord("unreadable file", str(error), self.where(i)) from error
        try:
            record = self.parse(raw)
        except BadRecord as error:
            raise BadRecord(error.reason, error.detail, self.where(i)) from error
        except (ValueError, RecursionError) as error:
            raise BadRecord("broken JSON", json_fault(error), self.where(i)) from error
        return check_object(record, self.where(i))

    def read_lines(self, first: int, last: int) -> list[bytes]:
        """Lines as they stand in the file, with their ends and the blank lines after them (the first: also before)."""
        starts = [0 if first == 0 else int(self.lines.starts[first]), *self.lines.starts[first + 1 : last + 1].tolist()]
        content = self.read_bytes(starts[0], starts[-1])
        return [content[start - starts[0] : end - starts[0]] for start, end in zip(starts, starts[1:])]

    def read_bytes(self, start: int, end: int) -> bytes:
        """The content of the file between two places."""
        if self.files.is_seekable(self.path):
            return self.files.read_part(self.path, start, end - start)
        if self._content is None:  # a packed file has no random access: unpack it once per process
            self._content = self.files.read(self.path)
        return self._content[start:end]


class TableSource(LineSource):
    """A comma-separated table whose first row names the columns; a cell between double quotes may hold anything."""

    def __init__(self, path: str, files: Files, lines: Lines) -> None:
        super().__init__(path, files, lines, self._as_record)
        if not len(lines):
            raise DataError(f"{path}: empty; the first row must name the columns")
        self.columns = self._cells(self.read_bytes(int(lines.starts[0]), int(lines.starts[1])))
        if len(set(self.columns)) < len(self.columns):
            raise DataError(f"{path}:1: a column is named twice; found: {', '.join(self.columns)}")

    def __len__(self) -> int:
        return len(self.lines) - 1

    def where(self, i: int) -> str:
        return super().where(i + 1)

    def read(self, i: int) -> dict[str, Any]:
        return super().read(i + 1)

    def _as_record(self, raw: bytes) -> dict[str, Any]:
        """The cells of a row by column; an empty cell is None."""
        try:
            cells = self._cells(raw)
        except (ValueError, csv.Error) as error:
            raise BadRecord("broken row", str(error)[:200]) from error
        if len(cells) != len(self.columns):
            raise BadRecord(
                "broken row", f"{len(cells)} cells, needed: {len(self.columns)} ({', '.join(self.columns)})"
            )
        return {name: cell or None for name, cell in zip(self.columns, cells, strict=True)}

    def _cells(self, raw: bytes) -> list[str]:
        rows = list(csv.reader([raw.decode("utf-8-sig").rstrip("\r\n")], strict=True))
        if len(rows) != 1:
            raise ValueError(f"{len(rows)} rows where one should be")
        return [cell.strip() for cell in rows[0]]


class ListSource:
    """A file that is one JSON list of objects."""

    def __init__(self, path: str, content: bytes) -> None:
        self.path = path
        try:
            self.records = json.loads(content)
        except RecursionError as error:
            raise DataError(f"{path}: not a JSON list; it is nested too deeply") from error
        except json.JSONDecodeError as error:
            raise DataError(f"{path}:{error.lineno}: broken JSON; {error.msg}; allowed: a list of objects") from error
        except ValueError as error:
            raise DataError(f"{path}: broken JSON; {str(error)[:200]}") from error

    def __len__(self) -> int:
        return len(self.records)

    def where(self, i: int) -> str:
        return f"{self.path}[{i}]"

    def read(self, i: int) -> dict[str, Any]:
        return check_object(self.records[i], self.where(i))


class KeyedSource(ListSource):
    """A file that is one JSON object of records; each gets its key as a field."""

    def __init__(self, path: str, content: bytes, key_field: str) -> None:
        super().__init__(path, content)
        self.keys = list(self.records)
        self.records = [
            {key_field: key, **record} if isinstance(record, dict) else record for key, record in self.records.items()
        ]

    def where(self, i: int) -> str:
        return f"{self.path}[{self.keys[i]!r}]"


def check_object(record: Any, where: str) -> dict[str, Any]:
    """The record itself if it is a JSON object, else BadRecord."""
    if not isinstance(record, dict):
        raise BadRecord("not an object", f"found {type(record).__name__}; allowed: a JSON object", where)
    return record


class Records:
    """All records of some files and folders under one running number; files keep their order, folders are sorted."""

    def __init__(
        self,
        paths: Sequence[str],
        files: Files,
        cache_dir: str | os.PathLike | None = None,
        parse: Parse | None = None,
        open_file: Callable[[str, Files, LineIndex], Source] | None = None,
    ) -> None:
        index = LineIndex(files, cache_dir)
        open_file = open_file or partial(open_source, parse=parse)
        self.sources: list[Source] = [open_file(path, files, index) for path in list_files(paths, files)]
        self.ends = np.cumsum([len(source) for source in self.sources], dtype=np.int64)

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def read(self, i: int) -> dict[str, Any]:
        """Record number i; BadRecord if it is broken."""
        source, inner = self._locate(i)
        return source.read(inner)

    def where(self, i: int) -> str:
        """`file:line` of a record, or `file[number]` in a JSON list."""
        source, inner = self._locate(i)
        return source.where(inner)

    def _locate(self, i: int) -> tuple[Source, int]:
        if not 0 <= i < len(self):
            raise IndexError(f"record {i} of {len(self)}")
        k = int(np.searchsorted(self.ends, i, side="right"))
        return self.sources[k], i - int(self.ends[k - 1] if k else 0)


def list_files(paths: Sequence[str], files: Files) -> list[str]:
    """The files named or lying below the named folders, without Hadoop's success marks and hidden files."""
    found = []
    for path in paths:
        try:
            inside = files.list_folder(path)
            if inside == [path]:
                files.stamp(path)
        except FileNotFoundError as error:
            zipped = f"{path}.zip::{path.rpartition('/')[2]}"  # as IGLUE's larger files come
            if not files.exists(zipped):
                raise FileNotFoundError(f"{path}: no such data file or folder{_beside(path)}") from error
            inside = [zipped]
        except OSError as error:
            raise DataError(f"{path}: cannot be listed; {error}") from error
        kept = [name for name in inside if IGNORED_NAME not in Path(name).name and not Path(name).name.startswith(".")]
        if not kept:
            raise FileNotFoundError(f"{path}: holds no data files")
        found.extend(kept)
    return found


def _beside(path: str) -> str:
    """What a missing file may have been meant to be, or the names beside it, as the languages of a set are."""
    name, folder = os.path.basename(path), os.path.dirname(path)
    is_near = os.path.isdir(folder)
    while folder and not os.path.isdir(folder):
        folder, name = os.path.split(folder)
    if not folder.strip("/"):
        return ""
    names = sorted(entry for entry in os.listdir(folder) if not entry.startswith("."))
    close = nearest(name, names)
    if close:
        return f"; did you mean '{os.path.join(folder, close)}'?"
    return f"; {folder} has {', '.join(names[:MAX_LISTED])}" if names and not is_near else ""


def open_source(path: str, files: Files, index: LineIndex, parse: Parse | None = None) -> Source:
    """Lines that `parse` reads; without it a tar or a table by its name (.tar, .csv), a JSON list or JSON lines, told
    apart by the first character of the file.
    """
    try:
        stamp = files.stamp(path)
        head = files.read_part(path, 0, min(stamp.size, 4096)) if files.is_seekable(path) else files.read(path)[:4096]
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}: no such data file") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read; {error}") from error
    if parse is None and path.lower().endswith((".tar", ".tar.gz", ".tgz")):
        return TarSource(path, files, index.cache_dir)
    if parse is None and path.lower().endswith((".csv", ".csv.gz")):
        return TableSource(path, files, index.load(path, is_quoted=True))
    if parse is None and head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"[":
        return ListSource(path, files.read(path))
    return LineSource(path, files, index.load(path), parse)
