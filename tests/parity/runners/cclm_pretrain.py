"""CCLM's pre-training: images with one or two captions, regions, parallel texts; on several ranks; box losses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dataset.batch import ImageTextBatch, MaskedText, Regions, TextBatch, TextPairBatch
from models.model import Model
from objectives.boxes import box_losses, generalised_iou, predict_boxes, to_corners
from objectives.contrastive import Contrastive, TextContrastive
from objectives.masked_lm import MaskedLanguageModelling
from objectives.matching import match_logits, match_loss, negative_weights
from objectives.step import Step
from tasks.encode import encode_step
from tests.parity.runners.ccrk_model import build_model, gradient_norms, text_batch
from tests.parity.runners.common import (
    OUTPUT_TOLERANCE,
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

Inputs = dict[str, Tensor]
# Which losses the total of a part adds up.
LOSSES = {
    "image": ("itc", "itm", "mlm"),
    "image2": ("itc", "itm", "mlm", "ttc"),
    "region": ("itc", "itm", "mlm", "bbox", "giou"),
    "region_all": ("itc", "itm", "mlm", "bbox", "giou"),
    "para": ("ttc", "ttm", "mlm"),
    "tlm": ("ttc", "mlm"),
}


def pretrain(folder: Path) -> None:
    case = read_case(folder)
    tree = pretrain_tree(case)
    model = build_model(tree, case.state)
    for part in sorted({name.partition(".")[0] for name in case.outputs}):
        outputs = starting_with(case.outputs, f"{part}.")
        step = make_step(model, part, starting_with(case.inputs, f"{part.removesuffix('_all')}."))
        check_encodings(step, outputs)
        losses = losses_of(step, part, starting_with(case.inputs, f"{part.removesuffix('_all')}."))
        check_losses(losses, outputs, part, step.temperature)
        total = sum(losses.values())
        assert_loss(total, outputs["loss_total"], f"{part}.loss_total", step.temperature)
        found = gradient_norms(model, tree, total, "pretrain")
        assert_gradient_norms(found, folder / f"grad_norms.{part}.loss_total.json", step.temperature)


def pretrain_tree(case: Case) -> dict[str, Any]:
    return cclm_model_tree(case.config, is_pretraining=True) | {"has_box_head": True}


def starting_with(tensors: Inputs, prefix: str) -> Inputs:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def make_step(model: Model, part: str, inputs: Inputs, rank: int = 0) -> Step:
    """The step of a recorded batch, encoded as a task does it; no picture is on two ranks."""
    if part in ("para", "tlm"):
        return encode_step(model, pair_batch(inputs), "uniform")
    texts, masked = text_batch(inputs["text_ids"], inputs["text_atts"]), masked_text(inputs)
    rows, regions = torch.arange(len(texts)), None
    image_of_text = rows
    if part == "image2":
        texts, masked = with_second_captions(inputs)
        image_of_text = rows.repeat_interleave(2)
    if part in ("region", "region_all"):
        regions = Regions(
            inputs["idx_to_group_img"], inputs["image_atts"].bool(), inputs["target_bbox"], inputs["is_image"].bool()
        )
    image_id = rows + rank * len(rows)
    batch = ImageTextBatch(inputs["image"], image_id, texts, image_of_text, image_of_text, masked, regions=regions)
    return encode_step(model, batch, "first")


def masked_text(inputs: Inputs, suffix: str = "") -> MaskedText:
    return MaskedText(*(inputs[f"{name}{suffix}"] for name in ("text_ids_masked", "masked_pos", "masked_ids")))


def with_second_captions(inputs: Inputs) -> tuple[TextBatch, MaskedText]:
    """First and second captions in turn, as a loader lays them."""

    def in_turn(name: str) -> Tensor:
        return torch.stack([inputs[name], inputs[f"{name}_2"]], dim=1).flatten(0, 1)

    masked = MaskedText(*map(in_turn, ("text_ids_masked", "masked_pos", "masked_ids")))
    return text_batch(in_turn("text_ids"), in_turn("text_atts")), masked


def pair_batch(inputs: Inputs) -> TextPairBatch:
    first, second = (text_batch(inputs[f"text_ids{which}"], inputs[f"text_atts{which}"]) for which in ("", "_2"))
    lengths = inputs["text_atts_masked"].sum(dim=1).tolist() if "text_atts_masked" in inputs else None
    return TextPairBatch(first, second, masked_text(inputs), lengths)


def check_encodings(step: Step, outputs: Inputs) -> None:
    weights = negative_weights(step.similarity, step.positive_text, step.image_id, step.text_id)
    found = {"weights_t2i": weights.image, "weights_i2t": weights.text}
    if "image_embeds" in outputs:
        regions = step.images
        found |= {
            "image_embeds": regions.tokens,
            "image_embeds_fullatts": regions.full[regions.image_of_region],
            "image_feat": regions.embed,
            "text_feat": step.texts.embed,
            "pred_bbox": predict_boxes(step),
        }
    for name in found.keys() & outputs.keys():
        tolerance = weight_tolerance(step.temperature) if name.startswith("weights_") else OUTPUT_TOLERANCE
        assert_close(found[name], outputs[name], name, tolerance)


def losses_of(step: Step, part: str, inputs: Inputs) -> dict[str, Tensor]:
    """Every loss of the part, with the recorded negatives."""
    losses = {"mlm": MaskedLanguageModelling(MaskedLanguageModelling.Config())(step)}
    for name, objective in (("itc", Contrastive), ("ttc", TextContrastive)):
        if name in LOSSES[part]:
            losses[name] = objective(objective.Config(gather="local_slice"))(step)
    if "neg_image_idx" in inputs:
        logits = match_logits(step, step.positive_text, inputs["neg_image_idx"], inputs["neg_text_idx"])
        name = "ttm" if part == "para" else "itm"
        losses[name] = match_loss(logits, torch.ones(len(logits), dtype=torch.bool))
    if "bbox" in LOSSES[part]:
        regions = step.batch.regions
        is_counted = torch.ones_like(regions.is_image) if part == "region_all" else ~regions.is_image
        losses["bbox"], losses["giou"] = box_losses(predict_boxes(step), regions.target_box, is_counted)
    return losses


def check_losses(losses: Inputs, outputs: Inputs, part: str, temperature: Tensor) -> None:
    assert set(losses) == {name.removeprefix("loss_") for name in outputs if name.startswith("loss_")} - {"total"}
    for name, value in losses.items():
        assert_loss(value, outputs[f"loss_{name}"], f"{part}.loss_{name}", temperature)


def pretrain_distributed(folder: Path) -> None:
    names = read_case(folder).inputs
    run_on_ranks(_pretrain_rank, len({name.partition(".")[0] for name in names}), folder)


def _pretrain_rank(rank: int, folder: Path) -> None:
    case = read_case(folder)
    tree = pretrain_tree(case)
    model = build_model(tree, case.state)
    for part in sorted({name.split(".")[1] for name in case.outputs}):
        inputs = starting_with(case.inputs, f"rank{rank}.{part}.")
        outputs = starting_with(case.outputs, f"rank{rank}.{part}.")
        step = make_step(model, part, inputs, rank)
        losses = losses_of(step, part, inputs)
        check_losses(losses, outputs, part, step.temperature)
        model.zero_grad()
        sum(losses.values()).backward()
        norms = folder / f"grad_norms.{part}.mean_over_ranks.json"
        assert_rank_gradients(model, tree, outputs, norms, step.temperature)


def box_loss(folder: Path) -> None:
    case = read_case(folder)
    inputs, outputs = case.inputs, case.outputs
    target, is_region = inputs["target"], ~inputs["is_image"].bool()
    everything = torch.ones_like(is_region)
    variants = {
        "": ("pred", is_region),
        "_all": ("pred", everything),
        "_degenerate": ("pred_degenerate", everything),
    }
    for suffix, (name, is_counted) in variants.items():
        for kind, found in zip(("bbox", "giou"), box_losses(inputs[name], target, is_counted), strict=True):
            assert_loss(found, outputs[f"loss_{kind}{suffix}"], f"loss_{kind}{suffix}")
    corners = to_corners(inputs["pred"])
    assert_close(corners, outputs["xyxy"], "xyxy")
    assert_close(generalised_iou(corners[:, None], to_corners(target)[None]), outputs["giou_matrix"], "giou_matrix")


KINDS = {
    ("cclm", "pretrain"): pretrain,
    ("cclm", "pretrain_distributed"): pretrain_distributed,
    ("cclm", "box_loss"): box_loss,
}
