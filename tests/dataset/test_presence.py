import json

import pytest

from dataset.labelled import PicturePairs
from dataset.lmdb_pairs import IMAGES, PAIRS
from dataset.pairs import Pairs
from dataset.presence import check_places
from dataset.retrieval import FlickrLines, ImageTextPairs


def test_every_missing_file_and_folder_is_in_one_message(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps([{"caption": "x", "image": "flickr30k-images/1.jpg"}]))
    train = ImageTextPairs.Config({"en": f"{tmp_path}/a.json"}, image_root=f"{tmp_path}/images")
    test = ImageTextPairs.Config({"en": f"{tmp_path}/absent.json", "de": f"{tmp_path}/a.json"})
    with pytest.raises(FileNotFoundError) as error:
        check_places([train, test])
    assert f"{tmp_path}/images/flickr30k-images: no such folder; pictures of {tmp_path}/a.json" in str(error.value)
    assert f"{tmp_path}/absent.json: no such data file or folder" in str(error.value)


def test_the_names_beside_a_missing_file_are_shown(tmp_path):
    for language in ("ar", "es"):
        (tmp_path / language).mkdir()
        (tmp_path / language / "train_48.jsonl").touch()
    files = {"a": f"{tmp_path}/klingon/train_48.jsonl", "b": f"{tmp_path}/ar/trian_48.jsonl"}
    with pytest.raises(FileNotFoundError) as error:
        check_places([ImageTextPairs.Config(files)])
    assert f"no such data file or folder; {tmp_path} has ar, es" in str(error.value)
    assert f"did you mean '{tmp_path}/ar/train_48.jsonl'?" in str(error.value)


def test_both_folders_of_lines_that_need_two_are_looked_for(tmp_path):
    lines = [{"sentences": ["a"], "img_path": name} for name in ("1.jpg", "COCO_val2014_1.jpg")]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    (tmp_path / "flickr").mkdir()
    roots = {"flickr_root": f"{tmp_path}/flickr", "coco_root": f"{tmp_path}/val2014"}
    section = FlickrLines.Config({"de": f"{tmp_path}/t.jsonl"}, **roots)
    with pytest.raises(FileNotFoundError, match="val2014: no such folder") as error:
        check_places([section])
    assert "flickr:" not in str(error.value)


def test_folders_of_pictures_of_labelled_texts_are_looked_for(tmp_path):
    line = {"concept": "1-Baskische", "left_img": "1.jpg", "right_img": "2.jpg", "caption": "a", "label": True}
    (tmp_path / "marvl-id.jsonl").write_text(json.dumps(line))
    section = PicturePairs.Config({"id": f"{tmp_path}/marvl-id.jsonl"}, marvl_root=f"{tmp_path}/marvl-images")
    with pytest.raises(FileNotFoundError, match="marvl-images/id/images/1-Baskische: no such folder"):
        check_places([section])


def test_pages_of_a_database_are_not_taken_for_lines(tmp_path):
    for part in (PAIRS, IMAGES):  # an LMDB page holds whatever stood in memory behind its records
        (tmp_path / part).mkdir()
        (tmp_path / part / "data.mdb").write_bytes(bytes(16) + b'{"image": "images/1.png", "image_id": 1}\n')
    check_places([Pairs.Config({"zh": str(tmp_path)})])
