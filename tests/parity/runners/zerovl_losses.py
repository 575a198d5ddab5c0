"""ZeroVL's losses on given embeddings, its decoupled step, and short training runs."""

from __future__ import annotations

import contextlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from compat.weights import to_original
from dataset.batch import ImageTextBatch
from models.heads import Temperature
from objectives.contrastive import PairContrastive, gathered_contrastive_losses
from objectives.mixup import CoinFlipMixup
from objectives.pairs import PairDistance, Triplet
from objectives.step import Mix, Step
from tasks.image_text import ImageText
from tests.parity.runners.common import (
    GRADIENT_TOLERANCE,
    LOSS_TOLERANCE,
    OUTPUT_TOLERANCE,
    Case,
    assert_close,
    read_case,
)
from tests.parity.runners.zerovl_model import accuracy, build_model, make_batch, model_tree
from tests.ranks import run_on_ranks
from utils.decoupled import Replay, decoupled_backward
from utils.distributed import all_reduce_sum, rank, world_size

CPU = torch.device("cpu")


def run_losses(folder: Path) -> None:
    case = read_case(folder)
    if case.config.get("world_size", 1) == 1:
        check_losses(0, case)
    else:
        run_on_ranks(check_losses, case.config["world_size"], case)


def check_losses(number: int, case: Case) -> None:
    many = case.config.get("world_size", 1) > 1
    for variant in case.config["variants"]:
        inputs = {name: value[number] if many else value for name, value in case.inputs.items()}
        prefix = f"rank{number}.{variant['name']}." if many else f"{variant['name']}."
        expected = {n.removeprefix(prefix): v for n, v in case.outputs.items() if n.startswith(prefix)}
        check_variant(variant, inputs, expected)


def check_variant(variant: dict[str, Any], inputs: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """The mean loss over ranks, this rank's directions, and its gradients."""
    image, text = (inputs[f"{side}_emb"].clone().requires_grad_() for side in ("image", "text"))
    objective = make_objective(variant)
    temperature = Temperature(Temperature.Config(clamps="used"))
    temperature.value.data.fill_(variant["temperature"])
    step = make_step(image, text, temperature, variant, inputs)
    loss = objective(step)
    loss.backward()
    assert_close(all_reduce_sum(loss), all_reduce_sum(expected["loss"]), f"{variant['name']} loss", LOSS_TOLERANCE)
    for side, x in (("image", image), ("text", text)):
        assert_relative(x.grad, expected[f"grad_{side}"], f"{variant['name']} grad_{side}")
    # A rank's own loss depends on which half of the matrix it computes; the sum over ranks does not.
    found, wanted = all_reduce_sum(temperature.value.grad), all_reduce_sum(expected["grad_temperature"])
    assert_relative(found, wanted, f"{variant['name']} grad_temperature")
    if "i2t_loss" in expected:
        with torch.no_grad():
            for name, sides in (("i2t", (image, text)), ("t2i", (text, image))):
                own = row_loss(objective, make_step(*sides, temperature, variant, inputs))
                assert_close(own, expected[f"{name}_loss"], f"{variant['name']} {name}_loss", LOSS_TOLERANCE)
    found = objective.statistics(step)
    for name, side in (("i2t_acc", "image_to_text"), ("t2i_acc", "text_to_image")):
        if name in expected:
            assert_close(found[f"{side}_accuracy"] / 100, expected[name], f"{variant['name']} {name}")


def make_objective(variant: dict[str, Any]) -> PairContrastive | CoinFlipMixup:
    gather = "exact" if variant.get("gather_backward", True) else "constant"
    if not variant.get("global_reduce", True):
        gather = "none"
    options = {"smoothing": variant.get("smoothing", 0.0), "group_size": max(variant.get("group_size", 0), 0)}
    config = PairContrastive.Config(gather=gather, reports_accuracy=True, **options)
    if variant["loss"] == "NCE":
        return PairContrastive(config)
    return CoinFlipMixup(CoinFlipMixup.Config(objective=config))


def make_step(image: Tensor, text: Tensor, temperature: Temperature, variant: dict, inputs: dict) -> Step:
    ignored = inputs["ignore_mask"].bool() if variant.get("ignore_mask") else None
    mix = None
    if "image_alpha" in variant or "text_alpha" in variant:
        side = "image" if "image_alpha" in variant else "text"
        mix = Mix(variant[f"{side}_alpha"], side == "image")
    number = torch.arange(len(image))
    batch = SimpleNamespace(image_id=number, image_of_text=number)
    images, texts = SimpleNamespace(embed=image), SimpleNamespace(embed=text)
    return Step(SimpleNamespace(temperature=temperature), batch, images, texts, mix=mix, ignored=ignored)


def row_loss(objective: PairContrastive | CoinFlipMixup, step: Step) -> Tensor:
    """The loss of this rank's rows alone, with its own share of the mixup."""
    inner = getattr(objective, "objective", objective)
    (image, text, asks), (image_id, text_id) = inner.sides(step), inner.ids(step)

    def rows(ids: Tensor) -> Tensor:
        options = {"gather": "constant", "smoothing": inner.config.smoothing, "group_size": inner.config.group_size}
        return gathered_contrastive_losses(image, text, step.temperature, ids, text_id, asks=asks, **options)[0]

    if step.mix is None:
        return rows(image_id)
    return step.mix.share * rows(image_id) + (1 - step.mix.share) * rows(image_id.flip(0))


def assert_relative(found: Tensor, expected: Tensor, what: str, tolerance: float = GRADIENT_TOLERANCE) -> None:
    """Relative to the largest value of the tensor; what is zero in exact arithmetic holds rounding noise only."""
    difference = float((found.detach().reshape(expected.shape) - expected).abs().max())
    scale = float(expected.abs().max())
    assert difference <= max(tolerance * scale, 1e-6), f"{what}: differs by {difference:.3g}, largest value {scale:.3g}"


def run_dga(folder: Path) -> None:
    case = read_case(folder)
    if case.config.get("world_size", 1) == 1:
        check_dga(0, case)
    else:
        run_on_ranks(check_dga, case.config["world_size"], case)


def make_task(config: dict[str, Any], variant: dict[str, Any], state: dict[str, Tensor]) -> ImageText:
    is_learned = variant["temperature_name"] == "parameter"
    model = build_model(model_tree(config["model"], variant["temperature"], is_learned=is_learned), state)
    objective = PairContrastive.Config()
    if variant.get("mix") or variant.get("loss") == "MixUpNCE":
        objective = CoinFlipMixup.Config(objective=objective, beta=config.get("beta", 0.1))
    task = ImageText(model, {objective.name: objective}, None, SimpleNamespace(headline="r_mean")).train()
    if variant.get("mix"):
        task.mixup.draw = lambda step: Mix(variant["alpha"], variant["mix"] == "image")
    return task


def check_dga(number: int, case: Case) -> None:
    config, num_ranks = case.config, case.config.get("world_size", 1)
    local, part = config["batch_size"] // num_ranks, config["batch_size_train"] // num_ranks
    inputs = {name: value[number * local : (number + 1) * local] for name, value in case.inputs.items()}
    whole = make_batch(inputs["image"], inputs["input_ids"], inputs["attention_mask"])
    starts = range(0, local, part)
    parts = [make_batch(*(inputs[n][s : s + part] for n in ("image", "input_ids", "attention_mask"))) for s in starts]
    for variant in config["variants"]:
        prefix = (f"rank{number}." if num_ranks > 1 else "") + variant["name"]
        expected = {n.removeprefix(f"{prefix}."): v for n, v in case.outputs.items() if n.startswith(f"{prefix}.")}
        for kind, batches in (("dga", parts), ("reference", parts), ("plain", [whole])):
            own = {n.removeprefix(f"{kind}."): v for n, v in expected.items() if n.startswith(f"{kind}.")}
            task = make_task(config, variant, case.state)
            loss = plain_step(task, batches[0]) if kind == "plain" else decoupled_step(task, batches)
            check_gradients(task, own, config["param_order"], f"{prefix}.{kind}")
            if kind == "dga":
                check_report(task, parts, own, prefix)
            else:
                found, wanted = all_reduce_sum(loss), all_reduce_sum(own["loss"])
                assert_close(found, wanted, f"{prefix}.{kind}.loss", OUTPUT_TOLERANCE)


def decoupled_step(task: ImageText, batches: list[ImageTextBatch]) -> Tensor:
    wrapped = DistributedDataParallel(Replay(task)) if world_size() > 1 else Replay(task)
    options = {"device": CPU, "autocast": contextlib.nullcontext, "scale": torch.tensor(1.0)}
    return sum(decoupled_backward(wrapped, task, batches, **options).values())


def plain_step(task: ImageText, batch: ImageTextBatch) -> Tensor:
    wrapped = DistributedDataParallel(task) if world_size() > 1 else task
    loss = sum(wrapped(batch).values())
    loss.backward()
    return loss.detach()


def check_report(task: ImageText, batches: list[ImageTextBatch], expected: dict[str, Tensor], where: str) -> None:
    """The original reports the loss without mixup's targets, the temperature and the share of pairs found."""
    with torch.no_grad():
        embeds = [task.embed(batch) for batch in batches]
        joint = {side: torch.cat([each[side] for each in embeds]) for side in ("image", "text")}
        image, text, ids = joint["image"], joint["text"], torch.arange(len(joint["image"])) + rank() * 1000
        sides = [
            gathered_contrastive_losses(*pair, task.model.temperature(), ids, ids, gather="constant")[0]
            for pair in ((image, text), (text, image))
        ]
    assert_close(sum(sides) / 2, expected["loss"], f"{where}.dga.loss", OUTPUT_TOLERANCE)
    assert_close(task.model.temperature(), expected["temperature"], f"{where}.dga.temperature")
    if world_size() == 1:
        assert_close(accuracy(image, text), expected["i2t_acc"], "i2t_acc")
        assert_close(accuracy(text, image), expected["t2i_acc"], "t2i_acc")


def original_tensors(task: ImageText, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of the parameters of our model under the original names."""
    tree = {"image_encoder": {"name": "vit"}, "text_encoder": {"num_layers": len(task.model.text_encoder.layers)},
            "projection_form": {"kind": task.model.projection_form.kind},
            "temperature": {"is_learned": task.model.temperature.value.requires_grad}}  # fmt: skip
    return to_original(tensors, tree, "zerovl")


def check_gradients(task: ImageText, expected: dict[str, Tensor], order: list[str], where: str) -> None:
    own = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in task.model.named_parameters()}
    found = original_tensors(task, own)
    for name, value in expected.items():
        if name.startswith("grad."):
            assert_relative(found[name.removeprefix("grad.")], value, f"{where}.{name}")
    norms = dict(zip(order, expected["grad_norms"].tolist()))
    for name, norm in norms.items():
        if name in found and not name.endswith("attention.self.key.bias"):
            assert abs(float(found[name].norm()) - norm) <= max(GRADIENT_TOLERANCE * norm, 1e-6), f"{where}: {name}"
    total = torch.stack([found[name].norm() for name in norms if name in found]).norm()
    assert_relative(total, expected["grad_norm_total"], f"{where}.grad_norm_total")


def run_other_losses(folder: Path) -> None:
    case = read_case(folder)
    for variant in case.config["variants"]:
        expected = {n.removeprefix(f"{variant['name']}."): v for n, v in case.outputs.items()
                    if n.startswith(f"{variant['name']}.")}  # fmt: skip
        if variant["loss"] in ("Triplet", "MSE"):
            check_pair_loss(variant, case.inputs, expected)
            continue
        # Ours are torch's own: smoothing in the linear probe, targets as probabilities.
        is_smooth = variant["loss"] == "LabelSmoothing"
        target = case.inputs["target"].long() if is_smooth else case.inputs["soft_target"]
        smoothing = variant.get("smoothing", 0.0) if is_smooth else 0.0
        options = {"label_smoothing": smoothing, "reduction": variant["reduction"]}
        loss = F.cross_entropy(case.inputs["logits"], target, **options)
        assert_close(loss, expected["loss"], variant["name"], LOSS_TOLERANCE)


def check_pair_loss(variant: dict[str, Any], inputs: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    image, text = (inputs[f"{side}_emb"].clone().requires_grad_() for side in ("image", "text"))
    if variant.get("global_reduce"):
        # One process masks its whole block there: a loss without a pair, which ours does not have.
        assert float(expected["loss"]) == 0 and not expected["grad_image"].any()
        return
    step = make_step(image, text, Temperature(Temperature.Config()), variant, inputs)
    objective = PairDistance(PairDistance.Config())
    if variant["loss"] == "Triplet":
        options = {"reduce": variant["reduce"], "margin": variant.get("margin", 0.2)}
        objective = Triplet(Triplet.Config(**options))
    loss = objective(step)
    loss.backward()
    assert_close(loss, expected["loss"], variant["name"], LOSS_TOLERANCE)
    for side, x in (("image", image), ("text", text)):
        if f"grad_{side}" in expected:
            assert_relative(x.grad, expected[f"grad_{side}"], f"{variant['name']} grad_{side}")
    assert_close(accuracy(image, text), expected["acc"], f"{variant['name']} acc")
    if "acc2" in expected:
        assert_close(accuracy(text, image), expected["acc2"], f"{variant['name']} acc2")


KINDS = {("zerovl", "losses"): run_losses, ("zerovl", "other_losses"): run_other_losses, ("zerovl", "dga"): run_dga}
