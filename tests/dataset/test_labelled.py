"""Labelled texts: XVNLI's lines, NLVR2's lists, MaRVL's lines; what is skipped, what stays in an evaluation."""

import json

import numpy as np
import pytest
import torch

from dataset.bad_records import BadRecords
from dataset.files import BadRecord, DataError
from dataset.labelled import Entailment, PicturePairs
from tests.dataset.toy import picture, preprocessing, write_lines

XVNLI = {"gold_label": "neutral", "sentence1": "premise", "sentence2": "It is  late!", "Flikr30kID": "7"}


@pytest.fixture
def folder(tmp_path):
    for name in ("7.jpg", "a.png", "b.png"):
        (tmp_path / name).write_bytes(picture(len(name), kind="PNG"))
    return tmp_path


def entailment(folder, lines):
    files = {"en": write_lines(folder / "lines.jsonl", lines)}
    return Entailment(Entailment.Config(files=files, image_root=str(folder)), preprocessing())


def pairs(folder, records, **roots):
    (folder / "list.json").write_text(json.dumps(records))
    roots = {"image_root": str(folder)} | roots
    return PicturePairs(PicturePairs.Config(files={"id": str(folder / "list.json")}, **roots), preprocessing())


def test_texts_without_a_class_are_no_part_of_the_set_and_not_bad(folder):
    dataset = entailment(folder, [XVNLI | {"gold_label": "-"}, XVNLI, XVNLI | {"gold_label": "entailment"}])
    assert len(dataset) == 2 and dataset.skipped == [] and dataset.num_records == 3
    samples = [dataset.sample(k, np.random.default_rng(0)) for k in range(2)]
    assert [sample.label for sample in samples] == [2, 1] and samples[0].images[0].shape == (3, 8, 8)
    assert dataset.where(0).endswith("lines.jsonl:2")
    assert samples[0].text == preprocessing().encode(["it is late"])[0]


@pytest.mark.parametrize(
    "record, reason",
    [
        (XVNLI | {"gold_label": "perhaps"}, "unknown gold_label"),
        ({k: v for k, v in XVNLI.items() if k != "sentence2"}, "missing sentence2"),
        (XVNLI | {"sentence2": " .. "}, "empty caption"),
        ({k: v for k, v in XVNLI.items() if k != "Flikr30kID"}, "missing Flikr30kID"),
    ],
)
def test_a_broken_record_is_left_out_and_named(folder, record, reason):
    dataset = entailment(folder, [XVNLI, record])
    assert len(dataset) == 1 and [skipped.reason for skipped in dataset.skipped] == [reason]
    assert dataset.skipped[0].where.endswith("lines.jsonl:2")


def test_a_set_without_any_usable_record_is_an_error(folder):
    with pytest.raises(DataError, match="no usable record in en; .*lines.jsonl:1: unknown gold_label"):
        entailment(folder, [XVNLI | {"gold_label": 5}])


@pytest.mark.parametrize("label, expected", [("True", 1), ("False", 0), (True, 1), (False, 0), ("true", 1)])
def test_truth_comes_as_a_word_or_as_a_boolean(folder, label, expected):
    dataset = pairs(folder, [{"sentence": "x", "label": label, "images": ["a.png", "b.png"]}])
    assert dataset.sample(0, np.random.default_rng(0)).label == expected


@pytest.mark.parametrize("images", [["a.png"], ["a.png", "b.png", "a.png"], "a.png", None])
def test_other_than_two_pictures_are_refused(folder, images):
    good = {"sentence": "x", "label": True, "images": ["a.png", "b.png"]}
    dataset = pairs(folder, [good, good | {"images": images}])
    assert len(dataset) == len(dataset.skipped) == 1


def test_a_batch_holds_all_first_pictures_then_all_second_ones(folder):
    record = {"sentence": "one two", "label": True, "images": ["a.png", "b.png"]}
    dataset = pairs(folder, [record, record | {"images": ["b.png", "a.png"], "label": False}])
    samples = [dataset.sample(k, np.random.default_rng(0)) for k in range(2)]
    batch = dataset.collate(samples, [])
    assert batch.image_of_text.tolist() == [[0, 1], [2, 3]] and batch.labels.tolist() == [1, 0]
    first, second = samples
    for row, image in enumerate([first.images[0], second.images[0], first.images[1], second.images[1]]):
        assert torch.equal(batch.images[row], torch.from_numpy(image))


def test_marvl_lines_lead_to_their_pictures(folder):
    line = {"concept": "82-X", "caption": "kalimat", "label": True, "left_img": "l.jpg", "right_img": "r.jpg"}
    few = line | {"left_img": "82-X/l.jpg", "right_img": "82-X/r.jpg"}
    dataset = pairs(folder, [line | {"language": "sw"}, few])
    found = [[value for value, _ in dataset.describe(k).images] for k in range(2)]
    assert found == [
        ["images/marvl-images/sw/images/82-X/l.jpg", "images/marvl-images/sw/images/82-X/r.jpg"],
        ["images/marvl_fewshot/id/all/l.jpg", "images/marvl_fewshot/id/all/r.jpg"],
    ]
    assert [root for _, root in dataset.describe(0).images] == ["", ""]


def test_an_unreadable_picture_is_bad_in_training_and_grey_in_an_evaluation(folder):
    dataset = entailment(folder, [XVNLI, XVNLI | {"Flikr30kID": "absent"}])
    with pytest.raises(BadRecord, match="image file not found"):
        dataset.sample(1, np.random.default_rng(0))
    bad_records = BadRecords(1.0)
    (labelled,) = dataset.labelled_sets(bad_records).values()
    images = labelled.read_images([(0, 0), (1, 0)])
    assert len(labelled.items) == 2 and bool((images[1] == 128).all()) and bad_records.bad == 1
