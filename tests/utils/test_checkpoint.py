"""Checkpoints are whole or not there; weight files are read without running anything in them."""

import errno
import os
import pickle
import random
from pathlib import Path

import numpy
import pytest
import torch

from tests import toy_run
from utils import run_state
from utils.checkpoint import CheckpointError, CheckpointFolder, find_fault, read_weights, write_weights


def save(folder: CheckpointFolder, step: int) -> Path:
    path = folder.begin(step)
    write_weights({"w": torch.full((3,), float(step))}, path / "model.safetensors")
    return folder.commit(path, step)


def test_last_is_a_readable_path_to_the_newest_weights(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    save(folder, 1), save(folder, 2)
    assert read_weights(tmp_path / "last/model.safetensors")["w"].tolist() == [2, 2, 2]
    assert read_weights(tmp_path / "last")["w"].tolist() == [2, 2, 2]


@pytest.mark.parametrize("damage", ["flip", "cut", "delete", "no manifest"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(tmp_path: Path, damage: str, caplog) -> None:
    folder = CheckpointFolder(tmp_path)
    good, bad = save(folder, 1), save(folder, 2) / "model.safetensors"
    content = bad.read_bytes()
    if damage == "flip":
        bad.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "cut":
        bad.write_bytes(content[:-1])
    else:
        (bad if damage == "delete" else bad.with_name("manifest.json")).unlink()
    assert folder.newest_whole() == good
    assert f"{tmp_path / '2'} is damaged" in caplog.text


def test_only_damaged_checkpoints_are_an_error_not_a_new_start(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    (save(folder, 1) / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match="every checkpoint .* is damaged; use --restart"):
        folder.newest_whole()


def test_an_interrupted_write_is_no_checkpoint_and_is_cleaned(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    good = save(folder, 1)
    (folder.begin(2) / "model.safetensors").write_bytes(b"half")
    assert folder.steps() == [1] and folder.newest_whole() == good
    save(folder, 3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "3", "last"]


def test_pruning_keeps_the_newest_and_the_best(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    for step in range(1, 6):
        save(folder, step)
    folder.point("best", 2)
    folder.prune(keep=2)
    assert folder.steps() == [2, 4, 5]


def test_a_full_disk_leaves_the_old_checkpoint_whole(tmp_path: Path, monkeypatch) -> None:
    trainer = toy_run.make_trainer({"output_dir": str(tmp_path)})
    trainer.open_logs(0)
    trainer.state.save()

    def fail(state, path: Path) -> None:
        path.write_bytes(b"part")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(run_state, "write_weights", fail)
    trainer.state.step = 1
    with pytest.raises(CheckpointError, match="step 1 could not be written .*No space left"):
        trainer.state.save()
    assert find_fault(tmp_path / "checkpoints/0") is None
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["0", "last"]


def test_tied_weights_keep_both_names(tmp_path: Path) -> None:
    weight = torch.randn(4, 2)
    write_weights({"a": weight, "b": weight, "c": weight[:2]}, tmp_path / "w.safetensors")
    found = read_weights(tmp_path / "w.safetensors")
    assert torch.equal(found["a"], weight) and torch.equal(found["b"], weight) and torch.equal(found["c"], weight[:2])


def test_files_with_numpy_and_python_random_states_are_read(tmp_path: Path) -> None:
    content = {
        "model": {"w": torch.ones(2)},
        "np_random_state": numpy.random.get_state(),
        "random_state": random.getstate(),
        "optimizer": {"param_groups": [{"lr": numpy.float64(0.5)}]},
        "meta": {"torch_version": torch.torch_version.TorchVersion("1.10.0")},
    }
    for is_zip in (True, False):
        torch.save(content, tmp_path / "released.th", _use_new_zipfile_serialization=is_zip)
        found = read_weights(tmp_path / "released.th")
        assert found["model"]["w"].tolist() == [1, 1]
        assert numpy.array_equal(found["np_random_state"][1], content["np_random_state"][1])
        assert found["optimizer"]["param_groups"][0]["lr"] == 0.5


def test_files_written_with_numpy_1_are_read(tmp_path: Path) -> None:
    torch.save({"np_random_state": numpy.random.get_state()}, tmp_path / "new.th", _use_new_zipfile_serialization=False)
    content = (tmp_path / "new.th").read_bytes()
    assert b"core.multiarray" in content  # numpy 1 itself writes the old name
    (tmp_path / "old.th").write_bytes(content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert len(read_weights(tmp_path / "old.th")["np_random_state"][1]) == 624


class Hostile:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("writer", ["torch", "legacy", "pickle"])
def test_a_file_that_would_run_code_is_refused(tmp_path: Path, writer: str) -> None:
    path, trap = tmp_path / "hostile.pth", tmp_path / "owned"
    content = {"model": {"w": torch.ones(1)}, "extra": Hostile(trap)}
    if writer == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=writer == "torch")
    with pytest.raises(CheckpointError, match="hostile.pth: "):
        read_weights(path)
    assert not trap.exists()


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth", "zip.pth", "empty.pth"])
def test_garbage_is_refused_with_its_path(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes({"zip.pth": b"PK\x03\x04garbage", "empty.pth": b""}.get(name, b"garbage" * 10))
    with pytest.raises(CheckpointError, match=name):
        read_weights(tmp_path / name)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="absent.pth does not exist"):
        read_weights(tmp_path / "absent.pth")
