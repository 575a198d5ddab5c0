"""A Chinese-CLIP run that is killed in the midst of an epoch ends as the uninterrupted one, bit for bit: accumulated
batches, masked patches, dropout and a teacher included. And its scripts train, as one process and as two.
"""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

import rosetta
import run
from tests.test_chinese_clip_commands import COMMON, SIZES, VIT, train, write_pairs
from utils.checkpoint import read_weights

TINY = (
    "model.image_encoder.image_size=32 model.image_encoder.width=64 model.image_encoder.num_layers=1 "
    "model.image_encoder.num_heads=1 model.text_encoder.width=64 model.text_encoder.num_layers=1 "
    "model.text_encoder.num_heads=1 model.text_encoder.mlp_width=32 model.text_encoder.max_positions=64 "
    "model.embed_dim=16 data.cache_dir= data.num_workers=0 train.precision=fp32"
).split()
OPTIONS = (
    "--batch-size 2 --accum-freq 2 --mask-ratio 0.5 --max-epochs 8 --save-step-frequency 1 --valid-epoch-interval -1 "
    "--distillation --teacher-model-name {0}/teacher"
)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("project")
    write_pairs(folder)
    (folder / "vit_b_16.yaml").write_text(SIZES.format(root=rosetta.ROOT, tower="vit_b_16", image=VIT))
    train(folder, "teacher")
    return folder


def test_a_killed_run_ends_as_the_uninterrupted_one(project):
    options = OPTIONS.format(project)
    lines, expected = train(project, "whole", options)
    assert sum(line["kind"] == "train" for line in lines) == 16
    data = f"--train-data {project}/train_texts.jsonl --val-data {project}/train_texts.jsonl"
    words = (
        f"--task chinese_clip --config {project}/vit_b_16.yaml {data} {COMMON} --logs {project} --name killed {options}"
    )
    command = [sys.executable, "run.py", *words.split(), "data.cache_dir="]
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = subprocess.Popen(command, env=os.environ | threads, cwd=rosetta.ROOT, stderr=subprocess.DEVNULL)
    last, limit = project / "killed/checkpoints/last", time.monotonic() + 120
    while process.poll() is None and time.monotonic() < limit and not last.exists():
        time.sleep(0.01)
    assert process.poll() is None, "the run ended before it could be killed"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert 1 <= int(last.resolve().name) < 16
    lines_after, found = train(project, "killed", options)
    assert all(torch.equal(found[name], value) for name, value in expected.items()) and found.keys() == expected.keys()
    losses = [[line["loss"] for line in each if line["kind"] == "train"] for each in (lines, lines_after)]
    assert losses[0] == losses[1]
    states = [
        torch.load((project / name / "checkpoints/last").resolve() / "training.pt", weights_only=True)["optimizer"]
        for name in ("whole", "killed")
    ]
    for number, state in states[0]["state"].items():
        assert all(torch.equal(states[1]["state"][number][key], value) for key, value in state.items())


def write_datapath(project):
    """The original's ${DATAPATH}: MUGE as LMDB, a released file and a teacher's."""
    data = project / "datapath"
    words = f"--task build_lmdb --data_dir {project} --splits train --output_dir {project}/out"
    for split in ("train", "valid"):
        folder = data / "datasets/MUGE/lmdb" / split
        assert run.main([*words.split(), "--lmdb_dir", str(folder.parent / "new")]) == 0
        (folder.parent / "new/train").rename(folder)
    (data / "pretrained_weights").mkdir(parents=True)
    for name in ("clip_cn_vit-b-16.pt", "clip_cn_vit-h-14.pt"):
        path = rosetta.export_weights(project / "teacher", "chinese_clip", project / "out")
        path.rename(data / "pretrained_weights" / name)
    return data


@pytest.mark.parametrize("nproc", ["1", "2"])
def test_a_script_trains_on_a_datapath(project, nproc, tmp_path, monkeypatch):
    data = write_datapath(tmp_path_with(project, tmp_path))
    variables = {"GPUS_PER_NODE": nproc, "batch_size": "2", "max_epochs": "1", "warmup": "2"}
    script = rosetta.ROOT / "run_scripts/muge_finetune_vit-b-16_rbt-base_distillation.sh"
    words = [*TINY, f"objectives.distill_images.teacher_config={project}/vit_b_16.yaml"]
    if nproc == "1":  # the words of the script in this process, which has everything loaded
        monkeypatch.chdir(rosetta.ROOT)
        (tmp_path / "python").write_text('#!/bin/sh\nshift\nprintf "%s\\n" "$@"\n')
        (tmp_path / "python").chmod(0o755)
        environment = os.environ | variables | {"PYTHON": str(tmp_path / "python")}
        told = subprocess.run([script, data, *words], env=environment, capture_output=True, text=True, check=True)
        assert run.main(told.stdout.split()) == 0
    else:
        environment = os.environ | variables | {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
        done = subprocess.run([script, data, *words], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
    folder = data / "experiments/muge_distillation_finetune_vit-b-16_roberta-base"
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert sum(line["kind"] == "train" for line in lines) == 4 // int(nproc)
    [found] = [line["metrics"]["in_batch"] for line in lines if line["kind"] == "eval" and line["split"] == "val"]
    assert {"loss", "image_to_text_accuracy", "text_to_image_accuracy"} <= set(found["zh"])
    assert read_weights(folder / "checkpoints/last")


def tmp_path_with(project, folder):
    """A folder of its own with the project's data and teacher."""
    for name in ("train_imgs.tsv", "train_texts.jsonl", "teacher"):
        (folder / name).symlink_to(project / name)
    return folder
