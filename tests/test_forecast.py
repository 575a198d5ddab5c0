"""A forecast counts what a step computes, scales it to the whole run, and leaves nothing behind."""

import re

import pytest
import torch

import run
from configs.schema import Config
from forecast import StepCost, duration, forecast, number
from tests.tasks.test_large_batch import settings, write_sets
from utils.config import build, dump_yaml

CPU = torch.device("cpu")
LINES = ["processes", "parameters", "FLOPs", "memory", "step", "epoch", "run"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets")
    write_sets(folder, {"one": 40, "two": 16})
    return folder


def of(data, **train):
    tree = settings(data, log_every_steps=1, **train)
    tree["objectives"] = {"nce": {}}
    return forecast(build(Config, tree), CPU)


def test_the_first_pass_of_decoupled_accumulation_is_executed_and_not_useful(data):
    plain = of(data, accumulate_decoupled=False, accumulate=2).step
    decoupled = of(data, accumulate_decoupled=True, accumulate=2).step
    assert plain.useful == plain.executed
    assert decoupled.useful == pytest.approx(plain.executed, rel=0.05)  # texts and loss differ from batch to batch
    assert decoupled.executed > 1.25 * decoupled.useful  # a third of forward and backward is forward


def test_a_step_of_many_batches_is_scaled_from_two(data):
    few, many = of(data, accumulate=2), of(data, accumulate=4)
    assert (few.measured_batches, many.measured_batches, many.accumulate) == (2, 2, 4)
    assert many.step.executed == pytest.approx(2 * few.step.executed, rel=0.05)
    assert "scaled from 2 of 4 batches" in str(many) and "scaled" not in str(few)


def test_costs_grow_by_what_one_batch_more_adds():
    extended = StepCost(1.0, 0.0, 10.0, 8.0).extended(StepCost(1.5, 0.1, 14.0, 11.0), 3)
    assert extended.values() == pytest.approx((2.5, 0.3, 22.0, 17.0))


def test_parts_steps_and_memory_are_those_of_the_run(data):
    found = of(data, epochs=3)
    assert sum(found.num_parameters.values()) == found.num_trained and "text_encoder" in found.num_parameters
    assert found.total_steps == int(3 * found.steps_per_epoch)
    assert found.memory.gradients == 4 * found.num_trained and found.memory.optimizer >= 8 * found.num_trained
    assert found.seconds == pytest.approx(found.total_steps * found.step.seconds)
    assert 0 < found.padding_share < 1


def test_the_command_prints_it_and_writes_nothing(data, tmp_path, capsys):
    dump_yaml(settings(data), tmp_path / "config.yaml")
    words = ["--task", "clip", "--config", str(tmp_path / "config.yaml"), "--output_dir", str(tmp_path / "out")]
    assert run.main([*words, "--forecast"]) == 0
    told = capsys.readouterr().out
    assert re.findall(r"^(\w+) ", told, flags=re.MULTILINE) == LINES
    assert not (tmp_path / "out").exists()
    assert run.main([*words, "--dry_run", "--forecast"]) == 0  # a configuration with the forecast in its comments
    told = capsys.readouterr().out
    assert re.findall(r"^# (\w+) ", told, flags=re.MULTILINE) == LINES and told.startswith("task: clip")


def test_numbers_are_readable():
    assert [number(x) for x in (86.4e6, 1.23456e12, 7)] == ["86.4 M", "1.23 T", "7"]
    assert [duration(x) for x in (30, 600, 9000, 5 * 86400)] == ["30.0 s", "10.0 min", "2.5 h", "5.0 days"]
