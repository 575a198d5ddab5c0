"""Adding languages to files: what is written, and that any kill and any number of processes give the same bytes."""

import gzip
import json
import os
import signal
import subprocess
import sys
import time

import fsspec
import pytest

import run
from dataset.files import Files
from dataset.readers import list_files
from tasks import translate
from tests.toy_ccrk import ROOT
from tests.toy_translation import write_captions, write_m2m100
from utils.folder import Folder


class Capitals:
    """Translates by writing in capitals, and counts the texts."""

    def __init__(self, config, device, names):
        self.seen = []

    def translate(self, texts, wanted):
        self.seen += texts
        return [{target: self.write(target, text) for target in each} for text, each in zip(texts, wanted)]

    def write(self, target, text):
        return "" if text == "nothing" else f"{target} {text.upper()}"


@pytest.fixture
def model(tmp_path, monkeypatch):
    """A folder in the place of a model; capitals are its translations."""
    monkeypatch.setattr(translate, "Translator", Capitals)
    (tmp_path / "model").mkdir()
    return tmp_path / "model"


def command(folder, *words, to="out", files="in"):
    files = files if "://" in files else folder / files
    return ["--task", "translate", "--output_dir", str(folder / to), f"files={files}", f"model={folder / 'model'}",
            "target_languages=[de,fr]", "part_records=2", *words]  # fmt: skip


def write(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join(lines).encode("utf-8", "surrogateescape"))


def contents(folder):
    """The files of a folder that readers see."""
    names = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    return {str(path.relative_to(folder)): path.read_bytes() for path in names}


def test_languages_are_added_and_all_else_stays(tmp_path, model, capsys):
    lines = [
        '\n{"image":"a.jpg", "caption": {"en": "a bus", "de": "ein Bus"}, "score": 1.500}\n',
        '{"caption": [{"en": "one"}, {"en": "two", "fr": ""}], "binary": "/9j/AAAA\\/"}\r\n',
        "\n",
        '{"broken\n',
        '{"caption": {"en": " "}}\n',
        '{"caption": {"zh": "\\ud83d"}}\n',
        '{"caption": {"en": "nothing"}, "raw": "\udcff"}',
    ]
    write(tmp_path / "in/a.jsonl", *lines)
    assert run.main(command(tmp_path)) == 0, capsys.readouterr().err
    written = contents(tmp_path / "out/translated")["a.jsonl"].decode("utf-8", "surrogateescape")
    assert written == "".join(lines).replace('"ein Bus"}', '"ein Bus", "fr": "fr A BUS"}').replace(
        '{"en": "one"}', '{"en": "one", "de": "de ONE", "fr": "fr ONE"}'
    ).replace('{"en": "two", "fr": ""}', '{"en": "two", "fr": "fr TWO", "de": "de TWO"}')
    result = json.loads((tmp_path / "out/metrics.json").read_text())
    assert result["records"] == 6 and result["languages"]["de"] == {"added": 2, "kept": 1}
    places = {reason: each["examples"][0].split(":")[1] for reason, each in result["problems"].items()}
    assert places == {"broken JSON": "5", "empty caption": "6", "missing language": "7", "empty translation": "8"}
    assert "1 x broken JSON" in capsys.readouterr().out


def test_captions_that_are_there_are_replaced_only_when_asked(tmp_path, model):
    write(tmp_path / "in/a.jsonl", '{"caption": {"en": "a", "de": "x", "fr": "y"}}\n')
    assert run.main(command(tmp_path, to="kept")) == run.main(command(tmp_path, "overwrite=true", to="new")) == 0
    assert contents(tmp_path / "kept/translated") == contents(tmp_path / "in")
    assert b'{"en": "a", "de": "de A", "fr": "fr A"}' in contents(tmp_path / "new/translated")["a.jsonl"]


def test_folders_keep_their_shape_and_packed_files_stay_packed(tmp_path, model):
    line = '{"caption": {"en": "a"}}\n'
    write(tmp_path / "in/x/a.jsonl", line)
    write(tmp_path / "in/_SUCCESS")
    (tmp_path / "in/b.jsonl.gz").write_bytes(gzip.compress(3 * line.encode()))
    write(tmp_path / "in/empty.jsonl")
    assert run.main(command(tmp_path)) == 0
    found = contents(tmp_path / "out/translated")
    assert list(found) == ["b.jsonl.gz", "empty.jsonl", "x/a.jsonl"] and found["empty.jsonl"] == b""
    assert gzip.decompress(found["b.jsonl.gz"]) == 3 * found["x/a.jsonl"]
    assert len(list_files([str(tmp_path / "out/translated")], Files())) == 3  # a run reads the folder as it is


def test_equal_captions_are_translated_once_in_a_part(tmp_path, model, monkeypatch):
    write(tmp_path / "in/a.jsonl", *['{"caption": {"en": "a"}}\n', '{"caption": {"en": "a", "de": "x"}}\n'])
    seen = []
    monkeypatch.setattr(translate, "Translator", lambda *parts: seen.append(Capitals(*parts)) or seen[-1])
    assert run.main(command(tmp_path)) == 0
    assert seen[0].seen == ["a"]


def test_a_finished_run_translates_nothing_again(tmp_path, model, monkeypatch):
    write_captions(tmp_path / "in/a.jsonl", 5)
    assert run.main(command(tmp_path)) == 0
    first = json.loads((tmp_path / "out/metrics.json").read_text())
    seen = []
    monkeypatch.setattr(translate, "Translator", lambda *parts: seen.append(Capitals(*parts)) or seen[-1])
    assert run.main(command(tmp_path)) == 0
    again = json.loads((tmp_path / "out/metrics.json").read_text())
    assert seen[0].seen == [] and again["languages"] == first["languages"] and again["records_per_second"] == 0


class Killed(BaseException):
    """The process is gone."""


class FailingFiles:
    """A file system that is gone at its n-th change, before it or after it."""

    def __init__(self, inner, fatal, is_late):
        self.inner, self.left, self.is_late = inner, fatal, is_late

    def __getattr__(self, name):
        function = getattr(self.inner, name)
        if name not in ("open", "mv", "rm_file"):
            return function

        def change(*arguments, **keywords):
            self.left -= 1
            if self.left < 0 and not self.is_late:
                raise Killed
            made = function(*arguments, **keywords)
            if self.left < 0:
                raise Killed
            return made

        return change


@pytest.mark.parametrize("is_late", [False, True])
def test_a_kill_at_any_change_of_a_file_leaves_no_trace(tmp_path, model, monkeypatch, is_late):
    for name in ("a", "b"):
        write_captions(tmp_path / f"in/{name}.jsonl", 5)
    assert run.main(command(tmp_path, to="whole")) == 0
    expected = contents(tmp_path / "whole/translated")
    whole = json.loads((tmp_path / "whole/metrics.json").read_text())
    for fatal in range(100):
        with monkeypatch.context() as patched:
            make = Folder.__init__

            def fail(self, address, make=make, fatal=fatal):
                make(self, address)
                if "translated" in address:
                    self.filesystem = FailingFiles(self.filesystem, fatal, is_late)

            patched.setattr(Folder, "__init__", fail)
            try:
                run.main(command(tmp_path, to=f"out{fatal}"))
                break
            except Killed:
                pass
        assert run.main(command(tmp_path, to=f"out{fatal}")) == 0
        assert contents(tmp_path / f"out{fatal}/translated") == expected
        again = json.loads((tmp_path / f"out{fatal}/metrics.json").read_text())
        assert {**again, "seconds": 0, "records_per_second": 0} == {**whole, "seconds": 0, "records_per_second": 0}
        assert not [path for path in (tmp_path / f"out{fatal}/translated").iterdir() if ".part-" in path.name]
    assert fatal > 20


def test_two_killed_processes_and_one_whole_write_the_same(tmp_path):
    """With a real model: kill -9 to two processes amid their work, two again, and one alone elsewhere."""
    write_m2m100(tmp_path / "model")
    for name in ("a", "b"):
        write_captions(tmp_path / f"in/{name}.jsonl", 24)
    settings = ["part_records=1", "num_beams=2", "max_tokens=12"]
    words = [sys.executable, str(ROOT / "run.py"), *command(tmp_path, *settings, to="two"), "--nproc", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    first = subprocess.Popen(words, env=environment, start_new_session=True, stderr=subprocess.DEVNULL)
    folder, deadline = tmp_path / "two/translated", time.monotonic() + 120
    while first.poll() is None and time.monotonic() < deadline and not list(folder.glob(".*.part-*[0-9]")):
        time.sleep(0.01)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    assert not (folder / "b.jsonl").exists(), "ended before it could be killed"
    time.sleep(0.5)  # processes that outlived their launcher end with it
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert run.main(command(tmp_path, *settings, to="one")) == 0
    assert contents(folder) == contents(tmp_path / "one/translated")
    assert b'"de": "' in contents(folder)["a.jsonl"]


@pytest.mark.parametrize("scheme", ["memory", "file"])
def test_both_ends_may_be_remote(tmp_path, model, scheme):
    place = f"memory://{tmp_path.name}" if scheme == "memory" else f"file://{tmp_path}/far"
    filesystem, root = fsspec.url_to_fs(place)
    filesystem.makedirs(f"{root}/in/x", exist_ok=True)
    filesystem.pipe_file(f"{root}/in/x/a.jsonl", b'{"caption": {"en": "a"}}\n')
    assert run.main(command(tmp_path, f"to={place}/out", files=f"{place}/in")) == 0
    expected = b'{"caption": {"en": "a", "de": "de A", "fr": "fr A"}}\n'
    assert filesystem.cat_file(f"{root}/out/x/a.jsonl") == expected
    assert (tmp_path / "out/metrics.json").exists()


def test_an_output_folder_may_be_an_address(tmp_path, model, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where the local folder of the same name goes
    write(tmp_path / "in/a.jsonl", '{"caption": {"en": "a"}}\n')
    words = [f"memory://{tmp_path.name}/more" if word == str(tmp_path / "out") else word for word in command(tmp_path)]
    assert run.main(words) == 0
    filesystem, root = fsspec.url_to_fs(f"memory://{tmp_path.name}/more")
    assert b"de A" in filesystem.cat_file(f"{root}/translated/a.jsonl")
    assert json.loads(filesystem.cat_file(f"{root}/metrics.json"))["records"] == 1


def test_a_model_may_lie_elsewhere(tmp_path, model, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    seen = []
    monkeypatch.setattr(translate, "Translator", lambda config, *rest: seen.append(config.model) or Capitals(0, 0, 0))
    filesystem, root = fsspec.url_to_fs(f"memory://{tmp_path.name}/model")
    filesystem.pipe_file(f"{root}/config.json", b"{}")
    write(tmp_path / "in/a.jsonl", '{"caption": {"en": "a"}}\n')
    assert run.main([*command(tmp_path), f"model=memory://{tmp_path.name}/model"]) == 0
    assert (tmp_path / seen[0] / "config.json").read_bytes() == b"{}"


@pytest.mark.parametrize(
    "words, status, message",
    [
        (["files=[]"], 2, "files is empty"),
        (["model="], 2, "model is empty"),
        (["part_records=0"], 2, "part_records must be at least 1"),
        (["target_languages=[en]"], 2, "holds the source language 'en'"),
        (["num_beam=1"], 2, "unknown key 'num_beam'"),
        (["files=nowhere.jsonl"], 2, "nowhere.jsonl: no such data file"),
        (["files=LIST"], 1, "list.json: is a JSON list"),
        (["files=[IN,IN/a.jsonl]"], 1, "a second file called a.jsonl"),
        (["to=IN"], 1, "would be written over by its translation"),
        (["to=nowhere://x"], 2, "nowhere://x: cannot be reached"),
        (["to=TAKEN"], 1, "is there already, and not from this program"),
    ],
)
def test_wrong_commands_and_files_are_named(tmp_path, model, capsys, words, status, message):
    write_captions(tmp_path / "in/a.jsonl")
    write(tmp_path / "taken/a.jsonl", "{}")
    write(tmp_path / "list.json", "[{}]")
    for mark, path in (("LIST", "list.json"), ("IN", "in"), ("TAKEN", "taken")):
        words = [word.replace(mark, str(tmp_path / path)) for word in words]
    assert run.main([*command(tmp_path), *words]) == status
    assert message in capsys.readouterr().err


def test_work_begun_with_other_settings_is_not_continued(tmp_path, model, capsys):
    write_captions(tmp_path / "in/a.jsonl")
    assert run.main(command(tmp_path)) == 0
    assert run.main(command(tmp_path, "num_beams=1")) == 1
    assert "was begun with other settings: num_beams 5, now 1; give another folder" in capsys.readouterr().err
