"""A whole image-text model under FSDP2, on two CPU processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import run
from tests.toy_ccrk import toy_settings, write_toy_data
from tests.toy_pretraining import words_of, write_pretraining
from utils.config import dump_yaml

ROOT = Path(__file__).resolve().parent.parent


def train(folder: Path, wrap: str) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses of a run in which the model draws nothing, and its last weights."""
    settings = toy_settings(folder, wrap=wrap, epochs=2, eval_every_epochs=0, test_weights="last", keep_checkpoints=9)
    settings["model"]["image_encoder"]["drop_path"] = 0.0
    settings["model"]["text_encoder"] |= {"dropout": 0.0, "attention_dropout": 0.0}
    dump_yaml(settings, folder / f"{wrap}.yaml")
    return launch(["--config", folder / f"{wrap}.yaml"], folder / wrap, ROOT)


def launch(words: list, out: Path, world: Path) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses of a run on two processes and its last weights."""
    command = [sys.executable, ROOT / "run.py", *words, "--nproc", "2", "--output_dir", out]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(list(map(str, command)), cwd=world, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    weights = load_file(out / "checkpoints/last/model.safetensors")
    return [record["loss"] for record in records if record["kind"] == "train"], weights


def test_a_sharded_model_learns_as_a_copied_one_and_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    write_toy_data(tmp_path)
    losses, weights = train(tmp_path, "ddp")
    sharded_losses, sharded = train(tmp_path, "fsdp2")
    assert sharded_losses == pytest.approx(losses, rel=1e-4) and len(losses) == 12
    assert {name: value.shape for name, value in sharded.items()} == {n: v.shape for n, v in weights.items()}
    for step in (8, 10, 12):
        (tmp_path / f"fsdp2/checkpoints/{step}/manifest.json").unlink()
    again_losses, again = train(tmp_path, "fsdp2")
    assert again_losses == sharded_losses
    assert all(torch.equal(again[name], value) for name, value in sharded.items())


def test_a_sharded_prd2_learns_as_one_process_and_goes_on_with_teacher_and_queues(tmp_path, monkeypatch) -> None:
    write_pretraining(tmp_path)
    monkeypatch.chdir(tmp_path)
    still = [f"model.text_encoder.{name}=0.0" for name in ("dropout", "attention_dropout")]
    words = words_of("pretrain_prd2", *still, "optim.lr=1e-3", "train.keep_checkpoints=9")
    assert run.main([*words, "--output_dir", "alone"]) == 0
    expected = load_file("alone/checkpoints/last/model.safetensors")
    losses, sharded = launch([*words, "train.wrap=fsdp2"], tmp_path / "fsdp2", tmp_path)
    assert {"objective_state.tgd.queue.text", "teacher.towers.copies.text_projection.weight"} < set(sharded)
    assert sharded.keys() == expected.keys() and len(losses) == 4
    for name, value in expected.items():
        torch.testing.assert_close(sharded[name], value, atol=2e-4, rtol=1e-3)
    (tmp_path / "fsdp2/checkpoints/4/manifest.json").unlink()
    assert launch([*words, "train.wrap=fsdp2"], tmp_path / "fsdp2", tmp_path)[0] == losses
    again = load_file("fsdp2/checkpoints/last/model.safetensors")
    assert all(torch.equal(again[name], value) for name, value in sharded.items())
