"""`--task evaluate_predictions`: recall of a prediction file, as the original's evaluation scripts count and write it;
`--task transpose_annotations`: which texts belong to every image.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tasks.tool import Tool, ToolConfig
from utils import distributed
from utils.metrics import RECALL_AT

NUM_ANSWERS = 10
TRANSPOSED_END = ".tr.jsonl"
Direction = Literal["", "text_to_image", "image_to_text"]


class FileFault(ValueError):
    """What is wrong with a reference or a prediction file, and where."""


class EvaluatePredictions(Tool):
    """Recall at 1, 5 and 10 of the first answers that are right, over the queries of the reference."""

    @dataclass
    class Config(ToolConfig):
        reference: str = ""  # *_texts.jsonl, or what transpose_annotations made of it
        predictions: str = ""
        output: str = ""  # a JSON file, as the original writes it
        # What the queries are; empty: texts where the reference's lines have a text_id and image_ids.
        direction: Direction = ""

        def __post_init__(self) -> None:
            if not (self.reference and self.predictions and self.output):
                raise ValueError("reference, predictions and output are needed: three files")

    def run(self) -> dict[str, Any]:
        """The numbers, or what is wrong with the files; also written to `output`."""
        result: dict[str, Any] = {}
        if distributed.is_main():
            config = self.config
            try:
                result = success(evaluate(Path(config.reference), Path(config.predictions), config.direction))
            except FileFault as error:
                result = failure(str(error))
            output = Path(config.output)
            output.parent.mkdir(parents=True, exist_ok=True)
            temporary = output.with_name(f".{output.name}.partial")
            temporary.write_text(json.dumps(result), encoding="utf-8")
            os.replace(temporary, output)
        return distributed.broadcast_object(result)

    def summary(self, result: dict[str, Any]) -> str:
        """The numbers in one line, or the fault."""
        if not result["success"]:
            return f"{result['errorMsg']}\n"
        return "".join(f"{name} {value:.2f}  " for name, value in result["scoreJson"].items()).rstrip() + "\n"

    def succeeded(self, result: dict[str, Any]) -> bool:
        """Whether the files could be evaluated."""
        return result["success"]


def success(recalls: dict[int, float]) -> dict[str, Any]:
    """The original's json for recalls in percent by K."""
    mean = sum(recalls.values()) / len(recalls)
    numbers = {"score": mean, "mean_recall": mean} | {f"r{k}": value for k, value in recalls.items()}
    return {"success": True, "score": mean, "scoreJson": numbers}


def failure(message: str) -> dict[str, Any]:
    """The original's json for files that cannot be evaluated."""
    return {"errorDetail": message, "errorMsg": message, "score": 0, "scoreJson": {}, "success": False}


def evaluate(reference: Path, predictions: Path, direction: Direction = "") -> dict[int, float]:
    """Recall in percent by K; FileFault says which file is wrong, where, and what it should hold."""
    query, answer, right = read_reference(reference, direction)
    found = read_predictions(predictions, query, answer, set(right))
    missing = [key for key in right if key not in found]
    if missing:
        shown = ", ".join(map(str, missing[:5]))
        raise FileFault(f"{predictions}: no prediction for {len(missing)} of {len(right)} {query}s: {shown}")
    if not right:
        raise FileFault(f"{reference}: holds no queries")
    hits = {k: sum(not answers.isdisjoint(found[key][:k]) for key, answers in right.items()) for k in RECALL_AT}
    return {k: number / len(right) * 100 for k, number in hits.items()}


def read_reference(path: Path, direction: Direction) -> tuple[str, str, dict[int, set[int]]]:
    """The names of query and answer, and the right answers of every query."""
    lines = list(read_lines(path))
    is_transposed = bool(lines) and "text_ids" in lines[0][1]
    wants_images = direction == "text_to_image" or (not direction and not is_transposed)
    if wants_images and is_transposed:
        raise FileFault(f"{path}: lists the texts of images; text_to_image needs the texts' file itself")
    if not wants_images and not is_transposed:
        return "image", "text", {key: set(texts) for key, texts in transpose(path).items()}
    query, answer = ("text", "image") if wants_images else ("image", "text")
    right: dict[int, set[int]] = {}
    for where, line in lines:
        key, answers = number_of(line, f"{query}_id", where), numbers_of(line, f"{answer}_ids", where)
        if right.setdefault(key, set(answers)) != set(answers):
            raise FileFault(f"{where}: {query}_id {key} stands there twice with different {answer}_ids")
    return query, answer, right


def read_predictions(path: Path, query: str, answer: str, wanted: set[int]) -> dict[int, list[int]]:
    """The ten answers of every wanted query; predictions for other ids do no harm."""
    found: dict[int, list[int]] = {}
    for where, line in read_lines(path):
        key, answers = number_of(line, f"{query}_id", where), numbers_of(line, f"{answer}_ids", where)
        if len(answers) != NUM_ANSWERS:
            raise FileFault(f"{where}: {len(answers)} {answer}_ids for {query}_id {key}; needed: {NUM_ANSWERS}")
        if len(set(answers)) < NUM_ANSWERS:
            twice = next(one for one in answers if answers.count(one) > 1)
            raise FileFault(f"{where}: {answer}_id {twice} stands twice in the answers of {query}_id {key}")
        # The original takes the last line; which one was meant cannot be known.
        if key in wanted and found.setdefault(key, answers) != answers:
            raise FileFault(f"{where}: {query}_id {key} is predicted twice with different answers")
    return found


def transpose(path: Path) -> dict[int, list[int]]:
    """The texts of every image that has one, images in order of first appearance."""
    texts: dict[int, list[int]] = {}
    for where, line in read_lines(path):
        text_id = number_of(line, "text_id", where)
        for image_id in numbers_of(line, "image_ids", where):
            texts.setdefault(image_id, []).append(text_id)
    return texts


def read_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """`file:line` and object of every line that is not blank."""
    if not path.is_file():
        raise FileFault(f"{path}: no such file")
    with open(path, "rb") as file:
        for number, raw in enumerate(file, start=1):
            if not raw.strip():
                continue
            try:
                line = json.loads(raw)
            except ValueError as error:
                raise FileFault(f"{path}:{number}: broken JSON; {str(error)[:150]}") from error
            if not isinstance(line, dict):
                raise FileFault(f"{path}:{number}: needed: a JSON object, found {type(line).__name__}")
            yield f"{path}:{number}", line


def number_of(line: dict[str, Any], name: str, where: str) -> int:
    """A field that must be a whole number."""
    value = line.get(name)
    if not isinstance(value, int) or isinstance(value, bool):
        found = "nothing" if name not in line else f"{type(value).__name__} {str(value)[:30]!r}"
        raise FileFault(f"{where}: {name} must be a whole number, found {found}")
    return value


def numbers_of(line: dict[str, Any], name: str, where: str) -> list[int]:
    """A field that must be a list of whole numbers."""
    values = line.get(name)
    if not isinstance(values, list):
        found = "nothing" if name not in line else type(values).__name__
        raise FileFault(f"{where}: {name} must be a list, found {found}")
    for value in values:
        if not isinstance(value, int) or isinstance(value, bool):
            raise FileFault(
                f"{where}: {name} must hold whole numbers, found {type(value).__name__} {str(value)[:30]!r}"
            )
    return values


class TransposeAnnotations(Tool):
    """Writes {image_id, text_ids} for every image of a texts' file."""

    @dataclass
    class Config(ToolConfig):
        input: str = ""
        output: str = ""  # empty: the input's name with .tr.jsonl in the place of .jsonl

        def __post_init__(self) -> None:
            if not self.input.endswith(".jsonl"):
                raise ValueError(f"input must be a .jsonl file with text_id and image_ids, found '{self.input}'")
            self.output = self.output or self.input.removesuffix(".jsonl") + TRANSPOSED_END

    def run(self) -> dict[str, Any]:
        """The number of images; the file appears when it is whole."""
        count = 0
        if distributed.is_main():
            texts, output = transpose(Path(self.config.input)), Path(self.config.output)
            temporary = output.with_name(f".{output.name}.partial")
            with open(temporary, "w", encoding="utf-8") as file:
                file.writelines(json.dumps({"image_id": k, "text_ids": ids}) + "\n" for k, ids in texts.items())
            os.replace(temporary, output)
            count = len(texts)
        return distributed.broadcast_object({"images": count})

    def summary(self, result: dict[str, Any]) -> str:
        """How many images, and where."""
        return f"{result['images']:,} images with texts: {self.config.output}\n"
