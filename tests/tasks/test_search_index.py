"""An index holds what the model says, is made once, goes on where it was stopped, and trusts nothing damaged."""

from __future__ import annotations

import pytest
import torch

import rosetta
from dataset.collection import Collection
from tasks import search_index
from tasks.search_index import IndexStore, PixelReader, build_index, index_folder
from tests.toy_served import write_run


class Stopped(Exception):
    """What ends an unfinished index."""


@pytest.fixture
def loaded(tmp_path):
    return rosetta.load(write_run(tmp_path))


@pytest.fixture
def images(tmp_path):
    return tmp_path / "data" / "images"


def build(loaded, images, store, **options):
    collection = Collection([str(images)])
    reader = PixelReader(collection, loaded, 2)
    return collection, *build_index(collection, loaded, reader, IndexStore(store), batch_size=2, **options)


def counted(loaded, monkeypatch):
    """A list that grows by every picture that is encoded."""
    encode, seen = loaded.model.embed_image, []
    monkeypatch.setattr(loaded.model, "embed_image", lambda pixels: seen.extend(pixels) or encode(pixels))
    return seen


def test_the_index_holds_the_models_vectors(loaded, images, tmp_path):
    collection, kept, embed = build(loaded, images, tmp_path / "index")
    assert kept == list(range(8))
    expected = loaded.encode_image([images / picture.name for picture in collection.pictures])
    torch.testing.assert_close(embed, expected, atol=1e-6, rtol=1e-5)


def test_a_second_start_encodes_nothing_and_a_changed_picture_alone(loaded, images, tmp_path, monkeypatch):
    _, _, before = build(loaded, images, tmp_path / "index")
    seen = counted(loaded, monkeypatch)
    assert torch.equal(build(loaded, images, tmp_path / "index")[2], before) and not seen
    (images / "3.png").write_bytes((images / "4.png").read_bytes() + b" ")
    _, _, after = build(loaded, images, tmp_path / "index")
    assert len(seen) == 1
    torch.testing.assert_close(after[3], before[4], atol=1e-6, rtol=1e-5)


def test_a_stopped_index_goes_on(loaded, images, tmp_path, monkeypatch):
    monkeypatch.setattr(search_index, "PART_IMAGES", 2)
    seen, calls = counted(loaded, monkeypatch), []

    def stop():
        calls.append(1)
        if len(calls) == 3:
            raise Stopped

    with pytest.raises(Stopped):
        build(loaded, images, tmp_path / "index", check=stop)
    assert len(seen) == 4
    build(loaded, images, tmp_path / "index")
    assert len(seen) == 8
    assert [path.name for path in (tmp_path / "index").iterdir()] == ["index.npz"]


def test_pictures_that_cannot_be_read_are_left_out_by_name(loaded, images, tmp_path, caplog):
    (images / "5.png").write_bytes(b"no picture")
    collection, kept, embed = build(loaded, images, tmp_path / "index")
    assert [collection.pictures[place].name for place in kept] == [f"{n}.png" for n in (0, 1, 2, 3, 4, 6, 7)]
    assert len(embed) == 7 and "5.png: left out" in caplog.text


def test_a_folder_without_one_readable_picture_is_an_error(loaded, tmp_path):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.jpg").write_bytes(b"x")
    with pytest.raises(ValueError, match="none of the 1 pictures can be read"):
        build(loaded, tmp_path / "broken", tmp_path / "index")


def test_a_damaged_file_is_made_again(loaded, images, tmp_path, caplog):
    _, _, before = build(loaded, images, tmp_path / "index")
    place = tmp_path / "index" / "index.npz"
    place.write_bytes(place.read_bytes()[:200])
    assert torch.equal(build(loaded, images, tmp_path / "index")[2], before)
    assert "made again" in caplog.text


def test_other_weights_have_an_index_of_their_own(loaded, tmp_path):
    before = index_folder("base", loaded, ["a"])
    assert before == index_folder("base", loaded, ["a"]) != index_folder("base", loaded, ["b"])
    with torch.no_grad():
        loaded.model.image_projection.bias[0] += 1
    assert index_folder("base", loaded, ["a"]) != before
