"""The join of WIT's annotations with their pictures."""

import gzip
import json
import threading
import zipfile
from pathlib import Path

import pytest

from dataset import wit
from dataset.wit import find_pixel_files, join_if_absent, join_wit_pixels, main
from tests.dataset.toy import base64_of, picture, write_lines


def test_annotations_get_their_pictures(tmp_path):
    arabic = [
        {"image_url": "u/1", "caption_reference_description": "one"},
        {"image_url": "u/2", "caption_reference_description": "two"},
        {"image_url": "u/1", "caption_reference_description": "three"},
        "{",
    ]
    danish = [{"image_url": "u/2", "caption_reference_description": "to"}, {"image_url": "u/9"}]
    paths = [write_lines(tmp_path / "test_ar.jsonl", arabic), write_lines(tmp_path / "test_da.jsonl", danish)]
    first, second = base64_of(picture(1)), base64_of(picture(2))
    (tmp_path / "a.csv").write_text(f"u/2\t{second}\tmore\nno tab\nu/7\t{first}\n")
    (tmp_path / "b.csv.gz").write_bytes(gzip.compress(f"u/1\t{first}\nu/9\tnot*base64\n".encode()))
    missing = join_wit_pixels(paths, [f"{tmp_path}/a.csv", f"{tmp_path}/b.csv.gz"], f"{tmp_path}/out")
    assert missing == {paths[0]: 1, paths[1]: 1}
    joined = [json.loads(line) for line in (tmp_path / "out" / "test_ar.jsonl").read_text().splitlines()]
    assert [(line["caption_reference_description"], line["image_content"]) for line in joined] == [
        ("two", second),
        ("one", first),
        ("three", first),
    ]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"test_ar.jsonl", "test_da.jsonl"}


def test_the_command_joins_and_tells_what_is_absent(tmp_path):
    (tmp_path / "test_ar.jsonl").write_text(
        json.dumps({"image_url": "u/1", "caption_reference_description": "one"}) + "\n"
    )
    (tmp_path / "a.csv").write_text(f"u/1\t{base64_of(picture(1))}\n")
    words = [str(tmp_path / "test_ar.jsonl"), "--pixels", str(tmp_path / "a.csv"), "--output", str(tmp_path / "out")]
    assert main(words) == 0 and "u/1" in (tmp_path / "out/test_ar.jsonl").read_text()
    assert main([str(tmp_path / "none.jsonl"), *words[1:]]) == 2


@pytest.fixture
def download(tmp_path):
    """IGLUE's and Kaggle's files where they are unpacked: one picture in each of two pixel files."""
    (tmp_path / "wit/annotations").mkdir(parents=True)
    lines = [{"image_url": f"u/{i}", "caption_reference_description": f"text {i}"} for i in (1, 2, 3)]
    write_lines(tmp_path / "wit/annotations/test_ar.jsonl", lines)
    with zipfile.ZipFile(tmp_path / "wit/annotations/test_da.jsonl.zip", "w") as packed:
        packed.writestr("test_da.jsonl", json.dumps(lines[1]))
    for i in (1, 2):
        path = tmp_path / f"pixels/{i}.csv"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"u/{i}\t{base64_of(picture(i))}\n")
    return tmp_path


def join(folder, *names, said=None):
    joined = [str(folder / f"joined/annotations-bs64/{name}.jsonl") for name in names]
    join_if_absent(joined, str(folder / "wit"), str(folder / "pixels"), [].append if said is None else said.append)
    return [[json.loads(line)["image_url"] for line in Path(path).read_text().splitlines()] for path in joined]


def test_absent_files_are_joined_once_and_say_what_they_lack(download):
    said = []
    assert join(download, "test_ar", "test_da", said=said) == [["u/1", "u/2"], ["u/2"]]
    assert "joining 2 files of WIT with 2 pixel files" in said[0]
    assert said[1].endswith(f"test_ar.jsonl: 1 lines have no picture in {download / 'pixels'} and are left out")
    (download / "pixels/1.csv").unlink()
    assert join(download, "test_ar", said=said) == [["u/1", "u/2"]] and len(said) == 2


def test_a_join_that_was_stopped_goes_on_at_the_next_pixel_file(download, monkeypatch):
    read = wit._read_pixels

    def stop_in_the_second(path, wanted):
        yield from read(path, wanted)
        if path.endswith("2.csv"):
            raise KeyboardInterrupt

    monkeypatch.setattr(wit, "_read_pixels", stop_in_the_second)
    with pytest.raises(KeyboardInterrupt):
        join(download, "test_ar")
    assert not (download / "joined/annotations-bs64/test_ar.jsonl").exists()
    seen = []
    monkeypatch.setattr(wit, "_read_pixels", lambda path, wanted: seen.append(path) or read(path, wanted))
    assert join(download, "test_ar") == [["u/1", "u/2"]]
    assert [Path(path).name for path in seen] == ["2.csv"]
    assert [path.name for path in (download / "joined/annotations-bs64").iterdir() if path.suffix != ".lock"] == [
        "test_ar.jsonl"
    ]


def test_processes_wait_for_the_one_that_joins(download):
    said = []
    threads = [threading.Thread(target=join, args=(download, "test_ar"), kwargs={"said": said}) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum("joining" in line for line in said) == 1 and join(download, "test_ar") == [["u/1", "u/2"]]


def test_what_a_join_needs_is_told(download):
    with pytest.raises(FileNotFoundError, match=r"test_xx.jsonl: no such data file; it is joined from .*test_xx.jsonl"):
        join(download, "test_xx")
    for path in find_pixel_files(str(download / "pixels")):
        Path(path).unlink()
    with pytest.raises(FileNotFoundError, match=r"pixels has no \*.csv or \*.csv.gz to make it from"):
        join(download, "test_ar")
