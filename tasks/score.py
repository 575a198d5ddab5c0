"""`--task score`: how well texts and pictures fit, for pairs from a file or for words of the command line."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from dataset.files import Files, join_path
from dataset.readers import Records
from dataset.sections import field_of, text_of
from tasks.tool import Tool, ToolConfig
from utils.distributed import device_for_rank, gather_objects, is_main, rank, world_size
from utils.logger import progress_bar

SHOWN = 20  # lines of the summary; the file has them all


@dataclass(frozen=True)
class Pair:
    """A picture's path and a text, with their place in the output."""

    place: int
    image: str
    text: str


class Score(Tool):
    """Writes one line per pair to scores.jsonl: `similarity` (cosine), `probability` (softmax over the texts given
    with the same picture) and, with a fusion stack, `match` and each stack's own.
    """

    @dataclass
    class Config(ToolConfig):
        output_dir: str = "output/score"
        model_config: str = ""  # of the checkpoint; by default found beside it, or by what the checkpoint is
        images: list[str] = field(default_factory=list)  # each with every one of the texts
        texts: list[str] = field(default_factory=list)
        pairs: str = ""  # JSON lines {image, text}, or a JSON list
        image_root: str = ""  # of the pictures that the lines name
        batch_size: int = 32  # pictures at once on each process

        def __post_init__(self) -> None:
            if self.batch_size < 1:
                raise ValueError(f"batch_size must be at least 1, found {self.batch_size}")
            if not self.checkpoint:
                raise ValueError("--task score needs --checkpoint")
            if bool(self.pairs) == bool(self.images or self.texts):
                raise ValueError("give either pairs=FILE, or --image and --text")
            if not self.pairs and not (self.images and self.texts):
                raise ValueError("--image needs a --text, and --text an --image")

    def run(self) -> dict[str, Any]:
        """Scores all pairs; every process takes its share of the pictures."""
        pairs = self.read_pairs()
        model = self.load(self.config.checkpoint, self.config.model_config or None, device=str(device_for_rank()))
        scored: dict[int, dict[str, float]] = {}
        blocks = list(self.own_blocks(pairs))
        with progress_bar(sum(map(len, blocks)), 0, is_shown=is_main()) as bar:
            bar.set_description("score")
            for block in blocks:
                scored |= self.score_block(model, block)
                bar.update(len(block))
        merged = {place: numbers for part in gather_objects(scored) for place, numbers in part.items()}
        records = [{"image": pair.image, "text": pair.text, **merged[pair.place]} for pair in pairs]
        if is_main():
            self.write(records)
        return {"num_pairs": len(records), "file": str(self.file), "first": records[:SHOWN]}

    def summary(self, result: dict[str, Any]) -> str:
        """The first lines as a table."""
        rows = [
            f"{record['image']}  {record['text']}  "
            + "  ".join(f"{name} {value:.4f}" for name, value in record.items() if isinstance(value, float))
            for record in result["first"]
        ]
        return "\n".join([*rows, f"{result['num_pairs']} pairs in {result['file']}"]) + "\n"

    @property
    def file(self) -> Path:
        return Path(self.config.output_dir) / "scores.jsonl"

    def read_pairs(self) -> list[Pair]:
        """The pairs in the order of the file or of the command line; BadRecord names a line that is none."""
        if not self.config.pairs:
            both = [(image, text) for image in self.config.images for text in self.config.texts]
            return [Pair(place, *pair) for place, pair in enumerate(both)]
        records = Records([self.config.pairs], Files())
        return [_as_pair(records, number, self.config.image_root) for number in range(len(records))]

    def own_blocks(self, pairs: list[Pair]) -> Iterator[list[Pair]]:
        """This process's pairs, those of batch_size pictures at a time."""
        by_image: dict[str, list[Pair]] = {}
        for pair in pairs:
            by_image.setdefault(pair.image, []).append(pair)
        own = list(by_image.values())[rank() :: world_size()]
        for start in range(0, len(own), self.config.batch_size):
            yield [pair for group in own[start : start + self.config.batch_size] for pair in group]

    def score_block(self, model: Any, block: list[Pair]) -> dict[int, dict[str, float]]:
        """The numbers of every pair by its place."""
        images = list(dict.fromkeys(pair.image for pair in block))
        texts = list(dict.fromkeys(pair.text for pair in block))
        image_row, text_row = ({key: row for row, key in enumerate(keys)} for keys in (images, texts))
        numbers = torch.tensor([(image_row[pair.image], text_row[pair.text]) for pair in block])
        columns = {name: column.tolist() for name, column in model.score_pairs(images, texts, numbers).items()}
        return {pair.place: {name: columns[name][k] for name in columns} for k, pair in enumerate(block)}

    def write(self, records: list[dict[str, Any]]) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.file.with_suffix(".tmp")
        lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        temporary.write_text("".join(lines), encoding="utf-8")
        os.replace(temporary, self.file)


def _as_pair(records: Records, number: int, root: str) -> Pair:
    record = records.read(number)
    try:
        image = text_of(field_of(record, "image", "image_path"), "image")
        text = text_of(field_of(record, "text", "caption"), "text")
    except ValueError as error:
        raise ValueError(f"{records.where(number)}: {str(error).removeprefix('record: ')}") from error
    return Pair(number, join_path(root, image), text)
