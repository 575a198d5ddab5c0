"""CCLM's retrieval fine-tuning: losses, two-stage scores, recalls; on several ranks."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

from models.model import Model
from objectives.contrastive import Contrastive
from objectives.matching import match_logits, match_loss, negative_weights
from objectives.step import Step
from tests.parity.runners.ccrk_evaluation import check_scores, dense, two_stage_scores
from tests.parity.runners.ccrk_model import build_model, gradient_norms, make_step
from tests.parity.runners.common import (
    Case,
    assert_close,
    assert_gradient_norms,
    assert_loss,
    assert_rank_gradients,
    cclm_model_tree,
    read_case,
    weight_tolerance,
)
from tests.ranks import run_on_ranks
from utils.metrics import recall, recall_metrics, retrieval_ranks


def retrieval(folder: Path) -> None:
    case = read_case(folder)
    tree = cclm_model_tree(case.config)
    model = build_model(tree, case.state)
    texts = case.inputs["text_ids"], case.inputs["text_atts"]
    for variant in ("dup", "noidx"):
        if f"{variant}.loss_itc" not in case.outputs:
            continue
        step = make_step(model, case.inputs["image"], *texts, 1, case.inputs.get(f"{variant}.idx"))
        assert_close(step.images.embed, case.outputs["image_feat"], "image_feat")
        assert_close(step.texts.embed, case.outputs["text_feat"], "text_feat")
        check_weights(case, step, variant)
        losses = losses_of(case, step, f"{variant}.")
        norms = folder / f"grad_norms.{variant}.loss_total.json"
        if norms.exists():
            found = gradient_norms(model, tree, sum(losses.values()), "finetune")
            assert_gradient_norms(found, norms, step.temperature)
    if "eval.sims" in case.outputs:
        check_evaluation(case, model, folder)


def losses_of(case: Case, step: Step, prefix: str, rank: str = "") -> dict[str, Tensor]:
    """Both losses with the recorded negatives, compared with the case's."""
    positive = torch.arange(len(step.batch.images))
    negatives = (case.inputs[f"{rank}{prefix}neg_{kind}_idx"] for kind in ("image", "text"))
    logits = match_logits(step, positive, *negatives)
    if "itm_logits_pos" in case.outputs and not rank:
        assert_close(logits[: len(positive)], case.outputs["itm_logits_pos"], "itm_logits_pos")
    losses = {
        "loss_itc": Contrastive(Contrastive.Config(gather="local_slice"))(step),
        "loss_itm": match_loss(logits, torch.ones(len(logits), dtype=torch.bool)),
    }
    for name, value in losses.items():
        assert_loss(value, case.outputs[f"{rank}{prefix}{name}"], f"{rank}{prefix}{name}", step.temperature)
    return losses


def check_weights(case: Case, step: Step, variant: str) -> None:
    positive = torch.arange(len(step.batch.images))
    found = negative_weights(step.similarity, positive, step.batch.image_id, step.text_id)
    for name, weights in (("weights_t2i", found.image), ("weights_i2t", found.text)):
        expected = case.outputs.get(f"{variant}.{name}")
        if expected is not None:
            assert_close(weights, expected, f"{variant}.{name}", weight_tolerance(step.temperature))


@torch.no_grad()
def check_evaluation(case: Case, model: Model, folder: Path) -> None:
    """Similarities, re-ranked scores and the recalls that follow from them."""
    images = model.encode_image(case.inputs["eval.image"])
    texts = case.inputs["eval.text_ids"], case.inputs["eval.text_atts"]
    similarity, i2t, t2i = two_stage_scores(model, images.tokens, images.embed, *texts, case.config["k_test"])
    assert_close(similarity, case.outputs["eval.sims"], "eval.sims")
    check_scores(case.outputs, "eval", i2t, t2i, separator=".")
    expected = json.loads((folder / "eval.metrics.json").read_text(encoding="utf-8"))
    image_of_text = case.inputs["eval.txt2img"]
    ranks = retrieval_ranks(similarity, similarity.T, image_of_text, dense(i2t), dense(t2i))
    check_recalls(i2t, t2i, image_of_text, recall_metrics(*ranks), expected)


def retrieval_metrics(folder: Path) -> None:
    case = read_case(folder)
    expected = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    for name, metrics in expected.items():
        scores = case.inputs[f"{name}.score_i2t"], case.inputs[f"{name}.score_t2i"]
        found = recall_metrics(*retrieval_ranks(*scores, case.inputs["txt2img"]))
        check_recalls(*scores, case.inputs["txt2img"], found, metrics)


def check_recalls(i2t: Tensor, t2i: Tensor, image_of_text: Tensor, found: dict, expected: dict) -> None:
    """Every recall is the recorded one; where equal scores leave it open, both lie between the best and worst order."""
    image = torch.arange(len(i2t))
    sides = {"txt": (i2t, image[:, None] == image_of_text[None]), "img": (t2i, image_of_text[:, None] == image[None])}
    is_open = set()
    for side, (scores, is_right) in sides.items():
        best = scores.masked_fill(~is_right, -torch.inf).amax(dim=1, keepdim=True)
        least = (scores > best).sum(dim=1)
        most = ((scores >= best) & ~is_right).sum(dim=1)
        for k in (1, 5, 10):
            name, low, high = f"{side}_r{k}", recall(most, k), recall(least, k)
            is_open |= {name} if low != high else set()
            for value in (found[name], expected[name]):
                assert low - 1e-9 <= value <= high + 1e-9, f"{name}: {value} is not in [{low}, {high}]"
    means = {name: {f"{name.partition('_')[0]}_r{k}" for k in (1, 5, 10)} for name in ("txt_r_mean", "img_r_mean")}
    means["r_mean"] = means["txt_r_mean"] | means["img_r_mean"]
    for name, value in expected.items():
        if not is_open & ({name} | means.get(name, set())):
            assert abs(found[name] - value) < 1e-9, f"{name}: {found[name]}, expected {value}"


def retrieval_distributed(folder: Path) -> None:
    names = read_case(folder).inputs
    run_on_ranks(_retrieval_rank, len({name.partition(".")[0] for name in names}), folder)


def _retrieval_rank(rank: int, folder: Path) -> None:
    case, own = read_case(folder), f"rank{rank}."
    tree = cclm_model_tree(case.config)
    model = build_model(tree, case.state)
    size = len(case.inputs[f"{own}image"])
    inputs = (case.inputs[f"{own}{name}"] for name in ("image", "text_ids", "text_atts"))
    image, ids, mask = inputs
    for variant in ("idx", "noidx"):
        if f"{own}{variant}.loss_itc" not in case.outputs:
            continue
        every = torch.arange(size) + rank * size
        step = make_step(model, image, ids, mask, 1, case.inputs.get(f"{own}idx") if variant == "idx" else every)
        model.zero_grad()
        sum(losses_of(case, step, f"{variant}.", own).values()).backward()
        outputs = {
            n.removeprefix(f"{own}{variant}."): v for n, v in case.outputs.items() if n.startswith(own + variant)
        }
        norms = folder / f"grad_norms.{variant}.mean_over_ranks.json"
        assert_rank_gradients(model, tree, outputs, norms, step.temperature)


KINDS = {
    ("cclm", "retrieval"): retrieval,
    ("cclm", "retrieval_distributed"): retrieval_distributed,
    ("cclm", "retrieval_metrics"): retrieval_metrics,
}
