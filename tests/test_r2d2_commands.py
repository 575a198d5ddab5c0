"""R2D2's fine-tuning commands end to end on its data in the documented layout: 1 and 2 processes, resume, bad input."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import run
from tests import toy_r2d2
from tests.toy_r2d2 import ROOT, SIZES, STACKS
from utils.checkpoint import read_weights

COMMON = [*SIZES, *STACKS, "data.batch_size=6", "train.save_every_steps=2"]
RETRIEVAL = ["--task", "r2d2_retrieval", "--checkpoint", "r2d2.pth", *COMMON, "evaluation.report_queries=1"]
MATCHING = ["--task", "r2d2_matching", "--checkpoint", "r2d2.pth", *COMMON, "train.precision=fp32"]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("r2d2")
    toy_r2d2.write_world(folder)
    toy_r2d2.write_checkpoint(folder / "r2d2.pth")
    for name in ("run.py", "train_r2d2_retrieval.sh", "train_r2d2_matching.sh"):
        (folder / name).symlink_to(ROOT / name)
    return folder


def config_of(name):
    return ["--config", str(ROOT / "configs" / "r2d2" / f"{name}.yaml")]


def metrics_of(folder):
    return json.loads((Path(folder) / "metrics.json").read_text(encoding="utf-8"))


def weights_of(folder):
    return load_file(Path(folder) / "checkpoints" / "last" / "model.safetensors")


@pytest.mark.parametrize("name", ["flickr_cna_base", "iqr_base", "icr_base"])
def test_retrieval_is_fine_tuned_and_tested(world, monkeypatch, tmp_path, name):
    monkeypatch.chdir(world)
    words = [*RETRIEVAL, *config_of(name), "--epoch", "1", "--output_dir", str(tmp_path)]
    assert run.main(words) == 0
    found = metrics_of(tmp_path)
    assert set(found["test"]["zh"]) == set(found["test"]["mean"]) and "r_mean" in found["test"]["mean"]
    losses = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert any("itc" in str(record) and "itm" in str(record) for record in losses)


@pytest.mark.parametrize("name", ["iqm_base", "icm_base"])
def test_matching_is_fine_tuned_and_tested_by_auc(world, monkeypatch, tmp_path, name):
    monkeypatch.chdir(world)
    assert run.main([*MATCHING, *config_of(name), "--epoch", "1", "--output_dir", str(tmp_path)]) == 0
    assert 0 <= metrics_of(tmp_path)["test"]["zh"]["auc"] <= 100
    start_weights, end = read_weights(world / "r2d2.pth")["model"], weights_of(tmp_path)
    assert torch.equal(end["model.image_projection.weight"], start_weights["vision_proj.weight"])
    assert not torch.equal(end["model.image_match_head.weight"], start_weights["itm_head_i.weight"])


def start_script(world, name, output, *words):
    """A script as a user starts it, on its own configuration."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHON": sys.executable}
    environment |= {"CHECKPOINT": "r2d2.pth", "OUTPUT": str(output)}
    command = ["sh", f"train_r2d2_{name}.sh", *words]
    return subprocess.run(command, cwd=world, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(("words", "name"), [(RETRIEVAL, "retrieval"), (MATCHING, "matching")])
def test_a_script_on_two_processes_that_was_stopped_ends_as_the_uninterrupted_one(world, tmp_path, words, name):
    more = ["--epoch", "2", "train.eval_every_epochs=0", "train.keep_checkpoints=9", "--nproc", "2"]
    for is_again in (False, True):
        done = start_script(world, name, tmp_path, *words[4:], *more)
        assert done.returncode == 0, done.stderr[-3000:]
        if not is_again:
            expected = weights_of(tmp_path)
            back_to(tmp_path, 2)
    found = weights_of(tmp_path)
    assert all(torch.equal(found[key], value) for key, value in expected.items())


def back_to(output, step):
    """The output folder as it was after a step: later checkpoints and the final numbers are gone."""
    for path in (output / "checkpoints").iterdir():
        if path.name.isdigit() and int(path.name) > step:
            shutil.rmtree(path)
    last = output / "checkpoints" / "last"
    last.unlink()
    last.symlink_to(str(step))
    (output / "metrics.json").unlink()


def test_a_script_trains_and_tests_on_one_process(world, tmp_path):
    done = start_script(world, "matching", tmp_path, *MATCHING[4:], "--epoch", "1", "--nproc", "1")
    assert done.returncode == 0, done.stderr[-3000:]
    assert 0 <= metrics_of(tmp_path)["test"]["zh"]["auc"] <= 100


def test_a_script_tells_the_truth_about_a_wrong_setting(world, tmp_path):
    done = start_script(world, "matching", tmp_path, "data.batch_size=none")
    assert done.returncode == 2 and "data.batch_size" in done.stderr


def test_pictures_that_are_not_there_end_the_run_with_their_lines(world, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(world)
    broken = tmp_path / "train.json"
    lines = [json.dumps({"text": "t", "image_path": f"absent{k}.jpg"}) for k in range(12)]
    broken.write_text("\n".join(lines), encoding="utf-8")
    words = [
        *RETRIEVAL,
        *config_of("iqr_base"),
        "--output_dir",
        str(tmp_path / "out"),
        f"data.train.files={{zh: {broken}}}",
    ]
    assert run.main(words) == 1
    assert "image file not found" in capsys.readouterr().err


def test_a_checkpoint_of_another_picture_size_is_interpolated(world, monkeypatch, tmp_path):
    monkeypatch.chdir(world)
    words = [*RETRIEVAL, *config_of("iqr_base"), "model.image_encoder.image_size=64", "--evaluate"]
    assert run.main([*words, "--output_dir", str(tmp_path)]) == 0


def test_a_checkpoint_is_written_back_in_the_original_s_layout(world, monkeypatch, tmp_path):
    monkeypatch.chdir(world)
    toy_r2d2.write_config(world / "model.yaml", "flickr_cna_base")
    words = ["--task", "export", "--checkpoint", "r2d2.pth", "--config", "model.yaml", "--output_dir", str(tmp_path)]
    assert run.main([*words, "--to", "r2d2"]) == 0
    found, expected = (read_weights(path)["model"] for path in (tmp_path / "r2d2.th", world / "r2d2.pth"))
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)
