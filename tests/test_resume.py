"""A run that is killed at random instants ends as the uninterrupted one: weights, optimizer and log, bit for bit."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.toy_ccrk import ROOT, toy_settings, write_toy_data
from utils.config import dump_yaml

# Wall-clock figures; everything else in a log line must be equal.
TIMING = {"samples_per_second", "data_wait_share"}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    write_toy_data(folder)
    return folder


def start(config: Path, output: Path, num_processes: int, *settings: str) -> subprocess.Popen:
    command = [sys.executable, str(ROOT / "run.py"), "--task", "pretrain", "--config", str(config)]
    command += ["--output_dir", str(output), *settings]
    if num_processes > 1:
        command += ["--nproc", str(num_processes)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )


def finish(process: subprocess.Popen) -> str:
    told, _ = process.communicate(timeout=300)
    assert process.returncode == 0, told.decode()[-3000:]
    return told.decode()


def steps_logged(output: Path) -> int:
    path = output / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


def kill_after_progress(process: subprocess.Popen, output: Path, chance: random.Random) -> None:
    """SIGKILL to the whole group a random moment after the run has moved on."""
    before = steps_logged(output)
    limit = time.monotonic() + 120
    while steps_logged(output) <= before and process.poll() is None and time.monotonic() < limit:
        time.sleep(0.02)
    time.sleep(chance.uniform(0, 0.4))
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def log_of(output: Path) -> list[dict]:
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMING} for line in lines]


def assert_equal_runs(found: Path, expected: Path) -> None:
    weights, wanted = (load_file(folder / "checkpoints/last/model.safetensors") for folder in (found, expected))
    assert weights.keys() == wanted.keys()
    assert all(torch.equal(weights[name], value) for name, value in wanted.items())
    states = [next((f / "checkpoints/last").resolve().glob("training*")) for f in (found, expected)]
    moments = [torch.load(path, weights_only=True)["optimizer"]["state"] for path in states]
    for name, state in moments[1].items():
        for key, value in state.items():
            assert torch.equal(moments[0][name][key], value), (name, key)
    assert log_of(found) == log_of(expected)


@pytest.mark.parametrize(("num_processes", "workers", "kills"), [(1, 0, 3), (1, 2, 2), (2, 0, 2)])
def test_killed_run_ends_bit_equal(data, tmp_path, num_processes, workers, kills):
    kills = int(os.environ.get("ROSETTA_KILLS", kills))
    config = tmp_path / "toy.yaml"
    dump_yaml(toy_settings(data), config)
    setting = f"data.num_workers={workers}"
    finish(start(config, tmp_path / "whole", num_processes, setting))
    chance = random.Random(num_processes * 10 + workers)
    for _ in range(kills):
        process = start(config, tmp_path / "killed", num_processes, setting)
        kill_after_progress(process, tmp_path / "killed", chance)
    finish(start(config, tmp_path / "killed", num_processes, setting))
    assert_equal_runs(tmp_path / "killed", tmp_path / "whole")


def test_stopped_run_says_so_and_the_same_command_continues(data, tmp_path):
    config, output = tmp_path / "toy.yaml", tmp_path / "out"
    dump_yaml(toy_settings(data, epochs=40), config)
    process = start(config, output, 1)
    while steps_logged(output) < 2 and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    told, _ = process.communicate(timeout=120)
    assert process.returncode == 75 and b"the same command continues" in told
    assert "continuing from" in finish(start(config, output, 1, "train.epochs=40", "train.max_steps=30"))


def test_other_number_of_processes_loses_and_repeats_no_sample(data, tmp_path):
    """One process for half an epoch, then two: the order and the position are those of one epoch."""
    config, output = tmp_path / "toy.yaml", tmp_path / "out"
    dump_yaml(toy_settings(data), config)
    finish(start(config, output, 1, "train.max_steps=3", "train.save_every_steps=1", "train.eval_every_epochs=0"))
    state = torch.load(output / "checkpoints/last/training.pt", weights_only=True)
    assert state["loader"] == {"seed": 7, "epoch": 0, "consumed": 12}
    finish(start(config, output, 2, "train.max_steps=6", "train.save_every_steps=1", "train.eval_every_epochs=0"))
    state = torch.load(output / "checkpoints/last/training.pt", weights_only=True)
    assert state["loader"] == {"seed": 7, "epoch": 1, "consumed": 0}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="workers follow their launcher on Linux only")
def test_workers_do_not_outlive_a_killed_launcher(data, tmp_path):
    config, output = tmp_path / "toy.yaml", tmp_path / "out"
    dump_yaml(toy_settings(data, epochs=4000), config)
    process = start(config, output, 2)
    while steps_logged(output) < 2 and process.poll() is None:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)  # the workers hold the same pipe: it closes when the last of them has ended
    logged = steps_logged(output)
    time.sleep(0.5)
    assert steps_logged(output) == logged
