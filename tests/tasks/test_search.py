"""Search and recall of prediction files: agreement with counting by hand, and what is wrong with the files."""

import json
import sys

import numpy as np
import pytest

from dataset.vectors import write_vectors
from tasks.evaluate_predictions import EvaluatePredictions, FileFault, evaluate, transpose
from tasks.search import Search

RIGHT = {1: [5], 2: [6, 7], 3: []}


def write_lines(path, records):
    path.write_text("".join(f"{json.dumps(record)}\n" for record in records), encoding="utf-8")
    return path


@pytest.fixture
def files(tmp_path):
    generator = np.random.default_rng(0)
    for kind, count in (("image", 30), ("text", 20)):
        values = generator.normal(size=(count, 6)).astype(np.float32)
        write_vectors(tmp_path / f"{kind}.npy", kind, iter([(range(100, 100 + count), values)]))
    return tmp_path


def search(folder, **settings):
    names = {"image_feats": str(folder / "image.npy"), "text_feats": str(folder / "text.npy")}
    return Search(Search.Config(**names | settings), None).run()


def test_predictions_of_both_directions_are_the_best_by_product(files):
    search(files, output=str(files / "a.jsonl"), output_tr=str(files / "b.jsonl"), top_k=4)
    images, texts = (np.load(files / f"{kind}.npy") for kind in ("image", "text"))
    for name, queries, gallery, keys in (
        ("a", texts, images, ("text_id", "image_ids")),
        ("b", images, texts, ("image_id", "text_ids")),
    ):
        lines = [json.loads(line) for line in (files / f"{name}.jsonl").read_text().splitlines()]
        best = np.argsort(-(queries @ gallery.T), axis=1)[:, :4] + 100
        assert [tuple(line) for line in lines] == [keys] * len(queries)
        assert [line[keys[1]] for line in lines] == best.tolist()


def test_files_of_different_models_are_refused(files):
    write_vectors(files / "text.npy", "text", iter([([1], np.zeros((1, 5), np.float32))]))
    with pytest.raises(ValueError, match="vectors of 6 values, .* of 5: they come from different models"):
        search(files, output=str(files / "a.jsonl"))


def test_a_large_gallery_needs_faiss(files, monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ImportError, match="pip install faiss-cpu; or search exactly with approximate_above=30"):
        search(files, output=str(files / "a.jsonl"), approximate_above=29)


def test_faiss_finds_nearly_all_that_exact_search_finds(files):
    pytest.importorskip("faiss")
    generator = np.random.default_rng(1)
    for kind, count in (("image", 4000), ("text", 50)):
        values = generator.normal(size=(count, 4)).astype(np.float32)
        values /= np.linalg.norm(values, axis=1, keepdims=True)
        write_vectors(files / f"{kind}.npy", kind, iter([(range(count), values)]))
    search(files, output=str(files / "exact.jsonl"))
    search(files, output=str(files / "faiss.jsonl"), approximate_above=3999)
    exact, near = ([json.loads(x) for x in (files / f"{n}.jsonl").read_text().splitlines()] for n in ("exact", "faiss"))
    shared = sum(len({*a["image_ids"]} & {*b["image_ids"]}) for a, b in zip(exact, near, strict=True))
    assert shared >= 0.9 * 10 * len(exact)


def reference(folder):
    return write_lines(folder / "ref.jsonl", [{"text_id": k, "text": "x", "image_ids": v} for k, v in RIGHT.items()])


def predictions(folder):
    answers = {1: [5, *range(20, 29)], 2: [*range(20, 26), 7, 8, 9, 10], 3: list(range(20, 30))}
    return write_lines(folder / "pred.jsonl", [{"text_id": k, "image_ids": v} for k, v in answers.items()])


def test_any_right_answer_counts_and_a_query_without_one_is_missed(tmp_path):
    found = evaluate(reference(tmp_path), predictions(tmp_path))
    assert found == pytest.approx({1: 100 / 3, 5: 100 / 3, 10: 200 / 3})


def test_texts_of_images_in_order_of_first_appearance(tmp_path):
    path = write_lines(tmp_path / "r.jsonl", [{"text_id": 1, "image_ids": [9, 3]}, {"text_id": 2, "image_ids": [3]}])
    assert list(transpose(path).items()) == [(9, [1]), (3, [1, 2])]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([{"text_id": 1, "image_ids": list(range(10))}], r"no prediction for 2 of 3 texts: 2, 3"),
        ([{"text_id": 1, "image_ids": list(range(9))}], r"pred.jsonl:1: 9 image_ids for text_id 1; needed: 10"),
        ([{"text_id": 1, "image_ids": [1] * 10}], r"pred.jsonl:1: image_id 1 stands twice"),
        ([{"text_id": 1, "image_ids": ["1"] * 10}], r"pred.jsonl:1: image_ids must hold whole numbers, found str '1'"),
        ([{"text_id": "1", "image_ids": []}], r"pred.jsonl:1: text_id must be a whole number, found str"),
        ([{"image_ids": []}], r"pred.jsonl:1: text_id must be a whole number, found nothing"),
        ([{"text_id": 1}], r"pred.jsonl:1: image_ids must be a list, found nothing"),
        ([[1]], r"pred.jsonl:1: needed: a JSON object, found list"),
        (
            [{"text_id": 1, "image_ids": list(range(k, k + 10))} for k in (0, 1)],
            r"pred.jsonl:2: text_id 1 is predicted twice with different answers",
        ),
    ],
)
def test_wrong_predictions_are_told_with_their_place(tmp_path, lines, message):
    with pytest.raises(FileFault, match=message):
        evaluate(reference(tmp_path), write_lines(tmp_path / "pred.jsonl", lines))


def test_a_broken_line_is_told_with_its_place(tmp_path):
    path = predictions(tmp_path)
    path.write_text(path.read_text() + '{"text_id": 4, "image_ids": [1, 2\n')
    with pytest.raises(FileFault, match=r"pred.jsonl:4: broken JSON"):
        evaluate(reference(tmp_path), path)
    with pytest.raises(FileFault, match=r"pred.jsonl:4: broken JSON"):
        transpose(path)


def test_a_failure_is_written_as_documented_and_ends_in_status_1(tmp_path):
    output = tmp_path / "out" / "result.json"
    names = {"reference": str(reference(tmp_path)), "predictions": str(tmp_path / "none"), "output": str(output)}
    tool = EvaluatePredictions(EvaluatePredictions.Config(**names), None)
    result = tool.run()
    assert not tool.succeeded(result) and "none: no such file" in tool.summary(result)
    assert json.loads(output.read_text()) == result
    assert sorted(result) == ["errorDetail", "errorMsg", "score", "scoreJson", "success"]


def test_blank_lines_and_predictions_of_other_queries_do_no_harm(tmp_path):
    path = predictions(tmp_path)
    path.write_text("\n" + path.read_text() + '{"text_id": 77, "image_ids": [1,2,3,4,5,6,7,8,9,10]}\n\n')
    assert evaluate(reference(tmp_path), path)[1] == pytest.approx(100 / 3)
