"""Chinese-CLIP's files after extraction: predictions of both directions, recall, transposed annotations."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import pytest

from dataset.vectors import Vectors, read_vectors
from tasks.evaluate_predictions import EvaluatePredictions, TransposeAnnotations
from tasks.search import Search


def lines(path: Path) -> list:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def check_search(images: Path, texts: Path, predictions: Path, transposed: Path) -> None:
    """Both directions, with blocks that cut the gallery and without."""
    top_k = len(lines(predictions)[0]["image_ids"])
    for block in (65536, 7):
        with tempfile.TemporaryDirectory() as folder:
            output, output_tr = Path(folder) / "predictions.jsonl", Path(folder) / "tr_predictions.jsonl"
            config = Search.Config(
                image_feats=str(images),
                text_feats=str(texts),
                output=str(output),
                output_tr=str(output_tr),
                top_k=top_k,
                gallery_block=block,
            )
            Search(config, None).run()
            image, text = read_vectors(images, "image"), read_vectors(texts, "text")
            check_answers(lines(output), lines(predictions), text, image)
            check_answers(lines(output_tr), lines(transposed), image, text)


def check_answers(found: list[dict], expected: list[dict], queries: Vectors, gallery: Vectors) -> None:
    """The same answers in the same order, equal scores in the order of the file.

    The original's products differ in their last bit by where --eval-batch-size cuts the gallery, which shuffles
    equal vectors; two answers may change places there only if their exact scores are equal.
    """
    place, names = {key: k for k, key in enumerate(gallery.ids)}, (f"{queries.kind}_id", f"{gallery.kind}_ids")
    assert [line[names[0]] for line in found] == [line[names[0]] for line in expected] == queries.ids
    for query, one, other in zip(queries.values.astype(np.float64), found, expected, strict=True):
        exact = (gallery.values.astype(np.float64) @ query).astype(np.float32)
        rows = [place[key] for key in one[names[1]]]
        assert rows == sorted(rows, key=lambda row: (-exact[row], row))
        assert exact[rows].tolist() == [exact[place[key]] for key in other[names[1]]]


def check_recall(reference: Path, predictions: Path, expected: Path, direction: str = "") -> None:
    wanted = json.loads(expected.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "out.json"
        names = {"reference": str(reference), "predictions": str(predictions), "output": str(output)}
        tool = EvaluatePredictions(EvaluatePredictions.Config(**names, direction=direction), None)
        result = tool.run()
        assert json.loads(output.read_text(encoding="utf-8")) == result
        assert tool.succeeded(result) == wanted["success"]
    assert result.keys() == wanted.keys()
    if wanted["success"]:
        assert result["score"] == pytest.approx(wanted["score"], abs=1e-9)
        assert result["scoreJson"] == pytest.approx(wanted["scoreJson"], abs=1e-9)
    else:
        assert result["errorMsg"] and result["errorDetail"]
        assert (result["score"], result["scoreJson"]) == (wanted["score"], wanted["scoreJson"])


def check_transposed(texts: Path, expected: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "out.tr.jsonl"
        TransposeAnnotations(TransposeAnnotations.Config(input=str(texts), output=str(output)), None).run()
        assert lines(output) == lines(expected)


def run_knn(folder: Path) -> None:
    files = [folder / name for name in ("imgs.img_feat.jsonl", "texts.txt_feat.jsonl")]
    check_search(*files, folder / "predictions.jsonl", folder / "tr_predictions.jsonl")


def run_eval_scripts(folder: Path) -> None:
    """Every out_<case>.json belongs to pred_<case>.jsonl; tr_ cases read the transposed reference, or transpose it."""
    texts, transposed = folder / "ref_texts.jsonl", folder / "ref_texts.tr.jsonl"
    check_transposed(texts, transposed)
    cases = sorted(path.stem.removeprefix("out_") for path in folder.glob("out_*.json"))
    assert cases
    for name in cases:
        predictions, expected = folder / f"pred_{name}.jsonl", folder / f"out_{name}.json"
        if name.startswith("tr_"):
            check_recall(transposed, predictions, expected)
            check_recall(texts, predictions, expected, "image_to_text")
        else:
            check_recall(texts, predictions, expected)


KINDS = {("chinese_clip", "knn"): run_knn, ("chinese_clip", "eval_scripts"): run_eval_scripts}
