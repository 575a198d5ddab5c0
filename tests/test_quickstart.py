"""The bundled set teaches a small model in a hundred steps, and four languages at once teach it more than one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.toy_ccrk import ROOT

SMALL = (
    "model.image_encoder.width=128 model.image_encoder.num_heads=2 model.image_encoder.num_layers=4 "
    "model.text_encoder.width=128 model.text_encoder.num_heads=2 model.text_encoder.mlp_width=512 "
    "model.text_fusion=null evaluation.report_queries=1 train.max_steps=100 train.log_every_steps=20"
).split()
# Objectives are inherited by name; `key:` without a value takes one out.
DUAL = "base: {quickstart}\nobjectives:\n  itm:\n"


def train(folder: Path, *words: str) -> dict:
    config = folder / "dual.yaml"
    config.write_text(DUAL.format(quickstart=ROOT / "configs" / "quickstart.yaml"))
    command = [sys.executable, str(ROOT / "run.py"), "--task", "pretrain", "--config", str(config)]
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    done = subprocess.run(
        [*command, "--output_dir", str(folder / "out"), *SMALL, *words],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "text -> image" in done.stdout and (folder / "out/report.html").is_file()
    return json.loads((folder / "out/metrics.json").read_text())


def test_hundred_steps_teach_more_with_four_captions_than_with_one(tmp_path):
    one, four = tmp_path / "one", tmp_path / "four"
    one.mkdir()
    four.mkdir()
    with_four = train(four)
    assert len(with_four["test"].keys() - {"mean", "mrv", "median_rank"}) == 10
    assert with_four["chance"]["img_r10"] < 1.51
    assert with_four["test"]["mean"]["img_r10"] >= 12
    assert (four / "out/checkpoints/last/model.safetensors").is_file()
    assert with_four["test"]["mean"]["img_r10"] > train(one, "data.train.caption_num=1")["test"]["mean"]["img_r10"] + 1
