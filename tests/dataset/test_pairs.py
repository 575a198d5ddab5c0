"""Chinese-CLIP's texts and images, from lines and from LMDB: pairs, galleries, and what is wrong with them."""

import os
import pickle
import shutil

import lmdb
import numpy as np
import pytest

from dataset.bad_records import BadRecords
from dataset.files import BadRecord, DataError
from dataset.lmdb_pairs import read_pair
from dataset.loader import Loader
from dataset.pairs import Pairs
from dataset.samples import Preprocessing
from dataset.text import load_tokenizer
from dataset.transforms import Resize
from tasks.build_lmdb import BuildLmdb
from tests.toy_ccrk import TOKENIZER
from tests.toy_pairs import TEXTS, image_lines, write_split


def open_pairs(*paths, max_words=0, **settings):
    preprocessing = Preprocessing(load_tokenizer(TOKENIZER), Resize(Resize.Config(), 16), max_words=max_words)
    return Pairs(Pairs.Config(files=list(paths), **settings), preprocessing)


def build(folder, split="valid", **settings):
    config = BuildLmdb.Config(data_dir=str(folder), splits=[split], **settings)
    return BuildLmdb(config, None).run()["splits"][split]["folder"]


def draw(data, number):
    return data.sample(number, np.random.default_rng(0))


@pytest.fixture(params=["lines", "lmdb"])
def place(request, tmp_path):
    path = write_split(tmp_path)
    return path if request.param == "lines" else build(tmp_path)


def test_a_text_is_one_sample_with_each_of_its_images(place):
    data = open_pairs(place)
    assert len(data) == 4
    channels = [draw(data, k).image.reshape(3, -1).mean(axis=1).argmax() for k in range(4)]
    assert channels == [0, 1, 2, 2]
    assert draw(data, 1).texts == draw(data, 2).texts
    assert draw(data, 2).image_id == draw(data, 3).image_id != draw(data, 1).image_id


def test_texts_are_lower_case_with_straight_quotes(place):
    data = open_pairs(place)
    assert draw(data, 0).texts == data.preprocessing.encode(['"red" colour'])
    assert draw(open_pairs(place, max_words=1), 0).texts == data.preprocessing.encode(["red"])  # cleaned as CCLM's


def test_lines_and_lmdb_give_the_same_samples(tmp_path):
    lines, stored = open_pairs(write_split(tmp_path)), open_pairs(build(tmp_path))
    for number in range(4):
        one, other = draw(lines, number), draw(stored, number)
        assert (one.image == other.image).all() and one.texts == other.texts


def test_gallery_has_all_images_and_a_text_all_its_own(place):
    data = open_pairs(place)
    [gallery] = data.galleries(BadRecords(0.0))["und"]
    images = gallery.read_images(range(4)).float().mean(dim=(2, 3))
    colour_of = {tuple(row.int().tolist()): number for number, row in enumerate(images)}
    red, green, blue = (colour_of[colour] for colour in ((200, 30, 30), (30, 200, 30), (30, 30, 200)))
    captions = {caption: int(row) for caption, row in zip(gallery.captions, gallery.image_of_text)}
    assert captions == {'"red" colour': red, "green or blue": green, "blue": blue}
    both = gallery.captions.index("green or blue")
    assert gallery.also_right.tolist() == [[both, blue]]
    pairs = [(gallery.captions[text], row) for text, row in gallery.pairs.tolist()]
    assert pairs == [('"red" colour', red), ("green or blue", green), ("green or blue", blue), ("blue", blue)]


def test_records_can_be_described(place):
    data = open_pairs(place)
    contents = [data.describe(number) for number in range(data.num_records)]
    assert [c.captions[0][1] for c in contents] == [TEXTS[0]["text"], *[TEXTS[1]["text"]] * 2, TEXTS[2]["text"]]
    assert contents[2].image_id == contents[3].image_id


@pytest.mark.parametrize("num_workers", [0, 2])
def test_workers_read_a_folder_that_their_parent_has_open(tmp_path, num_workers):
    write_split(tmp_path)
    data = open_pairs(build(tmp_path))
    draw(data, 0)
    for _ in range(2):  # the second one opens nothing twice either
        loader = Loader(data, batch_size=2, num_workers=num_workers)
        assert sum(len(batch.image_id) for _ in range(2) for batch in loader) == 8


def test_one_folder_may_be_opened_twice(tmp_path):
    write_split(tmp_path)
    folder = build(tmp_path)
    assert draw(open_pairs(folder), 3).image_id == draw(open_pairs(folder), 3).image_id


def test_blank_lines_are_no_records(tmp_path):
    path = write_split(tmp_path, images=["", *image_lines(), "   "], texts=["", *TEXTS, ""])
    data = open_pairs(path)
    assert len(data) == 4 and not data.skipped
    assert data.where(0) == f"{path}:2"


@pytest.mark.parametrize(
    ("texts", "reason"),
    [
        ([{"text_id": 1, "text": "red", "image_ids": [99]}], "unknown image id"),
        ([{"text_id": "one", "text": "red", "image_ids": [11]}], "text_id is not a whole number"),
        ([{"text_id": 1, "text": "red"}], "missing image_ids"),
        ([{"text_id": 1, "image_ids": [11]}], "missing text"),
        (['{"text_id": 1, '], "broken JSON"),
    ],
)
def test_wrong_texts_are_left_out_with_their_place(tmp_path, texts, reason):
    path = write_split(tmp_path, texts=[*TEXTS, *texts])
    [skipped] = open_pairs(path).skipped
    assert skipped.reason == reason and skipped.where == f"{path}:4"
    with pytest.raises(DataError, match=f"{path}:4: {reason}"):
        build(tmp_path)
    assert not (tmp_path / "lmdb" / "valid").exists()


def test_an_image_line_without_a_tab_is_left_out_with_its_place(tmp_path):
    path = write_split(tmp_path, images=[*image_lines(), "12 no tab"])
    [skipped] = open_pairs(path).skipped
    assert skipped.reason == "broken line" and skipped.where.endswith("_imgs.tsv:5")


def test_two_pictures_of_one_id_are_refused(tmp_path):
    lines = image_lines()
    other = "11\t" + lines[1].partition("\t")[2]
    with pytest.raises(DataError, match=r"valid_imgs.tsv:5: image id 11 stands for another picture than in line 1"):
        open_pairs(write_split(tmp_path, images=[*lines, other]))
    open_pairs(write_split(tmp_path, images=[*lines, lines[0]]))  # twice the same is harmless


def test_broken_base64_is_a_bad_record(tmp_path):
    data = open_pairs(write_split(tmp_path, images=["11\t*not base64*", *image_lines()[1:]]))
    with pytest.raises(BadRecord, match="broken base64"):
        draw(data, 0)
    with pytest.raises(DataError, match=r"valid_imgs.tsv:1: broken base64"):
        build(tmp_path)


def test_url_safe_base64_is_read(tmp_path):
    lines = image_lines()
    data = open_pairs(write_split(tmp_path, images=[lines[0].replace("+", "-").replace("/", "_"), *lines[1:]]))
    assert draw(data, 0).image.shape == (3, 16, 16)


def test_a_folder_that_was_never_finished_is_refused(tmp_path):
    write_split(tmp_path)
    folder = build(tmp_path)
    environment = lmdb.open(f"{folder}/pairs", map_size=1 << 24)
    with environment.begin(write=True) as transaction:
        transaction.delete(b"num_samples")
    environment.close()
    with pytest.raises(DataError, match="never finished; write it again"):
        open_pairs(folder)


@pytest.mark.parametrize("part", ["pairs", "imgs"])
def test_a_file_cut_short_is_refused_before_lmdb_reads_behind_its_end(part, tmp_path):
    write_split(tmp_path)
    folder = build(tmp_path)
    size = os.path.getsize(f"{folder}/{part}/data.mdb")
    os.truncate(f"{folder}/{part}/data.mdb", size * 3 // 4)
    with pytest.raises(DataError, match=f"{part}/data.mdb has {size * 3 // 4} bytes of {size}: it was not written"):
        open_pairs(folder)


@pytest.mark.parametrize(("key", "fault"), [(b"999", "records of an older file"), (None, "records are missing")])
def test_stale_and_missing_records_are_refused(tmp_path, key, fault):
    write_split(tmp_path)
    folder = build(tmp_path)
    environment = lmdb.open(f"{folder}/imgs", map_size=1 << 24)
    with environment.begin(write=True) as transaction:
        transaction.put(key, b"x") if key else transaction.delete(b"11")
    environment.close()
    with pytest.raises(DataError, match=fault):
        open_pairs(folder)


def test_building_again_leaves_nothing_of_the_old_folder(tmp_path):
    write_split(tmp_path)
    build(tmp_path)
    write_split(tmp_path, images=image_lines()[:1], texts=TEXTS[:1])
    folder = build(tmp_path)
    assert len(open_pairs(folder)) == 1
    assert os.listdir(tmp_path / "lmdb") == ["valid"] and sorted(os.listdir(folder)) == ["imgs", "pairs"]


def test_a_failed_build_keeps_the_old_folder(tmp_path):
    write_split(tmp_path)
    folder = build(tmp_path)
    write_split(tmp_path, texts=[{"text_id": 1, "text": "red", "image_ids": [99]}])
    with pytest.raises(DataError):
        build(tmp_path)
    assert len(open_pairs(folder)) == 4 and os.listdir(tmp_path / "lmdb") == ["valid"]


def test_records_that_would_import_something_are_refused():
    with pytest.raises(BadRecord, match="broken pair"):
        read_pair(pickle.dumps(shutil.rmtree))
    with pytest.raises(BadRecord, match="broken pair"):
        read_pair(pickle.dumps([1, 2, "text"]))
    assert read_pair(pickle.dumps((1, 2, "text"), protocol=2)).text == "text"


def test_tests_without_images_have_nothing_to_score(tmp_path):
    path = write_split(tmp_path, texts=[{"text_id": 1, "text": "red", "image_ids": []}])
    with pytest.raises(DataError, match="no text names an image"):
        open_pairs(path).galleries(BadRecords(0.0))


def test_folds_are_refused():
    with pytest.raises(ValueError, match="folds must be 1"):
        Pairs.Config(files=["x_texts.jsonl"], folds=5)
