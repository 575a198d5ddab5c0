"""Joins WIT's annotation lines with the pictures of Kaggle's pixel files, once, into lines that hold both.

python3 -m dataset.wit test_ar.jsonl ... --pixels images/wit_test/*.csv --output data/wit/annotations-bs64
"""

from __future__ import annotations

import argparse
import gzip
import json
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

from dataset.files import BadRecord, DataError, Files
from dataset.readers import Records
from dataset.samples import decode_base64

log = logging.getLogger(__name__)


def join_wit_pixels(annotations: Sequence[str], pixel_files: Sequence[str], output_dir: str) -> dict[str, int]:
    """Write `output_dir/<name of the annotation file>` with `image_content` added; lines without a picture by file.

    Pixel files are tab-separated: address, base64, anything else. Each is read once, whatever the number of annotation
    files; lines come out in the order of the pictures, as in the original. A file gets its name when it is complete.
    """
    wanted, missing = _read_annotations(annotations)
    Path(output_dir).mkdir(parents=True, exist_ok=True)
    places = {path: Path(output_dir) / Path(path).name for path in annotations}
    with ExitStack() as stack:
        outputs = {path: stack.enter_context(_temporary(place).open("wb")) for path, place in places.items()}
        for address, content in _read_pixels(pixel_files):
            for path, record in wanted.pop(address, ()):
                _write(outputs[path], {**record, "image_content": content})
    for lines in wanted.values():
        for path, _ in lines:
            missing[path] += 1
    for path, place in places.items():
        os.replace(_temporary(place), place)
        if missing[path]:
            log.warning("%s: %d lines have no picture in the pixel files and are left out", path, missing[path])
    return missing


def _temporary(place: Path) -> Path:
    return place.with_name(place.name + ".tmp")


def _write(file: BinaryIO, record: dict) -> None:
    file.write(json.dumps(record, ensure_ascii=False).encode("utf-8", "replace") + b"\n")


def _read_annotations(annotations: Sequence[str]) -> tuple[dict[str, list[tuple[str, dict]]], dict[str, int]]:
    """Lines by the address of their picture, and how many of each file cannot be used."""
    wanted: dict[str, list[tuple[str, dict]]] = {}
    missing = {path: 0 for path in annotations}
    for path in annotations:
        records = Records([path], Files())
        for i in range(len(records)):
            try:
                record = records.read(i)
                address = record.get("image_url")
                if not isinstance(address, str):
                    raise BadRecord("missing image_url", f"found: {', '.join(map(str, record))}", records.where(i))
            except BadRecord as error:
                log.warning("skipped %s", error)
                missing[path] += 1
                continue
            wanted.setdefault(address, []).append((path, record))
    return wanted, missing


def _read_pixels(pixel_files: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Address and base64 of every usable line."""
    for path in pixel_files:
        with gzip.open(path, "rb") if path.endswith(".gz") else open(path, "rb") as file:
            for number, line in enumerate(file, 1):
                parts = line.rstrip(b"\r\n").split(b"\t")
                if not line.strip():
                    continue
                try:
                    address, content = parts[0].decode(), parts[1].decode()
                    decode_base64(content)
                except (IndexError, ValueError) as error:
                    log.warning("skipped %s:%d: not an address, a tab and base64; %s", path, number, error)
                    continue
                yield address, content


def main(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser("python3 -m dataset.wit", description=__doc__.splitlines()[0])
    parser.add_argument("annotations", nargs="+", help="IGLUE's JSON lines")
    parser.add_argument("--pixels", nargs="+", required=True, help="Kaggle's tab-separated files, .gz too")
    parser.add_argument("--output", required=True, help="folder for the joined files")
    arguments = parser.parse_args(words)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        missing = join_wit_pixels(arguments.annotations, arguments.pixels, arguments.output)
    except (DataError, OSError) as error:
        log.error("%s", error)
        return 2
    log.info("%d files in %s; %d lines without a picture", len(missing), arguments.output, sum(missing.values()))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
