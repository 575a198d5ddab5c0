"""Chinese-CLIP's losses on given features and through the model: accumulated, masked, distilled, on many processes."""

from __future__ import annotations

import contextlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from compat.chinese_clip_sizes import model_section
from compat.weights import translate
from dataset.batch import ImageTextBatch, TextBatch
from models.model import Model
from objectives.contrastive import PairContrastive
from objectives.step import Step
from objectives.teacher import ImageDistillation
from tasks.image_text import ImageText
from tests.parity.runners.chinese_clip_model import PAD_ID, own_state, written
from tests.parity.runners.common import Case, assert_close, read_case
from tests.ranks import run_on_ranks
from utils.config import build
from utils.decoupled import Replay, decoupled_backward
from utils.distributed import all_reduce_sum, world_size

CPU = torch.device("cpu")
GRADIENT_TOLERANCE = 2e-5  # relative (the fixtures' README)
# Our names of the original's ways to gather.
GATHER = {"local": "none", "nograd": "local_slice", "withgrad": "exact"}


def make_task(folder: Path, case: Case, *, mask_ratio: float = 0.0, gather: str = "exact") -> ImageText:
    """The task of a case, in evaluation mode as the fixtures' gradients are."""
    tree = model_section(case.config)
    if tree["image_encoder"]["name"] == "vit":
        tree["image_encoder"]["mask_ratio"] = mask_ratio
    model = Model(build(Model.Config, tree))
    model.load_state_dict(translate(own_state(folder, case), tree).state)
    objective = PairContrastive.Config(gather=gather, reports_accuracy=True)
    return ImageText(model, {"nce": objective}, None, SimpleNamespace(headline="r_mean")).eval()


def make_batch(images: Tensor, texts: Tensor) -> ImageTextBatch:
    number = torch.arange(len(images))
    lengths = (texts != PAD_ID).sum(dim=1).tolist()
    return ImageTextBatch(images, number, TextBatch(texts, lengths), number, torch.zeros_like(number))


def plain_step(task: ImageText, batch: ImageTextBatch) -> Tensor:
    """The loss () of a batch and its gradients."""
    task.zero_grad()
    wrapped = DistributedDataParallel(task) if world_size() > 1 else task
    loss = torch.stack(list(wrapped(batch).values())).sum()
    loss.backward()
    return loss.detach()


def decoupled_step(task: ImageText, batches: list[ImageTextBatch], *, repeats: bool = False) -> Tensor:
    """The loss () of all micro-batches together, and its gradients."""
    task.zero_grad()
    options = {"device": CPU, "autocast": contextlib.nullcontext, "scale": torch.tensor(1.0)}
    parts = decoupled_backward(Replay(task), task, batches, repeats_parameter_gradient=repeats, **options)
    return torch.stack(list(parts.values())).sum()


def original_gradients(task: ImageText) -> dict[str, Tensor]:
    """Gradients of the model's parameters, and zeros for what has none, under the original's names."""
    own = {n: torch.zeros_like(v) for n, v in task.model.state_dict().items()}
    own |= {n: p.grad.clone() for n, p in task.model.named_parameters() if p.grad is not None}
    gradients = written(task.model, own)
    gradients["logit_scale"] = own["temperature.log_scale"]
    return gradients


def check_gradients(found: dict[str, Tensor], expected: dict[str, Tensor], prefix: str) -> None:
    """`{prefix}full.*` are tensors, `{prefix}norm.*` norms."""
    for key, value in expected.items():
        kind, _, name = key.removeprefix(prefix).partition(".")
        if key.startswith(prefix) and kind in ("full", "norm"):
            own = found[name] if kind == "full" else found[name].norm()
            assert_relative(own, value, key)


def assert_relative(found: Tensor, expected: Tensor, what: str) -> None:
    difference = float((found.detach().reshape(expected.shape) - expected).abs().max())
    allowed = GRADIENT_TOLERANCE * max(float(expected.abs().max()), 1e-3)
    assert difference <= allowed, f"{what}: differs by {difference:.3g}, allowed {allowed:.3g}"


def run_loss_model(folder: Path) -> None:
    case = read_case(folder)
    images, texts, outputs = case.inputs["images"], case.inputs["texts"], case.outputs
    task = make_task(folder, case)
    loss = plain_step(task, make_batch(images, texts))
    assert_close(loss, outputs["full.loss"], "full.loss")
    accuracy = {name.rpartition("/")[2]: value / 100 for name, value in task.statistics().items()}
    assert_close(accuracy["image_to_text_accuracy"], outputs["full.acc_i2t"], "acc_i2t")
    assert_close(accuracy["text_to_image_accuracy"], outputs["full.acc_t2i"], "acc_t2i")
    check_gradients(original_gradients(task), outputs, "full.grad.")
    for count in case.config["_accum"]:
        check_accumulated(task, images, texts, outputs, count)
    if "flip.loss" in outputs:
        masked = make_task(folder, case, mask_ratio=round(float(case.inputs["flip_ratio"]), 6))
        masking = masked.model.image_encoder.backbone.patch_drop.train()
        masking.draw = lambda *size: case.inputs["flip_noise"]
        assert_close(plain_step(masked, make_batch(images, texts)), outputs["flip.loss"], "flip.loss")
        check_gradients(original_gradients(masked), outputs, "flip.grad.")


def check_accumulated(task: ImageText, images: Tensor, texts: Tensor, outputs: dict[str, Tensor], count: int) -> None:
    """As the original with its repeated gradient of the temperature; without, equal to the whole batch."""
    parts = list(zip(images.chunk(count), texts.chunk(count), strict=True))
    batches = [make_batch(*part) for part in parts]
    prefix = f"accum{count}."
    for repeats in (True, False):
        loss = decoupled_step(task, batches, repeats=repeats)
        for value in outputs[f"{prefix}loss_per_chunk"]:
            assert_close(loss, value, f"{prefix}loss")
        found = original_gradients(task)
        if repeats:
            check_gradients(found, outputs, f"{prefix}grad.")
        assert_relative(found["logit_scale"] / (count if repeats else 1), outputs["full.grad.full.logit_scale"], prefix)


def make_step(inputs: dict[str, Tensor], scale: Tensor, teacher: Tensor | None = None) -> Step:
    """A step of given features; scale () is the factor of the similarities."""
    number = torch.arange(len(inputs["image_features"]))
    images, texts = (SimpleNamespace(embed=inputs[f"{side}_features"]) for side in ("image", "text"))
    model = SimpleNamespace(temperature=lambda: 1 / scale)
    return Step(model, SimpleNamespace(image_id=number, image_of_text=number), images, texts, teacher_embed=teacher)


def leaves(inputs: dict[str, Tensor], row: int | None = None) -> tuple[dict[str, Tensor], Tensor]:
    """The features that gradients are asked for, of a rank where there are several, and the scale."""
    sides = ("image_features", "text_features")
    own = {name: (inputs[name] if row is None else inputs[name][row]).clone().requires_grad_() for name in sides}
    return own, inputs["logit_scale_exp"].clone().requires_grad_()


def run_loss_features(folder: Path) -> None:
    case = read_case(folder)
    inputs, outputs = case.inputs, case.outputs
    own, scale = leaves(inputs)
    objective = PairContrastive(PairContrastive.Config(reports_accuracy=True))
    step = make_step(own, scale)
    loss = objective(step)
    loss.backward()
    assert_close(loss, outputs["local.loss"], "local.loss")
    statistics = objective.statistics(step)
    assert_close(statistics["image_to_text_accuracy"] / 100, outputs["local.acc_i2t"], "local.acc_i2t")
    assert_close(statistics["text_to_image_accuracy"] / 100, outputs["local.acc_t2i"], "local.acc_t2i")
    for name, x in own.items():
        assert_relative(x.grad, outputs[f"local.grad_{name}"], f"local.grad_{name}")
    assert_relative(scale.grad, outputs["local.grad_logit_scale_exp"], "local.grad_logit_scale_exp")
    for key in inputs:
        if key.startswith("teacher_"):
            check_distilled(inputs, outputs, key)


def check_distilled(inputs: dict[str, Tensor], outputs: dict[str, Tensor], key: str) -> None:
    name = f"kd_{key.removeprefix('teacher_')}"
    weight = float(inputs["kd_loss_weight"])
    distillation = ImageDistillation(ImageDistillation.Config(weight=weight, teacher="given"))
    own, scale = leaves(inputs)
    loss = distillation(make_step(own, scale, inputs[key]))
    loss.backward()
    assert_close(loss, outputs[f"{name}.loss"], f"{name}.loss")
    assert_relative(own["image_features"].grad, outputs[f"{name}.grad_student"], f"{name}.grad_student")
    own, scale = leaves(inputs)
    step = make_step(own, scale, inputs[key])
    total = PairContrastive(PairContrastive.Config())(step) + weight * distillation(step)
    total.backward()
    assert_close(total, outputs[f"{name}.total_loss"], f"{name}.total_loss")
    expected = outputs[f"{name}.total_grad_image_features"]
    assert_relative(own["image_features"].grad, expected, f"{name}.total_grad_image_features")


def run_loss_features_distributed(folder: Path) -> None:
    case = read_case(folder)
    run_on_ranks(check_features_on_rank, len(case.inputs["image_features"]), case)


def check_features_on_rank(number: int, case: Case) -> None:
    """This rank's gradients are the original's but for `exact`, which computes another half of the matrix here: there
    the sum over ranks is, whose mean DDP takes.
    """
    inputs, outputs = case.inputs, case.outputs
    for name, gather in GATHER.items():
        objective = PairContrastive(PairContrastive.Config(gather=gather, reports_accuracy=True))
        own, scale = leaves(inputs, number)
        step = make_step(own, scale)
        loss = objective(step)
        loss.backward()
        check_rank(number, name, loss, own, scale, outputs)
        found = objective.statistics(step)
        for direction, key in (("image_to_text", "acc_i2t"), ("text_to_image", "acc_t2i")):
            mean = all_reduce_sum(found[f"{direction}_accuracy"]) / 100 / world_size()
            assert_close(mean, outputs[f"{name}.{key}"].mean(), f"{name}.{key}")
    weight = float(inputs["kd_loss_weight"])
    for name, gather in GATHER.items():
        objective = PairContrastive(PairContrastive.Config(gather=gather))
        distillation = ImageDistillation(ImageDistillation.Config(weight=weight, teacher="given", gather=gather))
        own, scale = leaves(inputs, number)
        step = make_step(own, scale, inputs["teacher"][number])
        loss = objective(step) + weight * distillation(step)
        loss.backward()
        # With gradients through the gather the original compares rows of different ranks; ours has the right value.
        key = "kd_nograd" if name == "withgrad" else f"kd_{name}"
        check_rank(number, key, loss, own, scale, outputs, ratio=world_size() if name == "withgrad" else 1)


def check_rank(
    number: int, key: str, loss: Tensor, own: dict[str, Tensor], scale: Tensor, outputs: dict, ratio: int = 1
) -> None:
    """ratio: of these gradients to the stored ones."""
    assert_close(all_reduce_sum(loss) / world_size(), outputs[f"{key}.loss"].mean(), f"{key}.loss")
    for name, x in own.items():
        assert_relative(x.grad, ratio * outputs[f"{key}.grad_{name}"][number], f"{key}.grad_{name}")
    if f"{key}.grad_logit_scale_exp" in outputs:
        found, expected = all_reduce_sum(scale.grad), outputs[f"{key}.grad_logit_scale_exp"].sum()
        assert_relative(found, expected, f"{key}.grad_logit_scale_exp")


def run_loss_model_distributed(folder: Path) -> None:
    case = read_case(folder)
    run_on_ranks(check_model_on_rank, case.config["_world_size"], folder, case)


def check_model_on_rank(number: int, folder: Path, case: Case) -> None:
    images, texts, outputs = case.inputs["images"], case.inputs["texts"], case.outputs
    part = len(images) // world_size()
    rows = slice(number * part, (number + 1) * part)
    for name, gather in GATHER.items():
        task = make_task(folder, case, gather=gather)
        loss = plain_step(task, make_batch(images[rows], texts[rows]))
        assert_close(all_reduce_sum(loss) / world_size(), outputs[f"{name}.loss"].mean(), f"{name}.loss")
        prefix = f"{name}.ddp_grad."
        own = {key: value[number] for key, value in outputs.items() if key.startswith(prefix)}
        check_gradients(original_gradients(task), own, prefix)
        if name == "withgrad":
            whole = {k: v for k, v in outputs.items() if k.startswith("reference_one_process.grad.")}
            check_gradients(original_gradients(task), whole, "reference_one_process.grad.")


KINDS: dict[tuple[str, str], Any] = {
    ("chinese_clip", "loss_features"): run_loss_features,
    ("chinese_clip", "loss_features_distributed"): run_loss_features_distributed,
    ("chinese_clip", "loss_model"): run_loss_model,
    ("chinese_clip", "loss_model_distributed"): run_loss_model_distributed,
}
