import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from utils import run_folder
from utils.config import ConfigError

HOLD = """
import os, sys, time
from pathlib import Path
from utils.run_folder import sole_writer
with sole_writer(Path(sys.argv[1])):
    if os.fork() == 0:  # as a loader's worker, which outlives a killed parent for some seconds
        time.sleep(60)
        os._exit(0)
    print("held", flush=True)
    time.sleep(60)
"""


@dataclass
class Settings:
    task: str = "pretrain"
    seed: int = 42
    model: dict = field(default_factory=lambda: {"width": 8})
    optim: dict = field(default_factory=lambda: {"lr": 1e-3, "frozen": []})
    output_dir: str = "output"


def begin(folder: Path, settings: Settings) -> list[str]:
    return run_folder.begin(folder, settings, ["run.py"], [], folder)


def run_of(folder: Path, settings: Settings) -> Path:
    """A folder in which a run has left a checkpoint."""
    (folder / "checkpoints/10").mkdir(parents=True)
    begin(folder, settings)
    return folder


def test_a_folder_has_one_writer_and_is_free_again_when_that_is_killed(tmp_path: Path) -> None:
    folder = tmp_path / "a/run"
    other = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, start_new_session=True)
    try:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(ConfigError, match="run: another run is writing there"), run_folder.sole_writer(folder):
            pass
        os.kill(other.pid, signal.SIGKILL)
        other.wait()
        with run_folder.sole_writer(folder), run_folder.sole_writer(tmp_path / "another"):
            assert list(folder.iterdir()) == []  # the lock is no file
    finally:
        os.killpg(other.pid, signal.SIGKILL)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="file/run cannot be made: Not a directory"):
        with run_folder.sole_writer(tmp_path / "file/run"):
            pass


@pytest.mark.parametrize(
    "settings, told",
    [
        (Settings(seed=7), "seed 42 -> 7"),
        (Settings(task="clip"), "task pretrain -> clip"),
        (Settings(model={"width": 16}), "model.width 8 -> 16"),
    ],
)
def test_a_run_of_another_model_is_refused_before_anything_is_written(
    tmp_path: Path, settings: Settings, told: str
) -> None:
    run_of(tmp_path, Settings())
    before = (tmp_path / "config.yaml").read_bytes()
    with pytest.raises(ConfigError, match=f"holds a run with other settings: {told}; name another --output_dir"):
        begin(tmp_path, settings)
    assert (tmp_path / "config.yaml").read_bytes() == before


def test_other_new_settings_are_taken_and_told(tmp_path: Path) -> None:
    run_of(tmp_path, Settings())
    [note] = begin(tmp_path, Settings(optim={"lr": 1e-5, "frozen": ["a"]}, output_dir="elsewhere"))
    assert note.endswith("the new ones are taken: optim.lr 0.001 -> 1e-05, optim.frozen")
    assert begin(tmp_path, Settings(optim={"lr": 1e-5, "frozen": ["a"]})) == []


def test_after_clearing_any_run_may_begin(tmp_path: Path) -> None:
    run_of(tmp_path, Settings())
    run_folder.clear(tmp_path)
    assert begin(tmp_path, Settings(seed=7)) == []
