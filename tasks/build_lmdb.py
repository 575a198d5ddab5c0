"""`--task build_lmdb`: Chinese-CLIP's LMDB folders from its `<split>_imgs.tsv` and `<split>_texts.jsonl`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dataset.files import BadRecord, DataError, Files
from dataset.lmdb_pairs import Pair, write_folder
from dataset.pairs import IMAGES_END, TEXTS_END, read_text_line
from dataset.readers import LineIndex, LineSource
from dataset.samples import decode_base64
from dataset.tsv_images import TsvImages
from tasks.tool import Tool, ToolConfig
from utils import distributed
from utils.progress import Progress


class BuildLmdb(Tool):
    """Writes every split whole or not at all; an older folder of the same split is replaced, never added to."""

    @dataclass
    class Config(ToolConfig):
        data_dir: str = ""  # holds <split>_imgs.tsv and <split>_texts.jsonl
        splits: list[str] = field(default_factory=list)
        lmdb_dir: str = ""  # empty: <data_dir>/lmdb

        def __post_init__(self) -> None:
            if not self.data_dir or not self.splits:
                raise ValueError("data_dir and splits are needed, as data_dir=datasets/MUGE splits=[train,valid]")

    def run(self) -> dict[str, Any]:
        """Pairs and images of every split; only the first process of a group writes."""
        result: dict[str, Any] = {"splits": {}}
        if distributed.is_main():
            folder, target = Path(self.config.data_dir), Path(self.config.lmdb_dir or f"{self.config.data_dir}/lmdb")
            absent = [
                str(folder / f"{split}{end}")
                for split in self.config.splits
                for end in (IMAGES_END, TEXTS_END)
                if not (folder / f"{split}{end}").is_file()
            ]
            if absent:
                raise FileNotFoundError(f"{', '.join(absent)}: no such file")
            for split in self.config.splits:
                result["splits"][split] = build_split(folder, split, target / split)
        return distributed.broadcast_object(result)

    def summary(self, result: dict[str, Any]) -> str:
        """A line for each split."""
        return "".join(
            f"{split}: {found['pairs']:,} pairs, {found['images']:,} images in {found['folder']}\n"
            for split, found in result["splits"].items()
        )


def build_split(folder: Path, split: str, target: Path) -> dict[str, Any]:
    """Write the LMDB of one split; DataError names the first line that is wrong, and nothing is written then."""
    files = Files()
    index = LineIndex(files, None)
    images = TsvImages(str(folder / f"{split}{IMAGES_END}"), files, index)
    texts = LineSource(str(folder / f"{split}{TEXTS_END}"), files, index.load(str(folder / f"{split}{TEXTS_END}")))
    if images.skipped:
        raise DataError(f"{images.skipped[0]}")
    known = set(images.ids())
    with Progress(len(texts) + len(images), f"lines of {split}", is_shown=True) as progress:
        written = write_folder(target, _pairs(texts, known, images.path, progress), _images(images, progress))
    return {"pairs": written.num_pairs, "images": written.num_images, "folder": str(target)}


def _pairs(texts: LineSource, known: set[int], images: str, progress: Progress) -> Iterator[Pair]:
    for number in range(len(texts)):
        try:
            line = read_text_line(texts.read(number))
            for image_id in line.image_ids:
                if image_id not in known:
                    raise BadRecord("unknown image id", f"{image_id} is not in {images}")
                yield Pair(image_id, line.text_id, line.text)
        except BadRecord as error:
            raise DataError(f"{error.where or texts.where(number)}: {error.reason}; {error.detail}") from error
        progress.advance(1)


def _images(images: TsvImages, progress: Progress) -> Iterator[tuple[int, str]]:
    for image_id in images.ids():
        try:
            content = images.read(image_id)
            decode_base64(content)
        except BadRecord as error:
            raise DataError(f"{images.where(image_id)}: {error.reason}; {error.detail}") from error
        yield image_id, content
        progress.advance(1)
