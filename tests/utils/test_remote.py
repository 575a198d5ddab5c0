import time

import fsspec
import pytest

from utils.config import ConfigError
from utils.remote import RemoteOutput, is_remote, local_copy, sent_when_left


@pytest.fixture
def memory():
    system = fsspec.filesystem("memory")
    yield system
    system.rm("/", recursive=True)


def test_a_remote_file_is_copied_once_until_it_changes(memory, tmp_path, monkeypatch):
    memory.pipe_file("/models/a.th", b"one")
    copied = []
    original = memory.get_file
    monkeypatch.setattr(type(memory), "get_file", lambda self, *x, **k: copied.append(x) or original(*x, **k))
    first = local_copy("memory://models/a.th", tmp_path)
    assert (first.read_bytes(), first.name) == (b"one", "a.th")
    assert local_copy("memory://models/a.th", tmp_path) == first and len(copied) == 1
    memory.pipe_file("/models/a.th", b"other")
    assert local_copy("memory://models/a.th", tmp_path).read_bytes() == b"other"
    assert local_copy("plain.th").name == "plain.th"


def test_an_originals_name_brings_the_folder_beside_it(memory, tmp_path):
    memory.pipe_file("/run/checkpoints/best/model.safetensors", b"weights")
    memory.pipe_file("/run/checkpoints/7/training.pt", b"gigabytes")
    copy = local_copy("memory://run/checkpoint_best.pth", tmp_path)
    assert (copy.parent / "checkpoints/best/model.safetensors").read_bytes() == b"weights"
    assert copy.name == "checkpoint_best.pth" and not (copy.parent / "checkpoints/7").exists()


def test_links_to_checkpoints_on_a_disk_are_followed(tmp_path):
    (tmp_path / "run/checkpoints/7").mkdir(parents=True)
    (tmp_path / "run/checkpoints/7/model.safetensors").write_text("weights")
    (tmp_path / "run/checkpoints/best").symlink_to("7")
    copy = local_copy(f"file://{tmp_path}/run", tmp_path / "cache")
    assert (copy / "checkpoints/best/model.safetensors").read_text() == "weights"


def test_what_cannot_be_reached_is_told(memory, tmp_path):
    with pytest.raises(FileNotFoundError, match="memory://absent.th: no such file or folder"):
        local_copy("memory://absent.th", tmp_path)
    with pytest.raises(ConfigError, match="nosuch://x: cannot be reached"):
        local_copy("nosuch://x", tmp_path)
    assert is_remote("hdfs://a/b.zip::c") and not is_remote("a.zip::x://y")


def test_an_output_folder_comes_back_on_another_machine(memory, tmp_path):
    here = tmp_path / "here"
    for step in ("2", "4"):
        (here / "checkpoints" / step).mkdir(parents=True)
        (here / "checkpoints" / step / "model.safetensors").write_text(f"step {step}")
    (here / "checkpoints/4/training.pt").write_text("state")
    (here / "checkpoints/best").symlink_to("2")
    (here / "checkpoints/last").symlink_to("4")
    (here / "metrics.jsonl").write_text("{}\n")
    RemoteOutput("memory://out", here).send()
    assert memory.cat_file("/out/checkpoints/best/model.safetensors") == b"step 2"
    there = tmp_path / "there"
    RemoteOutput("memory://out", there).fetch()
    assert (there / "checkpoints/last").resolve().name == "4"
    assert sorted(p.name for p in (there / "checkpoints/4").iterdir()) == ["model.safetensors", "training.pt"]
    assert (there / "metrics.jsonl").read_text() == "{}\n"


def test_a_checkpoint_is_sent_while_the_run_goes_on_and_the_rest_when_it_fails(memory, tmp_path):
    with pytest.raises(KeyboardInterrupt), sent_when_left("memory://out", tmp_path, is_main=True, seconds=0.01):
        (tmp_path / "checkpoints/2").mkdir(parents=True)
        (tmp_path / "checkpoints/2/model.safetensors").write_text("weights")
        (tmp_path / "checkpoints/last").symlink_to("2")
        deadline = time.monotonic() + 10
        while not memory.exists("/out/checkpoints/LAST") and time.monotonic() < deadline:
            time.sleep(0.01)
        assert memory.cat_file("/out/checkpoints/2/model.safetensors") == b"weights"
        (tmp_path / "metrics.jsonl").write_text("late")
        raise KeyboardInterrupt
    assert memory.cat_file("/out/metrics.jsonl") == b"late"
