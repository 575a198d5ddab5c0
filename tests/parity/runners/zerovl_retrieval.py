"""ZeroVL's retrieval numbers, with the padding and the modes of its programs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tasks.retrieval import repeat_first
from tests.parity.runners.common import assert_close, read_case
from utils.metrics import ranks_of_right_answers, recall_metrics, retrieval_ranks

OURS = {f"{theirs}-R@{k}": f"{ours}_r{k}" for theirs, ours in (("I2T", "txt"), ("T2I", "img")) for k in (1, 5, 10)}
OURS["RSUM"] = "rsum"


def run_retrieval(folder: Path) -> None:
    case = read_case(folder)
    for variant in case.config["variants"]:
        rows = {n.removeprefix(f"{variant['set']}."): v for n, v in case.inputs.items() if n.startswith(variant["set"])}
        expected = {n.removeprefix(f"{variant['name']}."): v for n, v in case.outputs.items()
                    if n.startswith(f"{variant['name']}.")}  # fmt: skip
        found = classification_recalls(rows) if variant["mode"] == "tool" else recalls(rows, variant, expected)
        for theirs, ours in OURS.items():
            assert abs(found[ours] - float(expected[theirs])) <= 1e-3, (variant["name"], theirs, found[ours])
    check_padding_option(case.inputs, case.outputs)


def recalls(rows: dict[str, Tensor], variant: dict[str, Any], expected: dict[str, Tensor]) -> dict[str, float]:
    """One embedding for each picture, all captions; the original's one-process mode loses picture 0."""
    least = 1 if variant["mode"] == "local" else 0
    kept = rows["image_id"] >= least
    if "similarity" in expected:  # of all rows: what is dropped is dropped from the ranks
        image_id, _, similarity = by_picture(rows)
        assert_close(image_id, expected["unique_image_id"], "unique_image_id")
        named = image_id >= 0  # rows without a picture's id may show several; which one stands for them is arbitrary
        assert_close(similarity[named], expected["similarity"][named], "similarity")
    _, image_of_text, similarity = by_picture({name: value[kept] for name, value in rows.items()})
    return recall_metrics(*retrieval_ranks(similarity, similarity.T, image_of_text))


def by_picture(rows: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Ids of the pictures (M,), the picture of every row (T,), and the similarity (M, T)."""
    image_id, image_of_text = rows["image_id"].unique(return_inverse=True)
    first = torch.full((len(image_id),), len(image_of_text)).scatter_reduce(
        0, image_of_text, torch.arange(len(image_of_text)), "amin"
    )
    return image_id, image_of_text, rows["image_embeddings"][first] @ rows["text_embeddings"].T


def classification_recalls(rows: dict[str, Tensor]) -> dict[str, float]:
    """Every row is a picture, and every distinct caption_id a class with one text."""
    text_id, class_of_row = rows["caption_id"].unique(return_inverse=True)
    first = torch.full((len(text_id),), len(class_of_row)).scatter_reduce(
        0, class_of_row, torch.arange(len(class_of_row)), "amin"
    )
    similarity = rows["image_embeddings"] @ rows["text_embeddings"][first].T
    own = torch.arange(len(text_id))
    image_to_text = ranks_of_right_answers(similarity, class_of_row, own)
    return recall_metrics(image_to_text, ranks_of_right_answers(similarity.T, own, class_of_row))


def check_padding_option(inputs: dict[str, Tensor], outputs: dict[str, Tensor]) -> None:
    """The first captions repeated up to a multiple of the processes: the numbers that the original prints."""
    pairs = [(a, b) for a, b in (("a", "pad"),) if f"{a}.image_id" in inputs and f"{b}.image_id" in inputs]
    for plain, padded in pairs:
        rows = {n.removeprefix(f"{plain}."): v for n, v in inputs.items() if n.startswith(f"{plain}.")}
        _, image_of_text, similarity = by_picture(rows)
        multiple = len(inputs[f"{padded}.image_id"])
        similarity, image_of_text = repeat_first(similarity, image_of_text, multiple)
        found = recall_metrics(*retrieval_ranks(similarity, similarity.T, image_of_text))
        assert abs(found["rsum"] - float(outputs["padded.RSUM"])) <= 1e-3


KINDS = {("zerovl", "retrieval"): run_retrieval}
