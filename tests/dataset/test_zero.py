"""Lines of Zero's labelled sets: base names, numbered captions, and what is told about those that cannot be used."""

import json
from pathlib import Path

import pytest

from dataset.files import BadRecord, DataError
from dataset.text import load_tokenizer
from dataset.zero import NumberedCaptions, ZeroLabels, ZeroLines
from tests.dataset.toy import preprocessing


def test_only_the_base_name_of_an_image_path_counts():
    config = ZeroLines.Config(files=["x.json"], image_root="pictures")
    entry = config.read({"text": "t", "image_path": "somebody/else/0a1b.jpg"})
    assert (entry.image, entry.root, entry.image_id) == ("0a1b.jpg", "pictures", "0a1b")


@pytest.mark.parametrize(
    ("line", "name", "caption"),
    [
        ("36979#0\tzwei worte", "36979", "zwei worte"),
        ("36979.jpg#zhb#3 two words", "36979.jpg", "two words"),
        ("COCO_val2014_01#1\t#1 in a list\r\n", "COCO_val2014_01", "#1 in a list"),
        (" 36979#0\t two words \tof somebody", "36979", "two words "),
        ("36979\tno number", "36979", "no number"),
    ],
)
def test_a_numbered_caption_begins_after_its_number(line, name, caption):
    assert NumberedCaptions.Config(files=["x"]).parse(line.encode()) == {"name": name, "caption": caption}


def test_a_line_without_a_number_is_no_caption():
    with pytest.raises(BadRecord, match="expected name#k<TAB>caption, found b'no number'"):
        NumberedCaptions.Config(files=["x"]).parse(b"no number")


def test_a_picture_s_folder_follows_from_its_name():
    config = NumberedCaptions.Config(files=["x"], image_root={"COCO_train": "train", "COCO_val": "val"})
    assert config.read({"name": "COCO_val_1", "caption": "c"}).root == "val"
    with pytest.raises(BadRecord, match="begins with none of COCO_train, COCO_val"):
        config.read({"name": "flickr_1", "caption": "c"})


def test_a_split_is_a_list_of_names(tmp_path):
    (tmp_path / "captions.txt").write_text("a#0\tone\nb#0\ttwo\na#1\tthree\n", encoding="utf-8")
    (tmp_path / "test.txt").write_text("a.jpg\n", encoding="utf-8")
    config = NumberedCaptions.Config(files=[str(tmp_path / "captions.txt")], only=str(tmp_path / "test.txt"))
    assert len(NumberedCaptions(config, preprocessing())) == 2


def test_a_line_that_is_no_caption_is_named(tmp_path):
    path = tmp_path / "captions.txt"
    path.write_text("a#0\tone\nbroken\n", encoding="utf-8")
    dataset = NumberedCaptions(NumberedCaptions.Config(files=[str(path)]), preprocessing())
    assert [problem.where for problem in dataset.skipped] == [f"{path}:2"]


def test_a_line_without_its_text_is_named(tmp_path):
    path = tmp_path / "lines.json"
    path.write_text(json.dumps({"image_path": "a.jpg"}) + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=f"{path.name}:1.*'text' is missing; found: image_path"):
        ZeroLines(ZeroLines.Config(files=[str(path)]), preprocessing())


def test_special_words_in_a_caption_are_the_special_tokens():
    tokenizer = load_tokenizer(Path(__file__).parents[1] / "parity" / "fixtures" / "r2d2" / "tokenizer" / "vocab.txt")
    (ids,) = tokenizer.encode_batch(["[MASK][SEP]"], 64)
    assert ids == [tokenizer.bos_id, tokenizer.mask_id, tokenizer.eos_id, tokenizer.eos_id]


@pytest.mark.parametrize("label", [2, "yes", None])
def test_a_label_that_is_none_is_refused(label):
    with pytest.raises(BadRecord, match="label"):
        ZeroLabels.Config(files=["x"]).read({"text": "t", "image_path": "a.jpg", "label": label}, "zh")
