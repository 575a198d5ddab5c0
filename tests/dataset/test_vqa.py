"""GQA's lists and xGQA's tables are read where they lie; pictures of which left or right is said are not mirrored."""

import json

import numpy as np
import pytest

from dataset.bad_records import BadRecords
from dataset.files import DataError
from dataset.transforms import AugmentedCrop
from dataset.vqa import Questions, read_answers
from tests.dataset.toy import WordTokenizer, picture, preprocessing, write_lines

GQA = [
    {"img_id": "n1", "label": {"yes": 1.0}, "question_id": "07", "sent": "Is it red?"},
    {"img_id": "n2", "label": {"blue": 1.0, "dark blue": 0.3}, "question_id": "08", "sent": "What colour is it?"},
]
XGQA = {
    "201": {"question": "Ist es rot?", "answer": "yes", "imageId": "n1", "types": {"detailed": "x"}},
    "202": {"question": "Steht es links?", "answer": "no", "imageId": "n2", "types": {}},
}


@pytest.fixture
def write(tmp_path):
    (tmp_path / "images").mkdir()
    for number, name in enumerate(("n1", "n2")):
        (tmp_path / f"images/{name}.jpg").write_bytes(picture(number, kind="JPEG"))

    def write_file(content, name="questions.json", **dump):
        (tmp_path / name).write_text(json.dumps(content, **dump), encoding="utf-8")
        return str(tmp_path / name)

    return write_file


def questions(tmp_path, files, **settings):
    config = Questions.Config(files=files, image_root=str(tmp_path / "images"))
    return Questions(config, preprocessing(**settings))


def labelled(dataset):
    return dataset.labelled_sets(BadRecords(0.5))


@pytest.mark.parametrize("indent", [None, 1])
def test_a_table_of_questions_is_read_like_a_list(write, tmp_path, indent):
    files = {"en": write(GQA, "gqa.json"), "de": write(XGQA, "xgqa.json", indent=indent)}
    sets = labelled(questions(tmp_path, files))
    label = {name: [item.label for item in found.items] for name, found in sets.items()}
    assert [answers.texts for answers in label["en"]] == [("yes",), ("blue", "dark blue")]
    assert [(answers.question_number, answers.texts) for answers in label["de"]] == [
        ("201", ("yes",)),
        ("202", ("no",)),
    ]
    assert [item.image_keys for item in sets["en"].items] == [item.image_keys for item in sets["de"].items]
    assert sets["de"].read_images([(0, 0), (1, 0)]).shape == (2, 3, 8, 8)


def test_lines_whose_first_field_is_the_label_are_no_table(tmp_path, write):
    path = write_lines(
        tmp_path / "lines.jsonl", [{"label": r["label"], "sent": r["sent"], "img_id": "n1"} for r in GQA]
    )
    assert len(questions(tmp_path, {"en": path})) == 2


def test_answers_of_a_question_share_its_weight(write, tmp_path):
    dataset = questions(tmp_path, {"en": write(GQA)})
    batch = dataset.collate([dataset.sample(k, np.random.default_rng(0)) for k in range(2)], [])
    assert batch.num_answers == [1, 2] and batch.answer_weight.tolist() == [1.0, 0.5, 0.5]
    assert batch.answers.lengths == [3, 3, 4] and (batch.answers.ids[:, 0] == WordTokenizer().bos_id).all()


def test_training_questions_are_cut_and_evaluated_ones_are_not(write, tmp_path):
    record = GQA[0] | {"sent": " ".join(f"word{i}" for i in range(20))}
    dataset = questions(tmp_path, {"en": write([record])}, max_tokens=6, truncate=True)
    assert len(dataset.sample(0, np.random.default_rng(0)).question) == 6
    dataset = questions(tmp_path, {"en": write([record])}, max_tokens=6, truncate=False)
    assert len(labelled(dataset)["en"].items[0].ids) == 22


@pytest.mark.parametrize(
    "language, text, answer, may_flip",
    [
        ("en", "Is it red?", "yes", True),
        ("en", "Is it on the LEFT side?", "yes", False),
        ("en", "On which side is it?", "right", False),
        ("de", "Steht es links davon?", "no", False),
        ("de", "Ist es rot?", "left", False),
    ],
)
def test_pictures_are_mirrored_unless_a_question_or_answer_says_left_or_right(
    write, tmp_path, language, text, answer, may_flip
):
    dataset = questions(tmp_path, {language: write([GQA[0] | {"sent": text, "label": {answer: 1.0}}])})
    always = AugmentedCrop(AugmentedCrop.Config(flip_prob=1.0, num_operations=0, scale=[1.0, 1.0]), 8)
    dataset.preprocessing.transform, dataset.unflipped = always, always.without_flip()
    found = dataset.sample(0, np.random.default_rng(0)).image
    content = (tmp_path / "images/n1.jpg").read_bytes()
    upright = always.without_flip()(content, np.random.default_rng(0))
    assert np.array_equal(found, upright[:, :, ::-1] if may_flip else upright)
    assert not np.array_equal(upright, upright[:, :, ::-1])


def test_a_question_without_an_answer_is_left_out_and_said(write, tmp_path):
    dataset = questions(tmp_path, {"de": write(XGQA | {"203": {"question": "Wo?", "imageId": "n1"}})})
    assert len(dataset) == 2
    (left_out,) = dataset.skipped
    assert left_out.where.endswith("questions.json['203']") and "answer" in str(left_out)


def test_answers_keep_the_order_of_their_file(write):
    found = read_answers(write({"yes": 3, "dark blue": 0, "no": 1}), WordTokenizer())
    assert found.texts == ["yes", "dark blue", "no"] and found.tokens.lengths == [3, 4, 3]


@pytest.mark.parametrize("content, words", [({}, "not a list of answers"), ({"": 0}, "has no words"), ([1], "strings")])
def test_a_wrong_list_of_answers_is_told(write, content, words):
    with pytest.raises(DataError, match=words):
        read_answers(write(content), WordTokenizer())
