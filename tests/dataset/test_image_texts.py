"""Pictures with several texts, from JSON lines and from tar shards."""

import io
import json
import tarfile

import fsspec
import numpy as np
import pytest

from dataset.files import BadRecord, DataError, Files
from dataset.image_texts import ImageTexts
from dataset.masking import TokenMasker
from dataset.readers import Records
from dataset.tar_shards import split_name
from tests.dataset.toy import picture, preprocessing, write_lines


def packed(members):
    """A tar of members {name: bytes}."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        for name, data in members:
            header = tarfile.TarInfo(name)
            header.size = len(data)
            archive.addfile(header, io.BytesIO(data))
    return content.getvalue()


def write_shard(path, members):
    path.write_bytes(packed(members))
    return str(path)


def samples(count, first=0):
    """Members of samples with a picture, two texts and an id each."""
    members = []
    for number in range(first, first + count):
        record = {"query": f"word {number}", "title": f"title {number}", "image_id": number}
        members += [(f"{number:04}.jpg", picture(number, kind="JPEG")), (f"{number:04}.json", as_bytes(record))]
    return members


def as_bytes(record):
    return json.dumps(record).encode()


def open_dataset(files, **settings):
    pieces = {name: settings.pop(name) for name in ("masker", "cache_dir") if name in settings}
    return ImageTexts(ImageTexts.Config(files=files, **settings), preprocessing(**pieces))


def read(dataset, index=0, seed=0):
    return dataset.sample(index, np.random.default_rng(seed))


def test_every_sample_of_several_shards_is_reachable_by_its_number(tmp_path):
    (tmp_path / "shards").mkdir()
    for number in range(2):
        write_shard(tmp_path / "shards" / f"{number}.tar", samples(3, first=3 * number))
    records = Records([str(tmp_path / "shards")], Files())
    assert [records.read(i)["image_id"] for i in (5, 0, 3, 1)] == [5, 0, 3, 1]
    assert records.read(4)["image"] == picture(4, kind="JPEG")
    assert records.where(4) == f"{tmp_path}/shards/1.tar::0004"


def test_a_shard_that_has_changed_is_indexed_anew(tmp_path):
    path, cache = tmp_path / "a.tar", tmp_path / "cache"
    write_shard(path, samples(3))
    for _ in range(2):
        assert len(Records([str(path)], Files(), cache)) == 3
    write_shard(path, samples(4))
    assert len(Records([str(path)], Files(), cache)) == 4


def test_a_remote_shard_is_read_like_a_local_one():
    with fsspec.open("memory://tar_shards/a.tar", "wb") as file:
        file.write(packed(samples(2)))
    assert Records(["memory://tar_shards"], Files()).read(1)["image_id"] == 1


def test_the_lines_of_a_txt_member_are_texts_and_other_members_are_left_out(tmp_path):
    members = [("x/1.jpg", picture()), ("x/1.npy", b"..."), ("x/1.txt", b"one\n\ntwo\n"), ("x/2.cls", b"0")]
    records = Records([write_shard(tmp_path / "a.tar", members)], Files())
    assert len(records) == 1 and records.read(0)["text"] == ["one", "two"]


def test_names_are_cut_at_their_first_dot():
    assert split_name("a.b/c.left.JPG") == ("a.b/c", "jpg")
    assert split_name("0001.json") == ("0001", "json")


def test_long_names_and_large_members_lie_where_the_index_says(tmp_path):
    members = [("n" * 180 + ".jpg", picture()), ("n" * 180 + ".txt", b"one")]
    record = Records([write_shard(tmp_path / "a.tar", members)], Files()).read(0)
    assert record["image"] == picture() and record["text"] == ["one"]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (packed(samples(2))[:1500], "not a whole tar file|cut short"),
        (b"no tar at all" * 99, "not a whole tar file"),
        (packed([("1.jpg", b"a"), ("1.png", b"b")]), "sample '1' has two .jpg"),
    ],
)
def test_a_broken_shard_is_told_with_its_name(tmp_path, content, told):
    (tmp_path / "a.tar").write_bytes(content)
    with pytest.raises(DataError, match=rf"a\.tar: .*({told})"):
        Records([str(tmp_path / "a.tar")], Files())


def test_a_packed_shard_is_refused(tmp_path):
    (tmp_path / "a.tar.gz").write_bytes(b"")
    with pytest.raises(DataError, match="unpack it to .tar"):
        Records([str(tmp_path / "a.tar.gz")], Files())


def test_broken_members_name_their_sample(tmp_path):
    members = [("1.json", b"{"), ("2.json", b"[]"), ("3.txt", b"\xff")]
    records = Records([write_shard(tmp_path / "a.tar", members)], Files())
    for number, told in enumerate(("broken JSON", "not an object", "not UTF-8")):
        with pytest.raises(BadRecord, match=rf"a\.tar::{number + 1}: {told}"):
            records.read(number)


def test_one_of_all_texts_is_drawn_anew(tmp_path):
    (tmp_path / "a.png").write_bytes(picture())
    record = {"image": "a.png", "query": "one", "title": ["two", ""], "content": "bus"}
    dataset = open_dataset([write_lines(tmp_path / "a.jsonl", [record])], image_root=str(tmp_path))
    drawn = [tuple(read(dataset, seed=seed).texts[0]) for seed in range(30)]
    assert len(set(drawn)) == 3 and drawn == [tuple(read(dataset, seed=seed).texts[0]) for seed in range(30)]


def test_samples_of_shards_become_batches(tmp_path):
    masker = TokenMasker(TokenMasker.Config(mask_prob=0.5), 99, (0, 1, 2))
    dataset = open_dataset([write_shard(tmp_path / "a.tar", samples(3))], masker=masker)
    batch = dataset.collate([read(dataset, index) for index in (0, 1, 2, 1)], [])
    assert batch.images.shape == (4, 3, 8, 8) and batch.image_id[1] == batch.image_id[3] != batch.image_id[0]
    hidden = batch.masked.ids != batch.texts.ids
    assert hidden.sum() == (batch.masked.targets >= 0).sum() > 0
    assert (batch.masked.ids[hidden] == 99).all()


def test_a_record_without_picture_or_text_says_what_it_has(tmp_path):
    records = [{"image": "a.png", "words": "one"}, {"text": "one"}, {"image": "a.png", "text": " "}]
    dataset = open_dataset([write_lines(tmp_path / "a.jsonl", records)])
    for index, told in enumerate(("missing text; none of text, .*found: image, words", "missing image", "empty")):
        with pytest.raises(BadRecord, match=told):
            read(dataset, index)


def test_a_check_of_data_sees_every_text(tmp_path):
    dataset = open_dataset([write_shard(tmp_path / "a.tar", samples(1))])
    contents = dataset.describe(0)
    assert [text for _, text in contents.captions] == ["word 0", "title 0"]
    assert contents.image_id == "0" and contents.images == [(picture(0, kind="JPEG"), "")]


def test_marks_are_never_hidden_and_about_the_asked_share_of_words_is():
    masker = TokenMasker(TokenMasker.Config(), 99, (0, 1, 2))
    ids = [0, *range(10, 30), 2]
    found = [masker.mask(ids, np.random.default_rng(seed)) for seed in range(400)]
    assert all(text.ids[0] == 0 and text.ids[-1] == 2 for text in found)
    share = np.mean([(text.ids == 99).sum() / 20 for text in found])
    assert share == pytest.approx(0.15, abs=0.01)
    assert {len(text.targets) for text in found} > {1, 3}
