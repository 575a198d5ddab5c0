"""Retrieval files in their three layouts: pairs, galleries, and what connects languages."""

import json

import numpy as np
import pytest

from dataset.bad_records import BadRecords
from dataset.files import BadRecord, DataError
from dataset.retrieval import FlickrLines, ImageTextPairs, WitLines
from tests.dataset.toy import base64_of, picture, preprocessing, write_lines


def write_list(path, records):
    path.write_text(json.dumps(records), encoding="utf-8")
    return str(path)


@pytest.fixture
def folder(tmp_path):
    for k in range(4):
        (tmp_path / f"{k}.png").write_bytes(picture(k))
    return tmp_path


def galleries(dataset):
    return dataset.galleries(BadRecords(1.0))


def test_training_pairs_share_pictures_across_languages(folder):
    english = [
        {"caption": "a cat", "image": "0.png", "image_id": 7},
        {"caption": "a dog", "image": "1.png", "image_id": 8},
    ]
    german = [{"caption": "ein Hund", "image": "1.png", "image_id": 8}]
    files = {"en": write_list(folder / "en.json", english), "de": write_list(folder / "de.json", german)}
    dataset = ImageTextPairs(ImageTextPairs.Config(files=files, image_root=str(folder)), preprocessing())
    assert len(dataset) == 3 and dataset.languages == ["en", "de"]
    samples = [dataset.sample(k, np.random.default_rng(0)) for k in range(3)]
    assert samples[1].image_id == samples[2].image_id != samples[0].image_id
    assert [sample.languages for sample in samples] == [[0], [0], [1]]
    assert dataset.where(2) == f"{folder}/de.json[0]"
    assert np.array_equal(samples[1].image, samples[2].image)


def test_gallery_keeps_several_captions_per_picture_and_drops_empty_ones(folder):
    records = [
        {"caption": ["one", "..", "two"], "image": "0.png", "image_id": 1},
        {"caption": [""], "image": "1.png", "image_id": 2},
        {"caption": ["three"], "image": "2.png", "image_id": 3},
        {"caption": ["four"], "image": 5},
    ]
    config = ImageTextPairs.Config(files={"en": write_list(folder / "t.json", records)}, image_root=str(folder))
    dataset = ImageTextPairs(config, preprocessing())
    (gallery,) = galleries(dataset)["en"]
    assert gallery.image_paths == ["0.png", "2.png"] and gallery.captions == ["one", "two", "three"]
    assert gallery.image_of_text.tolist() == [0, 0, 1] and gallery.texts.lengths == [3, 3, 3]
    assert [record.reason for record in dataset.skipped] == ["empty caption", "empty caption", "missing image"]
    assert dataset.skipped[2].where.endswith("t.json[3]")


def test_galleries_can_be_cut_into_folds(folder):
    records = [{"caption": [f"number {k}"], "image": f"{k % 4}{'x' * (k // 4)}.png"} for k in range(7)]
    config = ImageTextPairs.Config(files={"en": write_list(folder / "t.json", records)}, folds={"en": 3})
    assert config.num_folds("en") == 3
    folds = galleries(ImageTextPairs(config, preprocessing()))["en"]
    assert [len(fold.image_paths) for fold in folds] == [2, 2, 3]
    assert folds[2].captions == ["number 4", "number 5", "number 6"] and folds[2].image_of_text.tolist() == [0, 1, 2]


def test_unreadable_pictures_of_a_gallery_are_grey_and_counted(folder):
    (folder / "1.png").write_bytes(picture(1)[:60])
    records = [{"caption": ["one"], "image": f"{k}.png"} for k in range(3)]
    config = ImageTextPairs.Config(files=[write_list(folder / "t.json", records)], image_root=str(folder))
    bad = BadRecords(1.0)
    (gallery,) = ImageTextPairs(config, preprocessing()).galleries(bad, num_threads=2)["und"]
    images = gallery.read_images([0, 1, 2])
    assert (images[1] == 128).all() and not (images[0] == 128).all()
    assert sum(bad.by_reason.values()) == 1


def test_xflickrco_lines_take_coco_pictures_from_their_own_folder(folder):
    (folder / "coco").mkdir()
    (folder / "coco" / "COCO_val2014_1.jpg").write_bytes(picture(9))
    records = [
        {"sentences": ["ein Hund", "zwei Hunde"], "id": "0", "img_path": "0.png"},
        {"sentences": [""], "id": "2", "img_path": "2.png"},
        {"sentences": ["eine Katze"], "id": "1", "img_path": "COCO_val2014_1.jpg"},
    ]
    config = FlickrLines.Config(
        files={"de": write_lines(folder / "test.jsonl", records)},
        flickr_root=str(folder),
        coco_root=str(folder / "coco"),
    )
    dataset = FlickrLines(config, preprocessing())
    assert len(dataset) == 3 and dataset.sample(2, np.random.default_rng(0)).languages == [0]
    (gallery,) = galleries(dataset)["de"]
    assert gallery.image_paths == ["0.png", "COCO_val2014_1.jpg"] and gallery.image_of_text.tolist() == [0, 0, 1]
    assert gallery.read_images([0, 1]).shape == (2, 3, 8, 8)


def test_wit_lines_group_captions_by_address(folder):
    records = [
        {"image_url": "u/1", "caption_reference_description": "One.", "image_content": base64_of(picture(1))},
        {"image_url": "u/2", "caption_reference_description": ".", "image_content": base64_of(picture(2))},
        {"image_url": "u/1", "caption_reference_description": "two", "image_content": base64_of(picture(1))},
        {"image_url": "u/3", "caption_reference_description": "", "image_content": base64_of(picture(3))},
    ]
    config = WitLines.Config(files={"ar": write_lines(folder / "test_ar.jsonl", records)})
    (gallery,) = galleries(WitLines(config, preprocessing()))["ar"]
    assert gallery.image_paths == ["u/1", "u/2"]
    assert gallery.captions == ["one", "two", "."] and gallery.image_of_text.tolist() == [0, 0, 1]


def test_few_shots_take_the_first_records(folder):
    records = [{"caption": f"number {k}", "image": "0.png"} for k in range(5)]
    config = ImageTextPairs.Config(files=[write_list(folder / "t.json", records)], limit=2)
    assert len(ImageTextPairs(config, preprocessing())) == 2


def test_files_without_a_usable_record_are_errors(folder):
    config = ImageTextPairs.Config(files=[write_list(folder / "t.json", [{"caption": "x"}])])
    with pytest.raises(DataError, match=r"t.json\[0\]: missing image"):
        ImageTextPairs(config, preprocessing())


def test_records_are_described_whether_samples_come_from_them_or_not(folder):
    english = [{"caption": ["one", ".."], "image": "0.png", "image_id": 7}, {"caption": "two", "image": 5}]
    german = [{"caption": "drei", "image": "1.png"}]
    files = {"en": write_list(folder / "en.json", english), "de": write_list(folder / "de.json", german)}
    dataset = ImageTextPairs(ImageTextPairs.Config(files=files, image_root=str(folder)), preprocessing())
    assert dataset.num_records == 3 and dataset.where_record(2).endswith("de.json[0]")
    assert dataset.describe(0).captions == [("en", "one"), ("en", "..")] and dataset.describe(0).image_id == "7"
    assert dataset.describe(2).captions == [("de", "drei")] and dataset.describe(2).needed == "each"
    with pytest.raises(BadRecord, match="missing image"):
        dataset.describe(1)
