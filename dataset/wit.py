"""Joins WIT's annotation lines with the pictures of Kaggle's pixel files, once, into lines that hold both.

python3 -m dataset.wit test_ar.jsonl ... --pixels images/wit_test/*.csv --output data/wit/annotations-bs64

A run does this by itself where a joined file is absent: `join_if_absent`.
"""

from __future__ import annotations

import argparse
import fcntl
import gzip
import hashlib
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

from dataset.files import BadRecord, DataError, Files
from dataset.readers import Records
from dataset.samples import decode_base64

log = logging.getLogger(__name__)

Wanted = dict[bytes, list[tuple[str, dict]]]  # address of a picture -> the lines that show it, with their file
JOINED_SUFFIX = "-bs64"  # of the folder of joined files, in the originals' layout


def join_if_absent(
    joined: Sequence[str], annotation_root: str, pixel_folder: str, notify: Callable[[str], None]
) -> None:
    """Write the joined files that do not exist; FileNotFoundError says what that would need.

    The annotations of `x/annotations-bs64/y.jsonl` are `<annotation_root>/annotations/y.jsonl`, or the same zipped.
    One process of a machine works, the others wait for it; a join that was stopped goes on at the next pixel file.
    """
    absent = [path for path in joined if not Files().exists(path)]
    for folder in dict.fromkeys(str(Path(path).parent) for path in absent):
        own = [path for path in absent if str(Path(path).parent) == folder]
        pixel_files = find_pixel_files(pixel_folder)
        sources = [find_annotations(path, annotation_root, pixel_folder) for path in own]
        if not pixel_files:
            raise FileNotFoundError(
                f"{own[0]}: no such data file, and {pixel_folder} has no *.csv or *.csv.gz to make it from"
            )
        with only_one(Path(folder)):
            left = [source for source, path in zip(sources, own) if not Path(path).exists()]
            if not left:
                continue
            notify(f"joining {len(left)} files of WIT with {len(pixel_files)} pixel files, once, into {folder}")
            for path, number in join_wit_pixels(left, pixel_files, folder).items():
                if number:
                    notify(f"{path}: {number} lines have no picture in {pixel_folder} and are left out")


def find_annotations(joined: str, annotation_root: str, pixel_folder: str) -> str:
    """The annotation file of a joined one."""
    place = Path(joined)
    source = Path(annotation_root) / place.parent.name.removesuffix(JOINED_SUFFIX) / place.name
    zipped = source.with_name(f"{source.name}.zip")
    if not source.is_file() and not zipped.is_file():
        raise FileNotFoundError(
            f"{joined}: no such data file; it is joined from {source} (or .zip) and the pixel files in {pixel_folder}, "
            f"and {source} does not exist"
        )
    return str(source) if source.is_file() else f"{zipped}::{source.name}"


def find_pixel_files(folder: str) -> list[str]:
    """Kaggle's files below a folder, unpacked ones before the packed ones of the same name."""
    found = sorted(str(path) for path in Path(folder).glob("*.csv*") if path.name.endswith((".csv", ".csv.gz")))
    return [path for path in found if not (path.endswith(".gz") and path.removesuffix(".gz") in found)]


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Wait until no other process of this machine is in here."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".joining.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def join_wit_pixels(annotations: Sequence[str], pixel_files: Sequence[str], output_dir: str) -> dict[str, int]:
    """Write `output_dir/<name of the annotation file>` with `image_content` added; lines without a picture by file.

    Pixel files are tab-separated: address, base64, anything else. Each is read once, whatever the number of annotation
    files; lines come out in the order of the pictures, as in the original. A file gets its name when it is complete.
    """
    wanted, missing = _read_annotations(annotations)
    Path(output_dir).mkdir(parents=True, exist_ok=True)
    places = {path: Path(output_dir) / Path(path.rpartition("::")[2]).name for path in annotations}
    journal = Journal(Path(output_dir), places)
    done = journal.resume(wanted)
    with ExitStack() as stack:
        outputs = {path: stack.enter_context(_temporary(place).open("ab")) for path, place in places.items()}
        for pixel_file in pixel_files:
            if not wanted:
                break
            if os.path.abspath(pixel_file) in done:
                continue
            found = []
            for address, content in _read_pixels(pixel_file, wanted):
                found.append(address)
                for path, record in wanted.pop(address):
                    _write(outputs[path], {**record, "image_content": content.decode()})
            journal.note(pixel_file, found, outputs)
    for lines in wanted.values():
        for path, _ in lines:
            missing[path] += 1
    for path, place in places.items():
        os.replace(_temporary(place), place)
        if missing[path]:
            log.warning("%s: %d lines have no picture in the pixel files and are left out", path, missing[path])
    journal.path.unlink(missing_ok=True)
    return missing


class Journal:
    """Which pixel files a join has done with, so that it goes on after a stop: a line for each, written when its lines
    are on the disk.
    """

    def __init__(self, folder: Path, places: dict[str, Path]) -> None:
        sizes = {path: Files().stamp(path).size for path in places}
        name = hashlib.sha256(json.dumps(sizes).encode()).hexdigest()[:16]
        self.path, self.places = folder / f".joining-{name}.jsonl", places

    def resume(self, wanted: Wanted) -> set[str]:
        """The pixel files of an earlier try; its pictures leave `wanted`, what was not noted leaves the outputs."""
        entries = []
        for line in self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []:
            try:
                entries.append(json.loads(line))
            except ValueError:
                break  # the line that was being written
        ends = entries[-1]["ends"] if entries else {}
        for path, place in self.places.items():
            with _temporary(place).open("ab") as output:
                output.truncate(ends.get(path, 0))
        for entry in entries:
            for address in entry["addresses"]:
                wanted.pop(address.encode(), None)
        self.path.write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")
        return {entry["pixels"] for entry in entries}

    def note(self, pixel_file: str, addresses: list[bytes], outputs: dict[str, BinaryIO]) -> None:
        """Everything of this pixel file is written."""
        for output in outputs.values():
            output.flush()
            os.fsync(output.fileno())
        entry = {
            "pixels": os.path.abspath(pixel_file),
            "addresses": [address.decode() for address in addresses],
            "ends": {path: output.tell() for path, output in outputs.items()},
        }
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
            file.flush()
            os.fsync(file.fileno())


def _temporary(place: Path) -> Path:
    return place.with_name(place.name + ".tmp")


def _write(file: BinaryIO, record: dict) -> None:
    file.write(json.dumps(record, ensure_ascii=False).encode("utf-8", "replace") + b"\n")


def _read_annotations(annotations: Sequence[str]) -> tuple[Wanted, dict[str, int]]:
    """Lines by the address of their picture, and how many of each file cannot be used."""
    wanted: Wanted = {}
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
            wanted.setdefault(address.encode("utf-8", "replace"), []).append((path, record))
    return wanted, missing


def _read_pixels(path: str, wanted: Wanted) -> Iterator[tuple[bytes, bytes]]:
    """Address and base64 of every usable line that is wanted."""
    with gzip.open(path, "rb") if path.endswith(".gz") else open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            address, tab, rest = line.rstrip(b"\r\n").partition(b"\t")
            if line.strip() and not tab:
                log.warning("skipped %s:%d: not an address, a tab and base64", path, number)
            if address not in wanted:
                continue
            content = rest.partition(b"\t")[0]
            try:
                decode_base64(content.decode())
            except ValueError as error:
                log.warning("skipped %s:%d: not base64; %s", path, number, error)
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
