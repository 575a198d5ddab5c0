"""Files of embeddings: what is written is read, and what is wrong is told with its place."""

import json

import numpy as np
import pytest

from dataset.files import DataError
from dataset.vectors import ids_beside, read_vectors, write_vectors

VALUES = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
IDS = [30, 4, 500, 1, 2]


def parts():
    yield IDS[:2], VALUES[:2]
    yield IDS[2:], VALUES[2:]


@pytest.mark.parametrize("suffix", ["jsonl", "npy", "parquet"])
def test_every_format_keeps_ids_order_and_bits(tmp_path, suffix):
    if suffix == "parquet":
        pytest.importorskip("pyarrow")
    path = tmp_path / f"x.{suffix}"
    assert write_vectors(path, "image", parts()) == 5
    found = read_vectors(path, "image")
    assert found.ids == IDS and np.array_equal(found.values, VALUES)


def test_lines_are_the_original_s(tmp_path):
    write_vectors(tmp_path / "x.jsonl", "text", parts())
    first = (tmp_path / "x.jsonl").read_text().splitlines()[0]
    assert first == json.dumps({"text_id": 30, "feature": VALUES[0].tolist()})


def test_a_writer_that_fails_leaves_no_file(tmp_path):
    def broken():
        yield IDS[:2], VALUES[:2]
        raise OSError("disk is full")

    with pytest.raises(OSError, match="disk is full"):
        write_vectors(tmp_path / "x.jsonl", "image", broken())
    assert not (tmp_path / "x.jsonl").exists()


LINE = '{"image_id": 1, "feature": [1.0, 2.0]}'


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["{"], r"x.jsonl:1: broken JSON"),
        ([LINE, "", '{"text_id": 1, "feature": [1]}'], r"x.jsonl:3: needed: image_id and feature; found: text_id"),
        ([LINE, '{"image_id": 2, "feature": [1]}'], r"x.jsonl:2: a vector of 1 values after ones of 2"),
        ([LINE, '{"image_id": 2, "feature": "x"}'], r"x.jsonl:2: feature must be a list of numbers"),
        ([LINE, '{"image_id": 2, "feature": [NaN, 1]}'], r"image 2 \(number 2\) has values that are no numbers"),
        ([LINE, LINE], r"image_id 1 stands in two lines"),
        (['{"image_id": 1.5, "feature": [1]}'], r"x.jsonl:1: image_id must be a whole number or a name"),
    ],
)
def test_wrong_lines_are_told_with_their_place(tmp_path, lines, message):
    path = tmp_path / "x.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(DataError, match=message):
        read_vectors(path, "image")


def test_values_without_ids_and_other_files_are_refused(tmp_path):
    write_vectors(tmp_path / "x.npy", "image", parts())
    with pytest.raises(DataError, match="needed: text_ids"):
        read_vectors(tmp_path / "x.npy", "text")
    ids_beside(tmp_path / "x.npy").unlink()
    with pytest.raises(FileNotFoundError, match=r"x.ids.json: no such file"):
        read_vectors(tmp_path / "x.npy", "image")
    with pytest.raises(DataError, match=r"end in .jsonl, .npy, .parquet"):
        read_vectors(tmp_path / "x.csv", "image")
