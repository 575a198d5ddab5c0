"""Chinese-CLIP's trainer through run.py on a few pairs: its flags, a teacher, accumulation, a frozen tower."""

import base64
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

import rosetta
import run
from utils.checkpoint import read_weights

SIZES = """\
base: {root}/configs/chinese_clip/{tower}.yaml
model:
  image_encoder: {image}
  text_encoder: {{width: 64, num_layers: 1, num_heads: 1, mlp_width: 32, max_positions: 64}}
  embed_dim: 16
"""
VIT = "{image_size: 32, patch_size: 16, width: 64, num_layers: 1, num_heads: 1}"
RESNET = "{image_size: 32, width: 2, depths: [1, 1, 1, 1], num_heads: 1}"
COMMON = (
    "--batch-size 4 --valid-batch-size 4 --max-epochs 1 --warmup 2 --num-workers 0 --precision fp32 --log-interval 1"
)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with eight pairs and tiny settings of both towers."""
    write_pairs(tmp_path)
    for tower, image in (("vit_b_16", VIT), ("rn50", RESNET)):
        (tmp_path / f"{tower}.yaml").write_text(SIZES.format(root=rosetta.ROOT, tower=tower, image=image))
    monkeypatch.chdir(rosetta.ROOT)
    return tmp_path


def write_pairs(folder):
    """Eight pairs as a texts' file and an images' file."""
    draw = np.random.default_rng(0)
    texts, images = [], []
    for number in range(8):
        packed = io.BytesIO()
        Image.fromarray(draw.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(packed, "PNG")
        images.append(f"{number}\t{base64.b64encode(packed.getvalue()).decode()}\n")
        texts.append(json.dumps({"text_id": number, "text": f"picture {number}", "image_ids": [number]}) + "\n")
    (folder / "train_imgs.tsv").write_text("".join(images))
    (folder / "train_texts.jsonl").write_text("".join(texts))


def train(project, name, words="", tower="vit_b_16"):
    """The log lines and the weights of a run."""
    data = f"--train-data {project}/train_texts.jsonl --val-data {project}/train_texts.jsonl"
    line = f"--task chinese_clip --config {project}/{tower}.yaml {data} {COMMON} --logs {project} --name {name} {words}"
    assert run.main([*line.split(), "data.cache_dir="]) == 0
    lines = [json.loads(line) for line in (project / name / "metrics.jsonl").read_text().splitlines()]
    return lines, read_weights(project / name / "checkpoints/last")


def test_a_run_logs_what_the_original_logs_and_validates_by_steps(project):
    lines, _ = train(project, "one", "--valid-step-interval 1 --valid-epoch-interval -1 --mask-ratio 0.5")
    steps = [line for line in lines if line["kind"] == "train"]
    assert len(steps) == 2 and steps[0]["lr"] == pytest.approx(2.5e-4)
    assert {"train/nce/image_to_text_accuracy", "train/nce/text_to_image_accuracy", "train/nce/temperature"} <= set(
        steps[0]
    )
    assert steps[0]["loss"] == pytest.approx(steps[0]["train/nce"])  # what is only reported is no loss
    assert [line["step"] for line in lines if line["kind"] == "eval" and line["split"] == "val"] == [1, 2]


def test_a_teacher_of_another_size_teaches_and_is_not_saved(project):
    train(project, "teacher", tower="rn50")
    words = f"--distillation --teacher-model-name {project}/teacher --accum-freq 2"
    lines, weights = train(project, "student", words)
    steps = [line for line in lines if line["kind"] == "train"]
    assert len(steps) == 1 and 0 < steps[0]["train/distill_images"] < 1
    assert steps[0]["loss"] == pytest.approx(steps[0]["train/nce"] + steps[0]["train/distill_images"], rel=1e-5)
    assert not any("teacher" in name for name in weights)


def test_a_frozen_tower_stays_as_it_is_with_its_statistics(project):
    _, first = train(project, "first", tower="rn50")
    _, second = train(project, "second", f"--freeze-vision --resume {project}/first", tower="rn50")
    for name, value in first.items():
        if name.startswith(("model.image_encoder", "model.image_projection")):
            assert torch.equal(value, second[name]), name
    assert not torch.equal(first["model.temperature.log_scale"], second["model.temperature.log_scale"])


def write_original(project, **content):
    """A file of the original's trainer after two steps, of the tiny ViT."""
    from torch.optim import AdamW

    from compat.weights import to_original
    from configs.schema import load_settings
    from models.model import Model
    from utils.config import to_tree

    torch.manual_seed(0)
    model = Model(load_settings(project / "vit_b_16.yaml").model)
    state = to_original(model.state_dict(), to_tree(model.config), "chinese_clip")
    groups = [[], []]
    for name, value in state.items():
        groups[not any(word in name for word in ("bn", "ln", "bias", "logit_scale"))].append(torch.nn.Parameter(value))
    optimizer = AdamW([{"params": groups[0], "weight_decay": 0.0}, {"params": groups[1]}], lr=np.float64(1e-3))
    for _ in range(2):
        for parameter in sum(groups, []):
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()
    file = {"epoch": 1, "step": 2, "state_dict": {f"module.{name}": value for name, value in state.items()}}
    torch.save(file | {"optimizer": optimizer.state_dict()} | content, project / "original.pt")
    return state


RESUMED = "--resume {}/original.pt --max-epochs 2 --save-epoch-frequency 1"


def test_the_original_s_training_file_is_gone_on_with_at_its_epoch_and_with_its_moments(project):
    write_original(project)
    lines, _ = train(project, "on", RESUMED.format(project))
    steps = [line for line in lines if line["kind"] == "train"]
    assert [line["step"] for line in steps] == [3, 4] and steps[0]["lr"] == pytest.approx(5e-4)
    state = torch.load((project / "on/checkpoints/last").resolve() / "training.pt", weights_only=True)
    assert {int(each["step"]) for each in state["optimizer"]["state"].values()} == {4}
    assert state["loader"] == {"seed": 123, "epoch": 2, "consumed": 0}


def test_reset_begins_the_steps_and_the_moments_anew(project):
    write_original(project)
    lines, _ = train(project, "anew", RESUMED.format(project) + " --reset-data-offset --reset-optimizer")
    assert [line["step"] for line in lines if line["kind"] == "train"] == [1, 2, 3, 4]
    state = torch.load((project / "anew/checkpoints/last").resolve() / "training.pt", weights_only=True)
    assert {int(each["step"]) for each in state["optimizer"]["state"].values()} == {4}


@pytest.mark.parametrize(
    "content, message",
    [
        ({"epoch": 15, "step": 0}, "has finished epoch 15, so nothing is left of this run's 4 steps"),
        ({"optimizer": {"state": {}, "param_groups": [{"params": [0, 1]}]}}, "is of 2 parameters, the file's weights"),
    ],
)
def test_a_file_that_cannot_be_gone_on_with_is_told(project, content, message, capsys):
    write_original(project, **content)
    data = f"--train-data {project}/train_texts.jsonl --config {project}/vit_b_16.yaml {COMMON} --logs {project}"
    words = f"--task chinese_clip {data} --name told {RESUMED.format(project)} data.cache_dir="
    assert run.main(words.split()) != 0 and message in capsys.readouterr().err


def test_a_released_file_without_optimizer_starts_with_a_fresh_one(project, caplog):
    write_original(project, optimizer=None)
    lines, _ = train(project, "released", RESUMED.format(project) + " --reset-data-offset")
    assert [line["step"] for line in lines if line["kind"] == "train"] == [1, 2, 3, 4]
    assert "tells no optimizer's state" in caplog.text
