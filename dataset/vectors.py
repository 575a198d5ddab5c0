"""Files of embeddings with their ids: the original's JSON lines, npy with the ids beside it, parquet."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dataset.files import DataError

Kind = Literal["image", "text"]
VALUES = "feature"  # the original's name for a vector in files
FORMATS = (".jsonl", ".npy", ".parquet")


@dataclass(frozen=True)
class Vectors:
    """values (N, D) float32 and the N ids of images or texts: whole numbers, or names of files."""

    kind: Kind
    ids: list[int | str]
    values: np.ndarray


def check_format(path: str | os.PathLike) -> str:
    """The ending of a file of vectors; DataError where it is none of ours."""
    suffix = Path(path).suffix
    if suffix not in FORMATS:
        raise DataError(f"{path}: files of vectors end in {', '.join(FORMATS)}")
    return suffix


def ids_beside(path: str | os.PathLike) -> Path:
    """Where the ids of an .npy file stand."""
    return Path(path).with_suffix(".ids.json")


def read_vectors(path: str | os.PathLike, kind: Kind) -> Vectors:
    """The vectors of a file in the order of its lines; DataError says what is wrong, and where."""
    suffix = check_format(path)
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file of vectors; --task extract_features writes it")
    read = {".jsonl": _read_lines, ".npy": _read_npy, ".parquet": _read_parquet}[suffix]
    ids, values = read(Path(path), kind)
    if values.ndim != 2 or len(ids) != len(values):
        raise DataError(f"{path}: {len(ids)} ids, but vectors of shape {list(values.shape)}")
    finite = np.isfinite(values).all(axis=1) if len(values) else np.ones(0, bool)
    if not finite.all():
        row = int(np.flatnonzero(~finite)[0])
        raise DataError(f"{path}: the vector of {kind} {ids[row]!r} (number {row + 1}) has values that are no numbers")
    if len(set(ids)) < len(ids):
        twice = next(one for one in ids if ids.count(one) > 1)
        raise DataError(f"{path}: {kind}_id {twice!r} stands in two lines")
    return Vectors(kind, ids, values)


def write_vectors(path: Path, kind: Kind, parts: Iterator[tuple[Sequence[int | str], np.ndarray]]) -> int:
    """Write parts of (ids, values) as one file, whole or not at all; the number of vectors."""
    suffix = check_format(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.partial")
    write = {".jsonl": _write_lines, ".npy": _write_npy, ".parquet": _write_parquet}[suffix]
    count = write(temporary, path, kind, parts)
    os.replace(temporary, path)
    return count


def _write_lines(temporary: Path, path: Path, kind: Kind, parts: Iterator[tuple[Sequence[Any], np.ndarray]]) -> int:
    count = 0
    with open(temporary, "w", encoding="utf-8") as file:
        for ids, values in parts:
            file.writelines(
                json.dumps({f"{kind}_id": key, VALUES: value}) + "\n"
                for key, value in zip(ids, values.tolist(), strict=True)
            )
            count += len(ids)
    return count


def _write_npy(temporary: Path, path: Path, kind: Kind, parts: Iterator[tuple[Sequence[Any], np.ndarray]]) -> int:
    """The ids get their name first: values without ids would be read as another run's."""
    all_ids: list[Any] = []
    blocks = []
    for ids, values in parts:
        all_ids += ids
        blocks.append(values)
    with open(temporary, "wb") as file:
        np.save(file, np.concatenate(blocks).astype(np.float32))
    place = ids_beside(path)
    partial = place.with_name(f".{place.name}.partial")
    partial.write_text(json.dumps({f"{kind}_ids": all_ids}), encoding="utf-8")
    path.unlink(missing_ok=True)
    os.replace(partial, place)
    return len(all_ids)


def _write_parquet(temporary: Path, path: Path, kind: Kind, parts: Iterator[tuple[Sequence[Any], np.ndarray]]) -> int:
    arrow, parquet = _arrow(path)
    count, writer = 0, None
    try:
        for ids, values in parts:
            flat = arrow.array(np.ascontiguousarray(values, np.float32).reshape(-1))
            vectors = arrow.FixedSizeListArray.from_arrays(flat, values.shape[1])
            table = arrow.table({f"{kind}_id": arrow.array(list(ids)), VALUES: vectors})
            writer = writer or parquet.ParquetWriter(temporary, table.schema)
            writer.write_table(table)
            count += len(ids)
    finally:
        if writer is not None:
            writer.close()
    return count


def _arrow(path: Path) -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError(f"{path}: parquet needs the package pyarrow (pip install pyarrow); or use .npy") from error
    return pyarrow, pyarrow.parquet


def _read_lines(path: Path, kind: Kind) -> tuple[list[Any], np.ndarray]:
    ids: list[Any] = []
    rows: list[np.ndarray] = []
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            key, row = _parse_line(line, kind, f"{path}:{number}")
            if rows and len(row) != len(rows[0]):
                raise DataError(f"{path}:{number}: a vector of {len(row)} values after ones of {len(rows[0])}")
            ids.append(key)
            rows.append(row)
    return ids, np.stack(rows) if rows else np.zeros((0, 0), np.float32)


def _parse_line(line: bytes, kind: Kind, where: str) -> tuple[int | str, np.ndarray]:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise DataError(f"{where}: broken JSON; {str(error)[:150]}") from error
    if not isinstance(record, dict) or f"{kind}_id" not in record or VALUES not in record:
        found = ", ".join(map(str, record)) if isinstance(record, dict) else type(record).__name__
        raise DataError(f"{where}: needed: {kind}_id and {VALUES}; found: {found or 'none'}")
    key = record[f"{kind}_id"]
    if not isinstance(key, int | str) or isinstance(key, bool):
        raise DataError(f"{where}: {kind}_id must be a whole number or a name, found {type(key).__name__}")
    try:
        row = np.array(record[VALUES], np.float32)
    except (ValueError, TypeError) as error:
        raise DataError(f"{where}: {VALUES} must be a list of numbers; {str(error)[:100]}") from error
    if row.ndim != 1 or not len(row):
        raise DataError(f"{where}: {VALUES} must be a list of numbers, found shape {list(row.shape)}")
    return key, row


def _read_npy(path: Path, kind: Kind) -> tuple[list[Any], np.ndarray]:
    place = ids_beside(path)
    try:
        values = np.load(path, allow_pickle=False)
        ids = json.loads(place.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{place}: no such file; it holds the ids of {path}") from error
    except (ValueError, EOFError) as error:
        raise DataError(f"{path}: cannot be read; {str(error)[:150]}") from error
    if not isinstance(ids, dict) or not isinstance(ids.get(f"{kind}_ids"), list):
        raise DataError(f"{place}: needed: {kind}_ids, a list; found: {', '.join(ids) or 'nothing'}")
    return ids[f"{kind}_ids"], values.astype(np.float32, copy=False)


def _read_parquet(path: Path, kind: Kind) -> tuple[list[Any], np.ndarray]:
    arrow, parquet = _arrow(path)
    try:
        table = parquet.read_table(path, columns=[f"{kind}_id", VALUES])
    except (arrow.ArrowException, KeyError) as error:
        raise DataError(f"{path}: cannot be read; {str(error)[:150]}") from error
    column = table[VALUES].combine_chunks()
    values = column.flatten().to_numpy(zero_copy_only=False).astype(np.float32, copy=False)
    return table[f"{kind}_id"].to_pylist(), values.reshape(len(table), -1)
