"""Records by number: where they lie, how broken ones are named, and how the index is kept."""

import json
import os
import pickle
import zipfile

import numpy as np
import pytest

from dataset.files import BadRecord, DataError, Files, join_path
from dataset.readers import LineIndex, Records, find_lines
from tests.dataset.toy import write_lines


def test_lines_are_found_whatever_the_chunks():
    generator = np.random.default_rng(0)
    parts = [b"\n", b"a", b" ", b"\r\n", b"xyz" * 9, b"\n\n"]
    for _ in range(200):
        content = b"".join(parts[k] for k in generator.integers(len(parts), size=generator.integers(30)))
        cuts = [0, *sorted(generator.integers(0, len(content) + 1, size=3)), len(content)]
        lines = find_lines(content[a:b] for a, b in zip(cuts, cuts[1:]))
        wanted = [(k, line.strip()) for k, line in enumerate(content.split(b"\n"), 1) if line.strip()]
        starts = lines.starts.tolist()
        found = [(lines.line_number(i), content[starts[i] : starts[i + 1]].strip()) for i in range(len(lines))]
        assert found == wanted


def test_files_and_folders_are_one_sequence(tmp_path):
    folder = tmp_path / "shards"
    folder.mkdir()
    write_lines(folder / "part_1.data", [{"n": 2}, "", {"n": 3}])
    write_lines(folder / "part_0.data", [{"n": 1}])
    (folder / "_SUCCESS").write_text("")
    (tmp_path / "list.json").write_text(json.dumps([{"n": 4}]))
    records = Records([str(folder), str(tmp_path / "list.json")], Files())
    assert [records.read(i)["n"] for i in range(len(records))] == [1, 2, 3, 4]
    assert records.where(2) == f"{folder}/part_1.data:3"
    assert records.where(3) == f"{tmp_path}/list.json[0]"
    copy = pickle.loads(pickle.dumps(records))
    assert copy.read(1) == {"n": 2}


def test_members_of_a_zip_are_files(tmp_path):
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        archive.writestr("a/lines.jsonl", '{"n": 1}\n{"n": 2}\n')
    records = Records([f"{tmp_path}/set.zip::a"], Files())
    assert [records.read(i)["n"] for i in range(2)] == [1, 2]
    with pytest.raises(FileNotFoundError):
        Files().read(f"{tmp_path}/set.zip::b")
    assert join_path(f"{tmp_path}/set.zip", "a/x.png") == f"{tmp_path}/set.zip::a/x.png"


@pytest.mark.parametrize(
    "line, reason",
    [
        ('{"a": ', "broken JSON"),
        ("[" * 100_000, "broken JSON"),
        ("3", "not an object"),
        ('{"a": "\udcff"}'.encode("utf-8", "surrogateescape"), "broken JSON"),
        ('{"a": ' + "9" * 5000 + "}", "broken JSON"),
    ],
)
def test_broken_lines_are_named(tmp_path, line, reason):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"n": 1}\n' + (line if isinstance(line, bytes) else line.encode()) + b"\n")
    records = Records([str(path)], Files())
    with pytest.raises(BadRecord) as error:
        records.read(1)
    assert error.value.reason == reason and "line 2" not in str(error.value)  # the record is one line
    assert error.value.where == f"{path}:2"
    assert records.read(0) == {"n": 1}


def test_broken_lists_and_absent_files_are_errors(tmp_path):
    (tmp_path / "x.json").write_text('[{"a": 1},\n oops]')
    with pytest.raises(DataError, match=r"x.json:2: broken JSON"):
        Records([str(tmp_path / "x.json")], Files())
    with pytest.raises(FileNotFoundError, match="no such data file"):
        Records([str(tmp_path / "absent.json")], Files())


def test_index_is_reused_until_the_file_changes(tmp_path, monkeypatch):
    path, cache = write_lines(tmp_path / "x.jsonl", [{"n": 1}, {"n": 2}]), tmp_path / "cache"
    Records([path], Files(), cache)
    with monkeypatch.context() as patch:
        patch.setattr("dataset.readers.find_lines", None)  # a second look must not need it
        assert len(Records([path], Files(), cache)) == 2
    write_lines(tmp_path / "x.jsonl", [{"n": 1}, {"n": 2}, {"n": 3}])
    assert len(Records([path], Files(), cache)) == 3
    (kept,) = cache.iterdir()
    kept.write_bytes(kept.read_bytes()[:-9])  # cut short
    assert len(Records([path], Files(), cache)) == 3


def test_index_lives_in_memory_where_nothing_can_be_written(tmp_path):
    path = write_lines(tmp_path / "x.jsonl", [{"n": 1}])
    (tmp_path / "file").write_text("")
    lines = LineIndex(Files(), tmp_path / "file" / "cache").load(path)
    assert len(lines) == 1


def test_pipes_and_folders_are_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", "."):
        with pytest.raises(OSError):
            Files().read(str(tmp_path / name))
    with pytest.raises(BadRecord, match="file too large"):
        (tmp_path / "big").write_bytes(b"12345")
        Files().read(str(tmp_path / "big"), limit=4)


def test_remote_files_are_read_through_fsspec():
    import fsspec

    with fsspec.open("memory://shards/part_0.data", "wb") as file:
        file.write(b'{"n": 1}\n{"n": 2}\n')
    records = Records(["memory://shards"], Files())
    assert [records.read(i)["n"] for i in range(len(records))] == [1, 2]
    assert Files().read(join_path("memory://shards", "part_0.data"), limit=99).startswith(b'{"n": 1}')
    with pytest.raises(FileNotFoundError):
        Records(["memory://absent.jsonl"], Files())
