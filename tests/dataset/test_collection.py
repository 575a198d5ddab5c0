"""A collection lists pictures, finds their captions by path, and gives them ids that say nothing of the path."""

from __future__ import annotations

import json
import zipfile

import pytest

from dataset.collection import Collection
from dataset.files import DataError
from tests.toy_ccrk import write_toy_data


@pytest.fixture
def folder(tmp_path):
    write_toy_data(tmp_path, num_images=4)
    return tmp_path


def test_a_folder_and_a_zip_of_it_hold_the_same_pictures(folder):
    with zipfile.ZipFile(folder / "all.zip", "w") as archive:
        for path in sorted((folder / "images").iterdir()):
            archive.write(path, f"images/{path.name}")
    plain, zipped = Collection([f"{folder}/images"]), Collection([f"{folder}/all.zip::images"])
    assert (
        [each.name for each in plain.pictures]
        == [each.name for each in zipped.pictures]
        == sorted(f"{number}.png" for number in range(4))
    )
    assert [plain.read(place) for place in range(4)] == [zipped.read(place) for place in range(4)]
    assert len(Collection([f"{folder}/all.zip"])) == 4


def test_ids_are_opaque_stable_and_lead_back(folder):
    first, again = Collection([f"{folder}/images"]), Collection([f"{folder}/images"])
    assert first.place == again.place and first.place[first.pictures[2].picture_id] == 2
    assert all(len(name) == 20 and int(name, 16) >= 0 for name in first.place)


def test_a_changed_picture_gets_another_key_and_keeps_its_id(folder):
    before = Collection([f"{folder}/images"]).pictures[1]
    (folder / "images" / "1.png").write_bytes(b"other")
    after = Collection([f"{folder}/images"]).pictures[1]
    assert after.key != before.key and after.picture_id == before.picture_id


def test_captions_come_from_lists_and_lines_by_the_end_of_the_path(folder):
    (folder / "images" / "deep").mkdir()
    (folder / "images" / "0.png").rename(folder / "images" / "deep" / "1.png")
    lines = [{"image": "images/1.png", "caption": ["one", "eins"]}, {"image": "deep/1.png", "captions": {"de": "tief"}}]
    (folder / "lines.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    (folder / "list.json").write_text(json.dumps([{"file_name": "2.png", "text": "two"}]), encoding="utf-8")
    pictures = Collection([f"{folder}/images"], [f"{folder}/lines.jsonl", f"{folder}/list.json"]).pictures
    found = {picture.name: picture.captions for picture in pictures}
    assert found == {"1.png": {"": "one; eins"}, "2.png": {"": "two"}, "3.png": {}, "deep/1.png": {"de": "tief"}}


def test_what_cannot_be_searched_is_told(folder):
    (folder / "empty").mkdir()
    with pytest.raises(DataError, match="no pictures; looked for files that end in .jpg"):
        Collection([f"{folder}/empty"])
    with pytest.raises(FileNotFoundError, match="no such folder of pictures"):
        Collection([f"{folder}/nowhere"])
    (folder / "bad.json").write_text(json.dumps([{"image": "1.png"}]), encoding="utf-8")
    with pytest.raises(DataError, match=r"bad.json.*needs one of .* found: image"):
        Collection([f"{folder}/images"], [f"{folder}/bad.json"])
