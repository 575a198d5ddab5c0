"""R2D2's and PRD2's pre-training through run.py: towers, losses, exact resume, processes, what fine-tuning reads."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import run
from compat.weights import translate
from tests import toy_r2d2
from tests.test_r2d2_commands import back_to
from tests.toy_pretraining import words_of, write_pretraining
from tests.toy_r2d2 import ROOT, SIZES, STACKS
from utils.checkpoint import read_weights

PICTURES = "data.val.image_root=data/zero/IQR_IQM_ICR_ICM_images"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretraining")
    write_pretraining(folder)
    return folder


def start(world, words):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "run.py"), *words]
    return subprocess.Popen(
        command, cwd=world, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )


def finish(process):
    told, _ = process.communicate(timeout=300)
    assert process.returncode == 0, told.decode()[-3000:]


def weights_of(folder):
    return load_file(Path(folder) / "checkpoints" / "last" / "model.safetensors")


def losses_of(folder):
    lines = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    return [
        {name.removeprefix("train/"): value for name, value in line.items() if name.startswith("train/")}
        for line in lines
        if line["kind"] == "train"
    ]


@pytest.mark.parametrize(
    ("task", "expected"), [("pretrain_r2d2", {"tgd", "fgd", "itm", "mlm"}), ("pretrain_prd2", {"tgd", "fgd"})]
)
def test_pre_training_has_its_losses_and_keeps_the_image_tower(world, monkeypatch, tmp_path, task, expected):
    monkeypatch.chdir(world)
    assert run.main([*words_of(task), "--output_dir", str(tmp_path)]) == 0
    assert expected <= set(losses_of(tmp_path)[0])
    state, clip = weights_of(tmp_path), torch.load("clip.pt", weights_only=True)
    found = state["model.image_encoder.backbone.patch_embed.proj.weight"]
    assert torch.equal(found, clip["vision_model.embeddings.patch_embedding.weight"])
    assert any(name.startswith("teacher.") for name in state)


@pytest.mark.parametrize(
    "settings",
    [
        ["student_text=complete"],
        ["model.image_encoder.is_frozen=false", "train.accumulate=2", "train.epochs=4"],
        ["objectives.tgd.queue_size=0", "objectives.fgd.compares=embed", "teacher.has_dropout=true"],
        ["data.val.name=zero_lines", "data.val.files={zh: data/zero/IQR/val/short_itr_val.json}", PICTURES]
        + ["train.eval_every_epochs=1", "evaluation.report_queries=1"],
    ],
    ids=["without_enhanced_training", "image_tower_learns", "without_queue", "evaluated"],
)
def test_pre_training_runs_in_its_other_forms(world, monkeypatch, tmp_path, settings):
    monkeypatch.chdir(world)
    assert run.main([*words_of("pretrain_r2d2", *settings), "--output_dir", str(tmp_path)]) == 0
    assert all(math.isfinite(value) for losses in losses_of(tmp_path) for value in losses.values())
    assert ("teacher.towers.copies.image_encoder.backbone.cls_token" in weights_of(tmp_path)) == (
        "model.image_encoder.is_frozen=false" in settings
    )


def test_towers_start_from_public_weights_and_the_masked_language_head_too(world, monkeypatch, tmp_path):
    monkeypatch.chdir(world)
    assert run.main([*words_of("pretrain_r2d2", "optim.lr=0.0"), "--output_dir", str(tmp_path)]) == 0
    state, text = weights_of(tmp_path), read_weights(world / "roberta" / "model.safetensors")
    pairs = {
        "model.text_encoder.layers.0.feed_forward.up.weight": "bert.encoder.layer.0.intermediate.dense.weight",
        "model.masked_language_head.dense.weight": "cls.predictions.transform.dense.weight",
        "model.masked_language_head.bias": "cls.predictions.bias",
        "teacher.towers.copies.text_encoder.word.weight": "bert.embeddings.word_embeddings.weight",
    }
    for ours, theirs in pairs.items():
        torch.testing.assert_close(state[ours], text[theirs])


def test_shards_train_as_lines_do(world, monkeypatch, tmp_path):
    monkeypatch.chdir(world)
    for name, files in (("lines", "data/zero/pretrain"), ("shards", "data/zero/shards")):
        words = words_of("pretrain_prd2", f"data.train.files={files}", "train.max_steps=2")
        assert run.main([*words, "--output_dir", str(tmp_path / name)]) == 0
    assert losses_of(tmp_path / "lines") == losses_of(tmp_path / "shards")


def assert_equal_ends(found, expected):
    """Weights, teacher, queues and running means are the same, bit for bit."""
    found, expected = weights_of(found), weights_of(expected)
    assert {"objective_state.tgd.queue.image", "objective_state.tgd.queue.next"} < set(expected)
    assert {"objective_state.fgd.centre", "teacher.towers.copies.text_projection.weight"} < set(expected)
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_run_goes_on_with_its_teacher_and_queues_from_every_step(world, monkeypatch, tmp_path):
    monkeypatch.chdir(world)
    words = words_of("pretrain_r2d2", "train.save_every_steps=1", "train.keep_checkpoints=9")
    assert run.main([*words, "--output_dir", str(tmp_path / "whole")]) == 0
    state = weights_of(tmp_path / "whole")
    assert int(state["objective_state.tgd.num_steps"]) == 4 and int(state["objective_state.tgd.queue.next"]) == 4
    for step in (1, 3):
        shutil.copytree(tmp_path / "whole", tmp_path / str(step), symlinks=True)
        back_to(tmp_path / str(step), step)
        assert run.main([*words, "--output_dir", str(tmp_path / str(step))]) == 0
        assert_equal_ends(tmp_path / str(step), tmp_path / "whole")


def test_two_killed_processes_end_bit_equal(world, tmp_path):
    words = words_of("pretrain_r2d2", "--nproc", "2", "train.save_every_steps=1")
    finish(start(world, [*words, "--output_dir", str(tmp_path / "whole")]))
    killed = [*words, "--output_dir", str(tmp_path / "killed")]
    process, limit = start(world, killed), time.monotonic() + 120
    while not (tmp_path / "killed/checkpoints/last").exists() and time.monotonic() < limit:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    finish(start(world, killed))
    assert_equal_ends(tmp_path / "killed", tmp_path / "whole")


def test_two_processes_train_as_one(world, monkeypatch, tmp_path):
    """PRD2, whose losses draw nothing; without dropout the only difference left is the order of sums."""
    still = [f"model.text_encoder.{name}=0.0" for name in ("dropout", "attention_dropout")]
    words = words_of("pretrain_prd2", *still, "optim.lr=1e-3")
    monkeypatch.chdir(world)
    assert run.main([*words, "--output_dir", str(tmp_path / "1")]) == 0
    finish(start(world, [*words, "--nproc", "2", "--output_dir", str(tmp_path / "2")]))
    alone, both = weights_of(tmp_path / "1"), weights_of(tmp_path / "2")
    for name in ("objective_state.tgd.queue.text", "objective_state.fgd.centre", "model.text_projection.weight"):
        torch.testing.assert_close(both[name], alone[name], atol=2e-4, rtol=1e-3)


def test_fine_tuning_starts_from_a_pre_trained_checkpoint_and_says_what_it_leaves(world, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(world)
    assert run.main([*words_of("pretrain_r2d2"), "--output_dir", str(tmp_path / "pre")]) == 0
    words = ["--task", "r2d2_retrieval", "--config", str(ROOT / "configs/r2d2/iqr_base.yaml"), *SIZES, *STACKS]
    words += ["data.batch_size=6", "optim.lr=0.0", "schedule.start=0.0", "train.max_steps=1"]
    capsys.readouterr()
    status = run.main([*words, "--checkpoint", str(tmp_path / "pre"), "--output_dir", str(tmp_path / "fine")])
    told = capsys.readouterr().err
    assert status == 0, told
    assert "teacher.* (" in told and "the momentum copy of a pre-training run" in told and "objective_state.*" in told
    name = "model.image_match_head.weight"
    assert torch.equal(weights_of(tmp_path / "fine")[name], weights_of(tmp_path / "pre")[name])


def test_a_pre_trained_checkpoint_is_written_in_the_original_s_layout(world, monkeypatch, tmp_path):
    monkeypatch.chdir(world)
    assert run.main([*words_of("pretrain_r2d2"), "--output_dir", str(tmp_path / "pre")]) == 0
    words = ["--task", "export", "--checkpoint", str(tmp_path / "pre"), "--to", "r2d2", "--output_dir", str(tmp_path)]
    assert run.main(words) == 0
    toy_r2d2.write_checkpoint(tmp_path / "released.pth")
    assert read_weights(tmp_path / "r2d2.th")["model"].keys() == read_weights(tmp_path / "released.pth")["model"].keys()


def test_what_only_training_needs_is_named_once_by_kind():
    state = {"model.image_encoder.backbone.a": torch.zeros(1), "teacher.x": torch.zeros(1), "teacher.y": torch.zeros(1)}
    found = translate(state, {"image_encoder": {"name": "timm"}})
    assert found.left_out == {"teacher.* (2 tensors)": "the momentum copy of a pre-training run"}


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("teacher.momentum=1.0", "less than 1"),
        ("objectives.tgd.decay=0", "decay must be in"),
        ("data.mask.mask_prob=0", "mask_prob must be in"),
        ("objectives.fgd.teacher_temperature=0", "temperatures must be above 0"),
        ("model.projections=none", "objectives.tgd and fgd compare embeddings"),
    ],
)
def test_wrong_settings_are_told(world, monkeypatch, tmp_path, capsys, setting, told):
    monkeypatch.chdir(world)
    assert run.main([*words_of("pretrain_prd2", setting), "--output_dir", str(tmp_path)]) == 2
    assert told in capsys.readouterr().err


def test_a_model_of_another_run_teaches_and_is_not_saved(world, monkeypatch, tmp_path):
    monkeypatch.chdir(world)
    assert run.main([*words_of("pretrain_prd2"), "--output_dir", str(tmp_path / "teacher")]) == 0
    words = words_of("pretrain_prd2", f"objectives.distill_images.teacher={tmp_path}/teacher", "train.max_steps=2")
    assert run.main([*words, "--output_dir", str(tmp_path / "student")]) == 0
    assert 0 < losses_of(tmp_path / "student")[0]["distill_images"] < 2
    assert weights_of(tmp_path / "student").keys() == weights_of(tmp_path / "teacher").keys()


@pytest.mark.parametrize("files", ["data/zero/pretrain", "data/zero/shards"])
def test_the_data_of_a_pre_training_is_checked(world, monkeypatch, tmp_path, capsys, files):
    monkeypatch.chdir(world)
    words = words_of("pretrain_prd2", f"data.train.files={files}")[2:]
    config = str(ROOT / "configs" / "r2d2" / "prd2.yaml")
    assert run.main(["--task", "check_data", "--config", config, *words, "--output_dir", str(tmp_path)]) == 0
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("train "))
    assert line.split() == ["train", "12", "12", "0", "0", "%", "12", "12", "36", "0", "usable"]
