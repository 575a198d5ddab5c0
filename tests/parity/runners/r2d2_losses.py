"""R2D2's pre-training objectives on given vectors, against a reference written from the published description."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from dataset.masking import TokenMasker
from models.momentum import Teacher
from objectives.chunked_contrastive import Positives, contrastive_losses
from objectives.contrastive import Contrastive
from objectives.distillation import (
    FeatureGuidedDistillation,
    TargetGuidedDistillation,
    columns_of,
    soft_targets,
)
from objectives.masked_lm import vocabulary_loss
from objectives.matching import match_loss, negative_weights
from objectives.queue import EmbeddingQueue
from objectives.step import Step
from tests.parity.runners.common import (
    GRADIENT_TOLERANCE,
    LOSS_TOLERANCE,
    Case,
    assert_close,
    assert_loss,
    read_case,
)


def paper_losses(folder: Path) -> None:
    case = read_case(folder)
    check_contrastive(case)
    total = check_target_guided(case)
    check_targets(case)
    check_queue(case)
    check_teacher(case)
    check_negatives(case)
    total = total + check_ranking(case) + check_masking(case) + check_feature_guided(case)
    assert_loss(total, case.outputs["total"], "total")


def make_step(case: Case, **changes: Any) -> Step:
    """The step of the case's vectors, with a temperature that gets a gradient."""
    inputs = case.inputs
    temperature = inputs["temp"].squeeze().clone().requires_grad_()
    sides = [SimpleNamespace(embed=inputs[name].clone().requires_grad_()) for name in ("image_feat", "text_feat")]
    batch = SimpleNamespace(image_id=inputs["ids"], image_of_text=torch.arange(len(inputs["ids"])))
    teacher = SimpleNamespace(image=inputs["image_feat_m"], text=inputs["text_feat_m"])
    return Step(SimpleNamespace(temperature=lambda: temperature), batch, *sides, teacher=teacher, **changes)


def check_contrastive(case: Case) -> None:
    step, outputs = make_step(case), case.outputs
    assert_loss(Contrastive(Contrastive.Config())(step), outputs["gcpr"], "gcpr")
    image, text, ids = step.images.embed, step.texts.embed, case.inputs["ids"]
    for number, rows in enumerate(torch.arange(len(ids)).chunk(case.config["ranks"])):
        sides = [
            contrastive_losses(mine[rows], other, step.temperature, Positives(ids[rows], ids))[0]
            for mine, other in ((image, text), (text, image))
        ]
        assert_loss(sum(sides) / 2, outputs["gcpr_per_rank"][number], f"gcpr of rank {number}")


def fill(queue: EmbeddingQueue, case: Case, is_filled: Tensor | None = None, *, is_weighted: bool = True) -> None:
    """The queue of the inputs; ages are those that the stored weights come from."""
    inputs = case.inputs
    weight = inputs["queue_weight"].double()
    age = (weight.log() / torch.tensor(case.config["queue_decay"]).double().log()).round().long()
    if not is_weighted:
        age = torch.ones_like(age)
    queue.double()
    queue.image.copy_(inputs["image_queue"])
    queue.text.copy_(inputs["text_queue"])
    queue.image_id.copy_(inputs["queue_ids"])
    queue.age.copy_(age if is_filled is None else age * is_filled)


def make_objective(case: Case, **changes: Any) -> TargetGuidedDistillation:
    config = case.config
    settings = {"queue_size": config["queue"], "decay": config["queue_decay"], "alpha": config["alpha"]}
    objective = TargetGuidedDistillation(TargetGuidedDistillation.Config(**settings | {"ramp_epochs": 0} | changes))
    objective.prepare(SimpleNamespace(config=SimpleNamespace(embed_dim=config["dim"])))
    return objective


def check_target_guided(case: Case) -> Tensor:
    """The loss of every variant, gradients of the first, which is returned."""
    partial, losses = case.inputs["queue_valid_partial"], {}
    variants = {
        "queue_negatives": ({}, {}),
        "queue_ids": ({"matches_queue": True}, {}),
        "partial_queue": ({"matches_queue": True}, {"is_filled": partial}),
        "unit_weights": ({"decay": 1.0}, {"is_weighted": False}),
        "alpha0_unit_weights": ({"decay": 1.0, "alpha": 0.0}, {"is_weighted": False}),
    }
    for name, (settings, filling) in variants.items():
        objective, step = make_objective(case, **settings), make_step(case)
        fill(objective.queue, case, **filling)
        losses[name] = objective(step)
        assert_loss(losses[name], case.outputs[f"gcpr_tgd/{name}"], f"tgd {name}")
        if name != "queue_negatives":
            continue
        losses[name].backward()
        found = {"image_feat": step.images.embed, "text_feat": step.texts.embed, "temp_student_only": step.temperature}
        for key, x in found.items():
            expected = case.outputs[f"gcpr_tgd/grad_{key}"]
            error = (x.grad - expected.view_as(x)).norm() / expected.norm()
            assert error <= GRADIENT_TOLERANCE, f"tgd gradient of {key}: {error:.3g}"
    return losses["queue_negatives"].detach()


def check_targets(case: Case) -> None:
    inputs, queue = case.inputs, EmbeddingQueue(case.config["queue"], case.config["dim"])
    fill(queue, case)
    teacher = {"i2t": inputs["image_feat_m"], "t2i": inputs["text_feat_m"]}
    columns = columns_of(*teacher.values(), inputs["ids"], queue, decay=case.config["queue_decay"], matches_queue=False)
    for name, candidates in (("i2t", columns.text), ("t2i", columns.image)):
        found = soft_targets(
            teacher[name], inputs["ids"], candidates, columns, inputs["temp"].squeeze(), case.config["alpha"]
        )
        assert_close(found, case.outputs[f"gcpr_tgd/target_{name}"], f"target {name}")


def check_queue(case: Case) -> None:
    """Two iterations from a queue that is filled in part; places that are empty after them have no content."""
    inputs, objective = case.inputs, make_objective(case)
    queue = objective.queue
    fill(queue, case, inputs["queue_valid_partial"])
    queue.next.copy_(inputs["queue_ptr_before"].squeeze())
    for number in range(2):
        queue.put(inputs["image_feat_m"], inputs["text_feat_m"], inputs["ids"] + 100 * number)
    expected = {n.rpartition("/")[2]: x for n, x in case.outputs.items() if n.startswith("queue_after_2_steps/")}
    filled = expected["queue_valid"]
    assert torch.equal(queue.is_filled, filled) and int(queue.next) == int(expected["ptr"])
    assert torch.equal(queue.image_id[filled], expected["queue_ids"][filled])
    assert_close(queue.weight(case.config["queue_decay"])[filled], expected["queue_weight"][filled], "weights")
    assert_close(queue.image[filled], expected["image_queue"][filled], "images of the queue")
    assert_close(queue.text[filled], expected["text_queue"][filled], "texts of the queue")


def check_teacher(case: Case) -> None:
    original = nn.Linear(1, 1, bias=False)
    original.weight = nn.Parameter(case.inputs["image_feat_m"].clone())
    teacher = Teacher({"map": original}, case.config["ema_momentum"])
    original.weight.data.copy_(case.inputs["image_feat"])
    teacher.update()
    assert_close(teacher["map"].weight, case.outputs[f"ema_{case.config['ema_momentum']}"], "average")


def check_negatives(case: Case) -> None:
    inputs, ids = case.inputs, case.inputs["ids"]
    similarity = inputs["image_feat"] @ inputs["text_feat"].T / inputs["temp"]
    found = negative_weights(similarity, torch.arange(len(ids)), ids, ids, floor=0.0)
    assert_close(found.text, case.outputs["negatives/i2t"], "negatives i2t")
    assert_close(found.image, case.outputs["negatives/t2i"], "negatives t2i")


def check_ranking(case: Case) -> Tensor:
    sides = [
        torch.cat([case.inputs[f"fgr_logits_{stack}_pos"], case.inputs[f"fgr_logits_{stack}_neg"]]) for stack in "ti"
    ]
    logits = torch.stack(sides, dim=1)
    counted = torch.ones(len(logits), dtype=torch.bool)
    for name, weights in (("plain", (1.0, 1.0)), ("weights_1_2", (1.0, 2.0))):
        assert_loss(match_loss(logits, counted, weights), case.outputs[f"fgr/{name}"], f"fgr {name}")
    return case.outputs["fgr/plain"]


class Draws:
    """A generator that draws what a case has drawn."""

    def __init__(self, numbers: Tensor) -> None:
        self.numbers = numbers.numpy()

    def random(self, size: int) -> Any:
        assert size == len(self.numbers)
        return self.numbers


def check_masking(case: Case) -> Tensor:
    """Which tokens are hidden, and the loss of guessing them from given logits."""
    config, inputs = case.config, case.inputs
    masker = TokenMasker(
        TokenMasker.Config(mask_prob=config["mlm_probability"]), config["mask_id"], config["special_ids"]
    )
    rows, targets = [], []
    for text, (ids, draw) in enumerate(zip(inputs["mlm_input_ids"], inputs["mlm_draw"])):
        found = masker.mask(ids.tolist(), Draws(draw))
        used = found.targets >= 0
        labels = torch.full_like(ids, -100)
        labels[found.positions[used]] = torch.from_numpy(found.targets[used])
        assert torch.equal(torch.from_numpy(found.ids), case.outputs["mlm/masked_input_ids"][text])
        assert torch.equal(labels, case.outputs["mlm/labels"][text])
        rows.append(inputs["mlm_logits"][text])
        targets.append(labels)
    logits, target = torch.cat(rows), torch.cat(targets)
    words = torch.eye(logits.shape[1], dtype=logits.dtype)
    loss = vocabulary_loss(logits, words, torch.zeros_like(words[0]), target)
    assert_loss(loss, case.outputs["mlm/loss"], "mlm")
    return loss


def check_feature_guided(case: Case) -> Tensor:
    inputs, config = case.inputs, case.config
    objective = FeatureGuidedDistillation(
        FeatureGuidedDistillation.Config(
            student_temperature=config["tau_s"],
            teacher_temperature=config["tau_t"],
            centre_momentum=config["center_momentum"],
        )
    )
    objective.prepare(SimpleNamespace(text_encoder=SimpleNamespace(width=config["fgd_dim"])))
    objective.double()
    objective.centre.copy_(inputs["fgd_center"])
    step, student = make_step(case), inputs["fgd_student"].clone().requires_grad_()
    step.pooled_texts, step.teacher.pooled_text = student, inputs["fgd_teacher"]
    loss = objective(step)
    assert_loss(loss, case.outputs["fgd/loss"], "fgd")
    loss.backward()
    expected = case.outputs["fgd/grad_student"]
    assert (student.grad - expected).norm() <= GRADIENT_TOLERANCE * expected.norm()
    objective.after_step()
    key = f"fgd/center_after_{config['center_momentum']}"
    assert_close(objective.centre, case.outputs[key], "centre", LOSS_TOLERANCE)
    return loss.detach()


KINDS = {("r2d2", "paper_losses"): paper_losses}
