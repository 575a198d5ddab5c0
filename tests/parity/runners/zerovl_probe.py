"""ZeroVL's linear probe: a frozen tower, a classifier, LARS with a cosine."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from compat.weights import image_tower
from models.image_encoder import ViT
from scheduler import learning_rate_factor
from tasks.linear_probe import Probe, share_right
from tests.parity.runners.common import assert_close, assert_loss, read_case
from utils.config import build, to_tree

TOWER, CLASSIFIER = "image_encoder.model.model.", "classifier."


def run_linear_probe(folder: Path) -> None:
    case = read_case(folder)
    config, outputs = case.config, case.outputs
    size = config["model"]["vit"]
    tree = {
        "name": "vit",
        "image_size": size["img_size"],
        "patch_size": size["patch_size"],
        "width": size["embed_dim"],
        "num_layers": size["depth"],
        "num_heads": size["num_heads"],
    }
    tower = ViT(build(ViT.Config, tree)).eval().requires_grad_(False)
    state = {name.removeprefix(TOWER): value for name, value in case.state.items() if name.startswith(TOWER)}
    ours = image_tower(state, {"image_encoder": to_tree(tower.config)}).state
    tower.load_state_dict({name.removeprefix("image_encoder."): value for name, value in ours.items()})
    classifier = nn.Linear(size["embed_dim"], config["num_classes"])
    classifier.load_state_dict(
        {n.removeprefix(CLASSIFIER): v for n, v in case.state.items() if n.startswith(CLASSIFIER)}
    )
    images, labels = case.inputs["image"], case.inputs["label"]
    with torch.no_grad():
        vectors = [tower(batch)[:, 0] for batch in images]
        logits = classifier(vectors[0])
    assert_close(vectors[0], outputs["features"], "features")
    assert_close(logits, outputs["prediction"], "prediction")
    for k in (1, 5):
        assert_close(100 * share_right(logits, labels[0], k), outputs[f"acc{k}"], f"acc{k}")
    num_steps = config["epochs"] * config["steps_per_epoch"]
    probe = Probe(classifier, config["lr"], config["warmup_proportion"], num_steps)
    for step in range(num_steps):
        batch = step % len(images)
        rate = config["lr"] * learning_rate_factor(probe.schedule, step, num_steps)
        assert_close(torch.tensor(rate), outputs["step_lr"][step], f"rate of step {step}")
        loss = probe.step(vectors[batch], labels[batch], len(labels[batch]))
        assert_loss(loss, outputs["step_loss"][step], f"loss of step {step}")
        assert_close(classifier.weight, outputs["step_weight"][step], f"weight after step {step}")
        if step == 0:
            assert_loss(loss, outputs["loss"], "loss")
    assert_close(classifier.bias, outputs["final_bias"], "bias")


KINDS = {("zerovl", "linear_probe"): run_linear_probe}
