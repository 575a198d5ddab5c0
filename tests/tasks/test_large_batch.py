"""Debiased sampling, mixup and decoupled accumulation together: a whole run, its resume, its memory, bad settings."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from configs.schema import Config
from tests.toy_ccrk import COLOURS, ROOT, TOKENIZER
from utils.config import ConfigError, build, dump_yaml

TOWERS = {
    "image_encoder": {"name": "vit", "image_size": 32, "width": 16, "num_layers": 1, "num_heads": 2, "drop_path": 0.1},
    "text_encoder": {"name": "bert", "vocab_size": 4000, "width": 16, "num_layers": 1, "num_heads": 2,
                     "mlp_width": 32, "max_positions": 50},
    "embed_dim": 8,
    "projection_form": {"kind": "simple"},
    "temperature": {"initial": 0.05, "clamps": "used"},
}  # fmt: skip


def write_sets(folder: Path, sizes: dict[str, int]) -> None:
    for name, size in sizes.items():
        for split in ("train", "valid"):
            (folder / name / split).mkdir(parents=True)
            rows = ["image,image_id,caption,caption_id"]
            for k in range(size):
                colour = list(COLOURS)[k % 4]
                Image.new("RGB", (40, 36), COLOURS[colour]).save(folder / name / split / f"{k}.png")
                rows.append(f'{k}.png,{k},"a {colour} picture, {name} number {k}",{k}')
            (folder / name / f"{split}_anno.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")


def settings(folder: Path, **train) -> dict:
    def pairs(name: str, split: str) -> dict:
        return {"name": "csv_pairs", "files": {name: str(folder / name / f"{split}_anno.csv")}}

    noisy = {name: {**pairs(name, "train"), "word_noise": {"share": 0.2}} for name in ("one", "two")}
    return {
        "task": "clip",
        "seed": 7,
        "model": TOWERS,
        "objectives": {"mixup": {"beta": 0.5, "objective": {"name": "nce", "reports_accuracy": True}}},
        "data": {
            "tokenizer": str(TOKENIZER),
            "train": {"name": "mixture", "order": "debias", "sets": noisy},
            "test": pairs("one", "valid"),
            "train_transform": {"name": "steps", "steps": ["random_resize_crop", "autoaug"]},
            "test_transform": {"name": "steps", "resize": 36},
            "batch_size": 4,
            "max_tokens": 25,
            "cache_dir": "",
        },
        "evaluation": {"score": "dual"},
        "optim": {"lr": 1e-3},
        "schedule": {"name": "constant", "warmup": 0},
        "train": {"epochs": 3, "accumulate": 2, "accumulate_decoupled": True, "log_every_steps": 1,
                  "save_every_steps": 1, "test_weights": "last", **train},
    }  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sets")
    write_sets(folder, {"one": 17, "two": 9})
    return folder


def run(config: Path, output: Path, *words: str) -> str:
    command = [sys.executable, str(ROOT / "run.py"), "--task", "clip", "--config", str(config)]
    done = subprocess.run([*command, "--output_dir", str(output), *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_run_with_all_three_ideas_resumes_bit_for_bit(data, tmp_path):
    config = tmp_path / "config.yaml"
    dump_yaml(settings(data), config)
    run(config, tmp_path / "whole")
    run(config, tmp_path / "halves", "train.max_steps=5")
    run(config, tmp_path / "halves", "train.max_steps=9")
    whole, halves = (load_file(tmp_path / name / "checkpoints/last/model.safetensors") for name in ("whole", "halves"))
    assert all(torch.equal(value, halves[name]) for name, value in whole.items())
    metrics = json.loads((tmp_path / "whole/metrics.json").read_text())
    assert set(metrics["test"]["one"]) >= {"rsum", "r_mean", "txt_r1"}
    log = [json.loads(line) for line in (tmp_path / "whole/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log if line["kind"] == "train"] == list(range(1, 10))
    assert all(0 <= line["train/mixup/text_to_image_accuracy"] <= 100 for line in log if line["kind"] == "train")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"objectives": {"itc": {}, "mixup": {"objective": {"name": "nce"}}}}, "objectives.mixup .* must stand alone"),
        ({"objectives": {"mixup": {}}}, "mixup needs `objective`, a contrastive one"),
        ({"objectives": {"itm": {}}, "model": {**TOWERS, "text_fusion": {"num_layers": 1}}},
         "accumulate_decoupled needs objectives of embeddings alone .* found itm"),
        ({"train": {"accumulate_decoupled": True, "wrap": "fsdp2"}}, "allowed for wrap: ddp, none"),
    ],
)  # fmt: skip
def test_settings_that_do_not_go_together_are_told(data, change, message):
    with pytest.raises(ConfigError, match=message):
        build(Config, settings(data) | change)


def test_a_set_smaller_than_a_batch_ends_the_run_with_its_name(data, tmp_path):
    config = tmp_path / "config.yaml"
    dump_yaml(settings(data), config)
    command = [sys.executable, str(ROOT / "run.py"), "--task", "clip", "--config", str(config)]
    words = ["--output_dir", str(tmp_path / "out"), "data.batch_size=6"]
    done = subprocess.run([*command, *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode != 0 and "set 'two' has 9 records" in done.stdout + done.stderr
