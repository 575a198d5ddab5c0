"""R2D2's YAML files mean the same settings as ours, in either spelling of their keys."""

from pathlib import Path

import pytest

import run
from compat.command import settle
from compat.processes import Processes
from configs.schema import Config
from tasks import DEFAULT_CONFIG
from utils.config import ConfigError, build, to_tree

ROOT = Path(run.__file__).parent
RETRIEVAL = """
data: icr
vit_type: base
image_size: 224
ann_path: D/ICR
image_path: D/images
train_batch_size: 32
test_batch_size: 32
num_epoch: 10
base_lr: 1e-5
min_lr: 0
warmup_lr: 1e-6
warmup_steps: 500
weight_decay: 0.05
top_k: 64
pretrained_model: r2d2.pth
"""
MATCHING = """
data: icm
model_name: r2d2
model_type: large
checkpoint: r2d2.pth
ann_path: D/ICM
image_path: D/images
gpus: [0, 1]
train_batch_size: 64
valid_batch_size: 32
num_workers: 4
num_epochs: 20
base_lr: 3e-6
warmup_steps: 3125
weight_decay: 0.01
"""


def configuration(tmp_path, text, task, nproc=8):
    path = tmp_path / "original.yaml"
    path.write_text(text, encoding="utf-8")
    arguments = run.parse(["--task", task, "--config", str(path)])
    plan = settle(arguments, Processes(nproc=nproc), DEFAULT_CONFIG, ROOT)
    return build(Config, plan.tree), plan.notices


def ours(name, task):
    arguments = run.parse(["--task", task, "--config", f"configs/r2d2/{name}.yaml"])
    return build(Config, settle(arguments, Processes(), DEFAULT_CONFIG, ROOT).tree)


@pytest.mark.parametrize(
    ("text", "task", "name", "files"),
    [
        (RETRIEVAL, "r2d2_retrieval", "icr_base", "D/ICR/{}/long_itr_{}.json"),
        (MATCHING, "r2d2_matching", "icm_large", "D/ICM/{}/long_itm_{}.json"),
    ],
)
def test_original_file_is_our_configuration_with_its_own_paths(tmp_path, text, task, name, files):
    found, _ = configuration(tmp_path, text, task)
    expected = ours(name, task)
    for split, on_disk in (("train", "train"), ("val", "val"), ("test", "val")):
        section = getattr(expected.data, split)
        section.files, section.image_root = {"zh": files.format(on_disk, on_disk)}, "D/images"
    expected.init.checkpoint = "r2d2.pth"
    if task == "r2d2_matching":
        expected.evaluation.batch_size = 32
    assert to_tree(found) == to_tree(expected)


def test_a_number_that_yaml_takes_for_a_word_is_one(tmp_path):
    found, _ = configuration(tmp_path, MATCHING.replace("3e-6", "'2e-6'"), "r2d2_matching")
    assert found.optim.lr == 2e-6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("top_k", "topk"), "unknown key 'topk'; did you mean 'top_k'"),
        (("data: icr", "data: icq"), "'data' must be one of .*found 'icq'"),
        (("num_epoch: 10", "num_epoch: many"), "'num_epoch' must be a number, found 'many'"),
    ],
)
def test_what_is_wrong_is_told_with_its_line(tmp_path, change, message):
    with pytest.raises(ConfigError, match=rf"original.yaml:\d+: {message}"):
        configuration(tmp_path, RETRIEVAL.replace(*change), "r2d2_retrieval")


def test_an_original_file_name_that_is_absent_means_ours():
    arguments = run.parse(["--task", "r2d2_retrieval", "--config", "config/retrieval_iqr_large.yaml"])
    plan = settle(arguments, Processes(), DEFAULT_CONFIG, ROOT)
    assert build(Config, plan.tree).data.train.files["zh"].endswith("IQR/train/short_itr_train.json")


def test_flags_of_the_original_programs_are_accepted():
    words = ["--dist_url", "env://", "--world_size", "8", "--distributed", "True", "--device", "cuda"]
    assert run.parse(["--task", "r2d2_retrieval", *words]).device is None
