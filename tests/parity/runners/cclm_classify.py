"""CCLM's classifiers: XVNLI, NLVR2 and its domain pre-training; and how every fine-tuned model starts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compat import cclm_weights
from dataset.batch import LabelledBatch
from models.model import Model
from objectives.labels import ClassPrediction
from objectives.picture_pairs import PicturePairs, arrange, pair_loss, pair_weights
from objectives.step import Step
from tests.parity.runners.ccrk_model import build_model, gradient_norms, text_batch
from tests.parity.runners.common import (
    Case,
    assert_close,
    assert_gradient_norms,
    assert_loss,
    cclm_model_tree,
    read_case,
)
from utils.config import build, to_tree

Tree = dict[str, Any]


def xvnli_tree(config: dict[str, Any]) -> Tree:
    tree = cclm_model_tree(config)
    num_labels = config["config"].get("num_labels", 3)
    return tree | {"projections": "none", "has_match_head": False, "classifier": {"num_classes": num_labels}}


def nlvr_tree(config: dict[str, Any]) -> Tree:
    tree = xvnli_tree(config)
    return tree | {
        "text_fusion": tree["text_fusion"] | {"num_images": 2},
        "classifier": {"num_classes": 2},
        "shared_projection": False,
    }


def nlvr_pretrain_tree(config: dict[str, Any]) -> Tree:
    return nlvr_tree(config) | {"projections": "image", "classifier": {"num_classes": 3, "num_layers": 1}}


# The model of every task whose fine-tuning starts from a pre-trained file.
TREES: dict[str, Callable[[dict[str, Any]], Tree]] = {
    "retrieval": cclm_model_tree,
    "vqa": cclm_model_tree,
    "xvnli": xvnli_tree,
    "nlvr": nlvr_tree,
    "nlvr_pretrain": nlvr_pretrain_tree,
}


def make_step(case: Case, model: Model, labels: Tensor) -> Step:
    inputs = case.inputs
    batch = LabelledBatch(inputs["image"], text_batch(inputs["text_ids"], inputs["text_atts"]), labels)
    texts = model.encode_text(batch.texts.ids, batch.texts.lengths)
    return Step(model, batch, model.encode_image(batch.images), texts)


def classify(folder: Path, tree_of: Callable[[dict[str, Any]], Tree]) -> None:
    case = read_case(folder)
    tree = tree_of(case.config)
    model = build_model(tree, case.state)
    step = make_step(case, model, case.inputs["targets"])
    logits = model.class_logits(step.texts, step.image_keys, step.batch.image_of_text)
    assert_close(logits, case.outputs["logits"], "logits")
    loss = ClassPrediction(ClassPrediction.Config())(step)
    assert_loss(loss, case.outputs["loss"], "loss")
    assert_gradient_norms(gradient_norms(model, tree, loss, "finetune"), folder / "grad_norms.loss.json")


def xvnli(folder: Path) -> None:
    classify(folder, xvnli_tree)


def nlvr(folder: Path) -> None:
    classify(folder, nlvr_tree)


def nlvr_pretrain(folder: Path) -> None:
    case = read_case(folder)
    tree = nlvr_pretrain_tree(case.config)
    model = build_model(tree, case.state)
    labels = torch.tensor(case.config["labels"]) if "labels" in case.config else case.inputs["labels"]
    step = make_step(case, model, labels)
    weights = pair_weights(step.images.embed, PicturePairs.Config().temperature)
    assert_close(weights, case.outputs["weights"], "weights")
    drawn = torch.where((labels == 2)[:, None], case.inputs["two_idx"], case.inputs["neg_idx"][:, None])
    loss = pair_loss(step, arrange(labels, torch.arange(len(labels)), drawn))
    assert_loss(loss, case.outputs["loss"], "loss")
    assert_gradient_norms(gradient_norms(model, tree, loss, "finetune"), folder / "grad_norms.loss.json")


def finetune_load(folder: Path) -> None:
    case = read_case(folder)
    for path in sorted(folder.glob("config.*.json")):
        task = path.name.split(".")[1]
        assert task in TREES, f"no model for {task}; known: {', '.join(TREES)}"
        mapping = json.loads((folder / f"mapping.{task}.json").read_text(encoding="utf-8"))
        check_start(case, TREES[task](json.loads(path.read_text(encoding="utf-8"))), mapping, task)


def check_start(case: Case, tree: Tree, mapping: dict[str, str], task: str) -> None:
    """Every key of a fine-tuned model comes from where the mapping says."""
    model = Model(build(Model.Config, tree))
    tree = to_tree(model.config)
    translation = cclm_weights.from_checkpoint(case.state, tree)
    assert not translation.unexpected, translation.unexpected
    loaded = set(cclm_weights.to_checkpoint(translation.state, tree, "finetune"))
    model.load_state_dict(translation.state, strict=False)
    written = cclm_weights.to_checkpoint(model.state_dict(), tree, "finetune")
    assert written.keys() == mapping.keys(), written.keys() ^ mapping.keys()
    for name, source in mapping.items():
        if source.startswith("buffer"):
            continue
        assert (name not in loaded) == source.startswith("fresh"), f"{task}: {name} should be {source}"
        if source == "interpolated":
            assert_close(written[name], case.outputs[f"interpolated.{name}"], name, 1e-6)
        elif name in loaded:
            assert torch.equal(written[name], case.state[source]), f"{task}: {name} should be {source}"


KINDS = {
    ("cclm", "xvnli"): xvnli,
    ("cclm", "nlvr"): nlvr,
    ("cclm", "nlvr_pretrain"): nlvr_pretrain,
    ("cclm", "finetune_load"): finetune_load,
}
