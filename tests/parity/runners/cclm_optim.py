"""CCLM's optimizer: the groups of all its models under the shipped settings, AdamW's arithmetic, schedules."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import nn

from configs.schema import load_settings
from models.model import Model
from optim import OptimConfig, make_optimizer, set_learning_rate
from scheduler import ScheduleConfig, learning_rate_factor
from tasks import TASKS
from tests.parity.runners.ccrk_optim import ROOT, check_groups, model_tree, with_recorded_values
from tests.parity.runners.common import assert_close, read_case
from utils.config import build

# Whose settings hold for which model; without them (retrieval) every parameter learns at the same rate.
CONFIGS = {
    "pretrain": "cclm/pretrain_3m.yaml",
    "retrieval": "cclm/retrieval_multi30k_en.yaml",
    "vqa": "cclm/gqa.yaml",
    "nlvr": "cclm/nlvr.yaml",
    "nlvr_pretrain": "cclm/nlvr_pretrain.yaml",
    "xvnli": "cclm/xvnli.yaml",
}


def optimizer_schedule(folder: Path) -> None:
    case = read_case(folder)
    groups = json.loads((folder / "param_groups.json").read_text(encoding="utf-8"))
    for name, expected in groups.items():
        check_model(name, {key: tuple(value) for key, value in expected.items()})
    for schedule in case.config["schedule"].values():
        check_schedule(**schedule["args"], factors=schedule["factor_at_step"])
    check_updates(case)


def check_model(name: str, expected: dict[str, tuple[float, float]]) -> None:
    settings = load_settings(ROOT / "configs" / CONFIGS[name.partition("_unequal")[0]])
    tree = task_tree(set(expected), has_one_width="_unequal" not in name)
    holder = nn.Module()
    holder.model = Model(build(Model.Config, tree))
    fresh = TASKS.load(settings.task).fresh_parameters(holder)
    stage = "pretrain" if name.startswith("pretrain") else "finetune"
    check_groups(expected, holder, tree, with_recorded_values(settings.optim, expected), fresh, stage)


def task_tree(names: set[str], *, has_one_width: bool) -> dict[str, Any]:
    """The smallest model with the layers and heads that the names tell of."""

    def has(beginning: str) -> bool:
        return any(name.startswith(beginning) for name in names)

    tree = model_tree({name for name in names if not name.startswith("text_decoder.")})
    keyed = re.compile(r"text_encoder\..*crossattention\.self\.(query|key)\.weight")
    kinds = [found[1] for name in names if (found := keyed.match(name))]
    num_images = kinds.count("query") // kinds.count("key")
    tree["text_fusion"] = {"num_layers": kinds.count("key"), "num_images": num_images}
    tree["projections"] = "both" if has("text_proj.") else "image" if has("vision_proj.") else "none"
    tree |= {"has_match_head": has("itm_head."), "has_box_head": has("bbox_head.")}
    tree["has_masked_language_head"] = has("text_encoder.cls.")
    if has("cls_head.") or has("ta_head."):
        tree["classifier"] = {"num_classes": 2, "num_layers": 2 if has("cls_head.") else 1}
    if has("text_decoder."):
        tree["answer_decoder"] = {"num_layers": num_decoder_layers(names)}
    image, text = tree["image_encoder"], tree["text_encoder"]
    if not image["depths"]:
        tree["image_encoder"] = vit_tree(names)
    elif has_one_width:
        text["width"] = image["width"] * 2 ** (len(image["depths"]) - 1)
    return tree


def vit_tree(names: set[str]) -> dict[str, Any]:
    """A ViT or a CLIP-ViT as wide as the text tower."""
    numbers = {found[1] for name in names if (found := re.match(r"vision_encoder\.\D*(\d+)\.", name))}
    sizes = {"image_size": 32, "patch_size": 16, "width": 8, "num_heads": 2, "num_layers": len(numbers)}
    return {"name": "vit", "is_clip": "vision_encoder.class_embedding" in names, **sizes}


def num_decoder_layers(names: Iterable[str]) -> int:
    return len({found[1] for name in names if (found := re.match(r"text_decoder\..*\.layer\.(\d+)\.", name))})


def check_schedule(epochs: int, num_warmup_steps: float, step_per_epoch: int, factors: list[float]) -> None:
    ours, total_steps = ScheduleConfig(name="linear", warmup=num_warmup_steps), epochs * step_per_epoch
    for step, factor in enumerate(factors):
        found = learning_rate_factor(ours, step, total_steps)
        assert abs(found - factor) <= 1e-9, (step, found, factor)


def check_updates(case: Any) -> None:
    """Every recorded step, with the rates of that step."""
    update, start = case.config["update"], {n[3:]: v for n, v in case.inputs.items() if n.startswith("p0.")}
    module = nn.Module()
    for name, value in start.items():
        part, _, kind = name.partition(".")
        if not hasattr(module, part):
            module.add_module(part, nn.Module())
        setattr(getattr(module, part), kind, nn.Parameter(value.clone()))
    settings = {name: update[name] for name in ("lr", "weight_decay", "betas", "eps")}
    config = OptimConfig(
        **settings, flavour="hf", no_decay=["bias"], decays_vectors=True, fresh_lr_multiplier=update["lr_mult"]
    )
    optimizer = make_optimizer(module, config, {name for name in start if name.startswith("head.")})
    for step, rates in enumerate(update["lr_used_at_step"]):
        for name, parameter in module.named_parameters():
            parameter.grad = case.inputs[f"g{step}.{name}"].clone()
        set_learning_rate(optimizer, config, rates[0] / update["lr"], step)
        optimizer.step()
        for name, parameter in module.named_parameters():
            assert_close(parameter, case.outputs[f"p{step + 1}.{name}"], f"p{step + 1}.{name}", 1e-6)


KINDS = {("cclm", "optimizer_schedule"): optimizer_schedule}
