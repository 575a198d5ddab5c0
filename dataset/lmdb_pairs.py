"""Chinese-CLIP's LMDB folders: `<split>/pairs` (number -> pickled (image_id, text_id, text)) and `<split>/imgs`
(image id -> base64), written so that the original reads them, and read whoever wrote them.
"""

from __future__ import annotations

import io
import os
import pickle
import shutil
import tempfile
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import lmdb

from dataset.files import BadRecord, DataError

PAIRS, IMAGES = "pairs", "imgs"
NUM_PAIRS, NUM_IMAGES = b"num_samples", b"num_images"
MAP_BYTES = 1 << 40  # of address space, as in the original; the file is as large as its content
RECORDS_PER_COMMIT = 5000
# One environment per file and process, which is all that lmdb allows; it goes with the last data set that reads it.
_OPEN: weakref.WeakValueDictionary[tuple[int, int], lmdb.Environment] = weakref.WeakValueDictionary()


class _PlainUnpickler(pickle.Unpickler):
    """Reads numbers, strings and tuples; anything that would import a name is refused."""

    def find_class(self, module: str, name: str) -> NoReturn:
        raise pickle.UnpicklingError(f"names {module}.{name}; allowed: a tuple of two whole numbers and a text")


@dataclass(frozen=True)
class Pair:
    """One text with one of its images."""

    image_id: int
    text_id: int
    text: str


def read_pair(content: bytes) -> Pair:
    """The pair of a pickled record; BadRecord for anything but (int, int, str)."""
    try:
        found = _PlainUnpickler(io.BytesIO(content)).load()
    except Exception as error:  # unpickling foreign bytes raises anything
        raise BadRecord("broken pair", f"{type(error).__name__}: {str(error)[:150]}") from error
    if not isinstance(found, tuple) or len(found) != 3 or not all(isinstance(each, int | str) for each in found):
        raise BadRecord(
            "broken pair", f"found {type(found).__name__} {str(found)[:60]}; needed: (image, text id, text)"
        )
    image_id, text_id, text = found
    return Pair(whole_number(image_id, "image_id"), whole_number(text_id, "text_id"), str(text))


def whole_number(value: Any, name: str) -> int:
    """An id as a number; BadRecord if it is none."""
    is_number = (isinstance(value, int) and not isinstance(value, bool)) or (
        isinstance(value, str) and value.removeprefix("-").isascii() and value.removeprefix("-").isdigit()
    )
    if not is_number:
        raise BadRecord(f"{name} is not a whole number", f"found {str(value)[:40]!r}")
    return int(value)


def is_pair_folder(path: str | os.PathLike) -> bool:
    """Whether a path is the folder of a split with texts and images."""
    return all((Path(path) / part / "data.mdb").is_file() for part in (PAIRS, IMAGES))


def is_environment(path: str | os.PathLike) -> bool:
    """Whether a path is a folder that lmdb reads."""
    return (Path(path) / "data.mdb").is_file()


class Table:
    """The records of one environment by key; it can be pickled, and read after a fork."""

    def __init__(self, path: str | os.PathLike, count_key: bytes) -> None:
        self.path, self.count_key = str(path), count_key
        self._environment: lmdb.Environment | None = None
        counted = self.get(count_key)
        with self._open().begin() as transaction:
            entries = transaction.stat()["entries"]
        if counted is None or not counted.isdigit():
            raise DataError(
                f"{self.path}: no '{count_key.decode()}' at its end, so it was never finished; write it again with "
                "--task build_lmdb"
            )
        self.num_records = int(counted)
        if entries != self.num_records + 1:
            fault = "records of an older file are left in it" if entries > self.num_records else "records are missing"
            raise DataError(
                f"{self.path}: holds {entries - 1} records, its '{count_key.decode()}' says {self.num_records}; "
                f"{fault}; write it again with --task build_lmdb"
            )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_environment": None}

    def get(self, key: bytes) -> bytes | None:
        """The record under a key."""
        with self._open().begin() as transaction:
            return transaction.get(key)

    def keys(self) -> Iterator[bytes]:
        """All keys but the count, in the order of lmdb: as strings."""
        with self._open().begin() as transaction, transaction.cursor() as cursor:
            for key in cursor.iternext(keys=True, values=False):
                if key != self.count_key:
                    yield key

    def _open(self) -> lmdb.Environment:
        # Readers take no lock and write nothing, so a forked child may go on with its parent's environment.
        if self._environment is None:
            self._environment = _open_environment(self.path)
        return self._environment


def _open_environment(path: str) -> lmdb.Environment:
    try:
        status = os.stat(Path(path) / "data.mdb")
    except OSError as error:
        raise FileNotFoundError(f"{path}: no LMDB folder; expected data.mdb in it") from error
    key = (status.st_dev, status.st_ino)
    environment = _OPEN.get(key)
    if environment is None:
        try:
            environment = lmdb.open(path, readonly=True, create=False, lock=False, readahead=False, meminit=False)
        except lmdb.Error as error:
            raise DataError(f"{path}: cannot be read as LMDB; {error}") from error
        # lmdb maps the file: reading behind its end would end the process with a signal.
        needed = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
        if status.st_size < needed:
            raise DataError(
                f"{path}/data.mdb has {status.st_size} bytes of {needed}: it was not written or copied to its end; "
                "copy it again, or write it with --task build_lmdb"
            )
        _OPEN[key] = environment
    return environment


class LmdbImages:
    """Images by id, in the order of their keys."""

    def __init__(self, path: str | os.PathLike) -> None:
        self.table = Table(path, NUM_IMAGES)
        self.path = self.table.path

    def __len__(self) -> int:
        return self.table.num_records

    def where(self, image_id: int) -> str:
        return f"{self.path}[{image_id}]"

    def ids(self) -> list[int]:
        """All ids; keys are sorted as strings, as in the original's feature files."""
        try:
            return [whole_number(key.decode(), "image id") for key in self.table.keys()]
        except (BadRecord, UnicodeDecodeError) as error:
            raise DataError(f"{self.path}: {error}") from error

    def read(self, image_id: int) -> str:
        """The base64 of an image; BadRecord if there is none."""
        content = self.table.get(str(image_id).encode())
        if content is None:
            raise BadRecord("unknown image id", f"{image_id} is not in {self.path}")
        return content.decode("latin-1")  # base64 decoding tells what is no base64


class LmdbPairs:
    """Pairs by number."""

    def __init__(self, path: str | os.PathLike) -> None:
        self.table = Table(path, NUM_PAIRS)
        self.path = self.table.path

    def __len__(self) -> int:
        return self.table.num_records

    def where(self, number: int) -> str:
        return f"{self.path}[{number}]"

    def read(self, number: int) -> dict[str, Any]:
        """The pair as a line of the texts' file that has one image."""
        content = self.table.get(str(number).encode())
        if content is None:
            raise BadRecord("missing pair", f"no record {number} of {len(self)}", self.where(number))
        try:
            pair = read_pair(content)
        except BadRecord as error:
            raise BadRecord(error.reason, error.detail, self.where(number)) from error
        return {"text_id": pair.text_id, "text": pair.text, "image_ids": [pair.image_id]}


@dataclass
class Written:
    """How much a new folder holds."""

    num_pairs: int
    num_images: int


def write_folder(folder: Path, pairs: Iterable[Pair], images: Iterable[tuple[int, str]]) -> Written:
    """Write the LMDB of a split; the folder appears when all of it is on the disk, and takes the place of an older one.

    pairs are stored in their order; of images with equal ids the last stays.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".partial", dir=folder.parent))
    try:
        num_pairs = _write(partial / PAIRS, NUM_PAIRS, _pair_records(pairs))
        num_images = _write(partial / IMAGES, NUM_IMAGES, ((str(key).encode(), v.encode()) for key, v in images))
        os.chmod(partial, 0o755)
        _put_in_place(partial, folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return Written(num_pairs, num_images)


def _pair_records(pairs: Iterable[Pair]) -> Iterator[tuple[bytes, bytes]]:
    for number, pair in enumerate(pairs):
        yield str(number).encode(), pickle.dumps((pair.image_id, pair.text_id, pair.text), protocol=4)


def _write(path: Path, count_key: bytes, records: Iterable[tuple[bytes, bytes]]) -> int:
    """Write an environment, its count last; the number of different keys."""
    path.mkdir()
    environment = lmdb.open(str(path), map_size=MAP_BYTES, readahead=False, meminit=False, sync=False)
    try:
        transaction = environment.begin(write=True)
        for number, (key, value) in enumerate(records, start=1):
            transaction.put(key, value)
            if number % RECORDS_PER_COMMIT == 0:
                transaction.commit()
                transaction = environment.begin(write=True)
        num_records = transaction.stat()["entries"]
        transaction.put(count_key, str(num_records).encode())
        transaction.commit()
        environment.sync(True)
    finally:
        environment.close()
    (path / "lock.mdb").unlink(missing_ok=True)
    return num_records


def _put_in_place(partial: Path, folder: Path) -> None:
    """Rename the finished folder; what stood there goes away after it, and comes back if this fails."""
    if not folder.exists():
        os.rename(partial, folder)
        return
    old = partial.with_suffix(".old")
    os.rename(folder, old)
    try:
        os.rename(partial, folder)
    except OSError:
        os.rename(old, folder)
        raise
    shutil.rmtree(old, ignore_errors=True)
