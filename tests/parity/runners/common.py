"""What the runners share: reading a case, comparing tensors."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor, nn

from compat import cclm_weights
from compat.cclm_sizes import model_section

# Tolerances of the fixtures: outputs and losses 1e-5 (relative to the largest value of a tensor), gradient norms 1e-4.
OUTPUT_TOLERANCE = 1e-5
LOSS_TOLERANCE = 1e-6
GRADIENT_TOLERANCE = 1e-4


@dataclass
class Case:
    config: dict[str, Any]
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]
    state: dict[str, Tensor]


def read_case(folder: Path) -> Case:
    def tensors(name: str) -> dict[str, Tensor]:
        path = folder / f"{name}.safetensors"
        return load_file(path) if path.exists() else {}

    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return Case(config, tensors("inputs"), tensors("outputs"), tensors("state_dict"))


def assert_close(found: Tensor, expected: Tensor, what: str, tolerance: float = OUTPUT_TOLERANCE) -> None:
    found = found.detach().reshape(expected.shape).to(expected.dtype)
    scale = max(1.0, float(expected.abs().max())) if expected.numel() else 1.0
    difference = float((found - expected).abs().max()) if expected.numel() else 0.0
    assert difference <= tolerance * scale, f"{what}: differs by {difference:.3g}, allowed {tolerance * scale:.3g}"


def assert_loss(found: Tensor, expected: Tensor, what: str, temperature: Tensor | None = None) -> None:
    """LOSS_TOLERANCE, and what the rounding of logits divided by a temperature leaves open."""
    scale = max(1.0, abs(float(expected)))
    assert_close(found, expected, what, LOSS_TOLERANCE + logit_rounding(temperature) / scale)


def weight_tolerance(temperature: Tensor | None) -> float:
    """What is allowed to weights that are a softmax of logits divided by a temperature."""
    return max(OUTPUT_TOLERANCE, logit_rounding(temperature))


def logit_rounding(temperature: Tensor | None) -> float:
    """Two roundings of the same cosine lie 1e-7 apart: their logits 1e-6 at 0.07 and 1e-4 at the least temperature of
    the originals, 0.001, where float64 is as far from either.
    """
    return 0.0 if temperature is None else 1e-7 / float(temperature.detach())


def temperature_gradient_rounding(temperature: Tensor | None) -> float:
    """How well the temperature's own gradient is known, which sums rounded logits divided by it, and their softmax.

    That is nothing at 0.07, and a thousandth of the gradient at the least temperature, 0.001.
    """
    if temperature is None:
        return 0.0
    divisor = float(temperature.detach())
    return 5e-7 / divisor**2 + 1e-8 / divisor**3


def assert_gradient(found: Tensor, expected: Tensor, what: str, floor: float = 0.0) -> None:
    found, expected = float(found), float(expected)
    allowed = GRADIENT_TOLERANCE * max(abs(expected), 1e-6) + floor
    assert abs(found - expected) <= allowed, f"gradient norm of {what}: {found:.8g}, expected {expected:.8g}"


def assert_gradient_norms(found: dict[str, Tensor], path: Path, temperature: Tensor | None = None) -> None:
    """Norms by original name against a JSON file; null means no gradient.

    Some gradients are zero but for rounding (a key's bias moves all logits of a softmax alike): below a millionth of
    the largest norm only the order of magnitude counts.
    """
    expected = json.loads(path.read_text(encoding="utf-8"))
    floor = 1e-6 * max(value or 0.0 for value in expected.values())
    rounding = {"temp": temperature_gradient_rounding(temperature)}
    for name, value in expected.items():
        norm = float(found[name]) if name in found else 0.0
        allowed = GRADIENT_TOLERANCE * (value or 0.0) + floor + rounding.get(name, 0.0)
        assert abs(norm - (value or 0.0)) <= allowed, f"gradient norm of {name}: {norm:.8g}, expected {value}"


def mean_gradients(model: nn.Module) -> dict[str, Tensor]:
    """The gradient of every parameter, zero where it has none, mean over the processes."""
    found = {}
    for name, parameter in model.named_parameters():
        found[name] = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()
        if dist.is_initialized():
            dist.all_reduce(found[name])
            found[name] /= dist.get_world_size()
    return found


def assert_rank_gradients(
    model: nn.Module, tree: dict[str, Any], outputs: dict[str, Tensor], norms: Path, temperature: Tensor
) -> None:
    """This rank's gradients (`grad_local.*`) and their means over ranks (`grad_mean.*`) as in outputs; norms of all."""
    stage = "pretrain" if tree.get("has_masked_language_head") else "finetune"
    local = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in model.named_parameters()}
    written = {
        "grad_local": cclm_weights.to_checkpoint(local, tree, stage),
        "grad_mean": cclm_weights.to_checkpoint(mean_gradients(model), tree, stage),
    }
    for key, expected in outputs.items():
        kind, _, name = key.partition(".")
        if kind in written:
            rounding = temperature_gradient_rounding(temperature) if name == "temp" else 0.0
            assert (written[kind][name] - expected).norm() <= GRADIENT_TOLERANCE * expected.norm() + rounding, key
    found = {name: value.norm() for name, value in written["grad_mean"].items() if value.is_floating_point()}
    assert_gradient_norms(found, norms, temperature)


def bert_tree(text: dict[str, Any]) -> dict[str, Any]:
    """The sizes of a `text_encoder` section for those of a Hugging Face BERT."""
    return {
        "name": "bert",
        "vocab_size": text["vocab_size"],
        "width": text["hidden_size"],
        "num_layers": text.get("num_hidden_layers"),
        "num_heads": text["num_attention_heads"],
        "mlp_width": text["intermediate_size"],
        "max_positions": text["max_position_embeddings"],
    }


def cclm_model_tree(config: dict[str, Any], *, is_pretraining: bool = False) -> dict[str, Any]:
    """The `model` section of our config for a case of CCLM, through the translation of its YAML files."""
    return model_section(
        config["config"], config["vision_config"], config["text_config"], is_pretraining=is_pretraining
    )
