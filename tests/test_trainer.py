"""The loop: exact resume after kills and signals, skipped steps, accumulation, schedules of evaluation and saving."""

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

from tests import toy_run
from trainer import TrainConfig
from utils.logger import TIMING_FIELDS

ROOT = Path(__file__).resolve().parent.parent


def start(settings: dict) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "tests" / "toy_run.py"), json.dumps(settings)]
    return subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True, stderr=subprocess.DEVNULL)


def run(settings: dict) -> int:
    return start(settings).wait(timeout=120)


def untimed_log(output_dir: Path) -> list[dict]:
    lines = (output_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in TIMING_FIELDS} for line in lines]


def assert_same_run(found: Path, expected: Path) -> None:
    """Weights, optimizer and log bit-equal."""
    ours, theirs = (load_file(path / "checkpoints/last/model.safetensors") for path in (found, expected))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    ours, theirs = (torch.load(path / "checkpoints/last/training.pt", weights_only=True) for path in (found, expected))
    assert ours["step"] == theirs["step"] and ours["best"] == theirs["best"]
    for key, state in theirs["optimizer"]["state"].items():
        assert all(torch.equal(ours["optimizer"]["state"][key][name], value) for name, value in state.items())
    ours, theirs = (json.loads((path / "checkpoints/evaluation.json").read_text()) for path in (found, expected))
    assert (ours["step"], ours["best"]) == (theirs["step"], theirs["best"])
    assert (found / "checkpoints/best").resolve().name == (expected / "checkpoints/best").resolve().name
    assert untimed_log(found) == untimed_log(expected)


def written(folder: Path) -> set[tuple[str, int]]:
    """What lies in the checkpoint folder, down to the bytes: changes while a checkpoint is being written."""
    found = set()
    for path in folder.rglob("*"):
        try:
            found.add((str(path), path.stat().st_size))
        except FileNotFoundError:  # renamed or pruned this moment
            continue
    return found


def kill_a_moment_after_progress(settings: dict, delay: float, folder: Path) -> bool:
    """Start, wait until the run writes of a checkpoint, kill its group `delay` later; whether it was alive."""
    before = written(folder)
    process = start(settings)
    deadline = time.monotonic() + 60
    while written(folder) <= before and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(delay)
    was_alive = process.poll() is None
    if was_alive:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return was_alive


@pytest.mark.parametrize("nproc", [1, 2])
def test_a_run_killed_at_random_instants_ends_like_one_that_was_not(tmp_path: Path, nproc: int) -> None:
    settings = {"nproc": nproc, "train": {"epochs": 3, "accumulate": 1, "keep_checkpoints": 2}}
    assert run(settings | {"output_dir": str(tmp_path / "whole")}) == 0
    draw = random.Random(5)
    killed = settings | {"output_dir": str(tmp_path / "killed"), "slow_writes": 0.03, "seconds_per_step": 0.02}
    delays = [draw.uniform(0, 0.4) for _ in range(4)]
    kills = [kill_a_moment_after_progress(killed, delay, tmp_path / "killed/checkpoints") for delay in delays]
    assert sum(kills) >= 2
    assert run(killed) == 0
    assert_same_run(tmp_path / "killed", tmp_path / "whole")


def test_a_stop_signal_saves_and_leaves_with_status_75(tmp_path: Path) -> None:
    settings = {"train": {"epochs": 3, "save_every_steps": 0}}
    assert run(settings | {"output_dir": str(tmp_path / "whole")}) == 0
    stopped = settings | {"output_dir": str(tmp_path / "stopped"), "seconds_per_step": 0.1}
    process = start(stopped)
    while not (tmp_path / "stopped/metrics.jsonl").exists():
        time.sleep(0.02)
    time.sleep(0.35)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 75
    assert 0 < torch.load(tmp_path / "stopped/checkpoints/last/training.pt", weights_only=True)["step"] < 24
    assert run(stopped | {"seconds_per_step": 0}) == 0
    assert_same_run(tmp_path / "stopped", tmp_path / "whole")


def test_nothing_is_lost_when_an_evaluation_is_cut_short(tmp_path: Path) -> None:
    settings = {"train": {"epochs": 2, "save_every_steps": 0}}
    assert run(settings | {"output_dir": str(tmp_path / "whole")}) == 0
    killed = settings | {"output_dir": str(tmp_path / "killed"), "seconds_per_evaluation": 60}
    process, saved = start(killed), tmp_path / "killed/checkpoints/last"
    while not saved.exists():  # written before the evaluation begins
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert saved.resolve().name == "8" and not (saved.parent / "evaluation.json").exists()
    assert run(killed | {"seconds_per_evaluation": 0}) == 0
    assert_same_run(tmp_path / "killed", tmp_path / "whole")


def test_another_number_of_processes_continues_without_losing_or_repeating_a_record(tmp_path: Path) -> None:
    settings = {"output_dir": str(tmp_path), "train": {"epochs": 1, "save_every_steps": 0}, "seconds_per_step": 0.1}
    process = start(settings | {"seen": str(tmp_path / "first")})
    while not (tmp_path / "metrics.jsonl").exists():
        time.sleep(0.02)
    time.sleep(0.25)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 75
    assert run(settings | {"seen": str(tmp_path / "second"), "nproc": 2}) == 0
    seen = [int(line) for path in tmp_path.glob("*.[01]") for line in path.read_text().split()]
    assert sorted(seen) == list(range(32))


def make(tmp_path: Path, **settings):
    return toy_run.make_trainer({"output_dir": str(tmp_path), **settings})


def test_a_step_without_finite_gradient_changes_no_weight(tmp_path: Path) -> None:
    trainer = make(tmp_path, bad_steps=[0], schedule={"warmup": 0, "name": "constant"})
    before = [parameter.clone() for parameter in trainer.parameters]
    batches = trainer.stream()
    trainer.train_step(0, batches)
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.parameters, strict=True))
    trainer.train_step(1, batches)
    assert not any(torch.equal(a, b) for a, b in zip(before, trainer.parameters, strict=True))
    assert (trainer.num_skipped.item(), trainer.num_skipped_in_all.item()) == (0, 1)


def test_many_steps_without_finite_gradient_in_a_row_end_the_run(tmp_path: Path) -> None:
    trainer = make(tmp_path, bad_steps=list(range(2, 9)), train={"max_skipped_steps": 4})
    with pytest.raises(ValueError, match="step 6: the last 4 steps had gradients that are not finite"):
        trainer.fit()


def test_accumulated_batches_give_the_gradient_of_their_mean(tmp_path: Path) -> None:
    trainer = make(tmp_path, train={"accumulate": 2})
    trainer.task.eval()
    batches = [batch for _, batch in zip(range(2), trainer.stream(), strict=False)]
    sum(0.5 * sum(trainer.task(batch).values()) for batch in batches).backward()
    expected = torch.nn.utils.get_total_norm([parameter.grad for parameter in trainer.parameters])
    trainer.optimizer.zero_grad()
    assert trainer.train_step(0, iter(batches)).item() == pytest.approx(expected.item(), rel=1e-6)


def test_precision_fp16_trains_and_shrinks_its_scale_after_an_overflow(tmp_path: Path) -> None:
    trainer = make(tmp_path, bad_steps=[0], train={"precision": "fp16"}, schedule={"warmup": 0})
    batches = trainer.stream()
    trainer.train_step(0, batches)
    assert trainer.loss_scale.scale.item() == 32768
    assert trainer.train_step(1, batches).isfinite()
    assert trainer.loss_scale.scale.item() == 32768


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_lower_precision_stays_near_fp32(tmp_path: Path, precision: str) -> None:
    norms = []
    for name in ("fp32", precision):
        trainer = make(tmp_path, train={"precision": name})
        trainer.task.eval()
        trainer.loss_scale.scale *= 1 / 64  # fp16 begins with a scale at which this task overflows
        if name != "fp16":
            trainer.loss_scale.scale.fill_(1)
        norms.append(trainer.train_step(0, trainer.stream()).item())
    assert norms[1] == pytest.approx(norms[0], rel=0.03)


def test_evaluation_and_saving_are_due_when_the_schedule_says(tmp_path: Path) -> None:
    trainer = make(tmp_path, train={"epochs": 4, "first_evaluation_epoch": 2, "save_every_steps": 5})
    due = {"eval": [], "save": []}
    for step in range(1, trainer.total_steps + 1):
        trainer.state.step = step
        for what, steps in due.items():
            if trainer.is_due(what):
                steps.append(step)
    assert due == {"eval": [24, 32], "save": [5, 8, 10, 15, 16, 20, 24, 25, 30, 32]}


def test_evaluation_by_steps_begins_in_the_first_epoch(tmp_path: Path) -> None:
    trainer = make(tmp_path, train={"epochs": 1, "eval_every_steps": 3, "eval_every_epochs": 0})
    due = []
    for step in range(1, trainer.total_steps + 1):
        trainer.state.step = step
        due += [step] if trainer.is_due("eval") else []
    assert due == [3, 6]


def test_the_best_checkpoint_is_kept_and_tested(tmp_path: Path) -> None:
    trainer = make(tmp_path, train={"epochs": 4}, optim={"lr": 0.3}, schedule={"warmup": 0, "name": "constant"})
    trainer.fit()
    values = {line["step"]: line["metrics"]["mean"]["fit"] for line in untimed_log(tmp_path) if line["kind"] == "eval"
              and line["split"] == "val"}  # fmt: skip
    best = max(values, key=values.get)
    assert os.readlink(tmp_path / "checkpoints/best") == str(best)
    test_line = untimed_log(tmp_path)[-1]
    assert test_line["split"] == "test" and test_line["metrics"]["mean"]["fit"] == pytest.approx(values[best])


def test_wrong_settings_name_the_field() -> None:
    with pytest.raises(ValueError, match="accumulate must be at least 1, found 0"):
        TrainConfig(accumulate=0)
    with pytest.raises(ValueError, match="clip_norm must not be negative"):
        TrainConfig(clip_norm=-1)
