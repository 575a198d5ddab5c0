"""Checkpoints of R2D2 and PRD2 <-> our state dict.

Both stacks of R2D2 carry embedding tables that nothing reads, the text tower a pooler, the image tower a last norm.
They are named as left out when a file is read. Written files have every key of the released ones, these with neutral
values (zeros, a norm's ones): their values cannot matter, and a file of ours has no others.
"""

from __future__ import annotations

import re
from typing import Any, Literal

import torch

from compat import vit
from compat.bert import embedding_entries, layer_entries
from compat.layout import Entry, State, Translation, to_ours, to_theirs, with_weight_and_bias

Stage = Literal["r2d2", "prd2"]
_VISION, _BACKBONE = "visual_encoder.", "image_encoder.backbone."
# Our names of the stacks and heads, and theirs.
_STACKS = {"text_fusion": "text_joint_layer", "image_fusion": "img_joint_layer"}
_HEADS = {"match_head": "itm_head", "image_match_head": "itm_head_i", "image_fusion_projection": "img_joint_proj"}
_POOLER = "text_encoder.pooler.dense"
_LARGE_WIDTH = 1024
# State of a pre-training run that no model needs: momentum copies, queues, the masked-language head, running means.
_PRETRAINING = re.compile(r"(_m\.|_m$|queue|(^|\.)cls\.|mlm|_center$|_mean$)")


def recognise(state: State) -> Stage | None:
    """Whether a state dict is R2D2's or PRD2's; None if it is neither's."""
    if f"{_VISION}pre_layrnorm.weight" not in state or "vision_proj.weight" not in state:
        return None
    return "r2d2" if any(name.startswith(tuple(_STACKS.values())) for name in state) else "prd2"


def released_config(state: State) -> str:
    """Our configuration of the released model that a checkpoint holds, by its width."""
    if recognise(state) == "prd2":
        return "configs/r2d2/prd2_large.yaml"
    size = "large" if state["vision_proj.weight"].shape[1] == _LARGE_WIDTH else "base"
    return f"configs/r2d2/flickr_cna_{size}.yaml"


def entries(model: dict[str, Any]) -> list[Entry]:
    """The table of everything but the image tower, for the model tree of a config."""
    table = [Entry("temperature.value", ("temp",))]
    table += embedding_entries("text_encoder", "text_encoder.embeddings")
    for number in range(model["text_encoder"]["num_layers"]):
        ours, theirs = f"text_encoder.layers.{number}", f"text_encoder.encoder.layer.{number}"
        table += layer_entries(ours, theirs, has_cross_attention=False)
    table += with_weight_and_bias("text_projection", "text_proj")
    table += with_weight_and_bias("image_projection", "vision_proj")
    for ours, theirs in _stacks(model).items():
        for number in range(model[ours]["num_layers"]):
            table += layer_entries(
                f"{ours}.layers.{number}", f"{theirs}.encoder.layer.{number}", has_cross_attention=True
            )
    for ours, theirs in _heads(model).items():
        table += with_weight_and_bias(ours, theirs)
    return table


def from_checkpoint(state: State, model: dict[str, Any]) -> Translation:
    """Our state for the model tree of a config; a position table of another image size is interpolated."""
    vision = {name.removeprefix(_VISION): value for name, value in state.items() if name.startswith(_VISION)}
    rest = {name: value for name, value in state.items() if not name.startswith(_VISION)}
    ours, missing, unexpected = to_ours(rest, entries(model))
    translation = Translation(ours, missing)
    positions = vision.pop("embeddings.position_ids", None)
    if positions is not None:
        translation.left_out[f"{_VISION}embeddings.position_ids"] = "a counter 0, 1, 2, ..."
    tower = vit.to_timm(vision, model["image_encoder"])
    if not model["image_encoder"].get("final_norm", True):
        for name in ("norm.weight", "norm.bias"):
            del tower[name]
            translation.left_out[f"{_VISION}post_layernorm.{name[5:]}"] = "acts on a pooled output that nothing reads"
    ours |= {f"{_BACKBONE}{name}": value for name, value in tower.items()}
    for name in unexpected:
        reason = _why_unused(name, model)
        if reason:
            translation.left_out[name] = reason
        else:
            translation.unexpected.append(name)
    return translation


def to_checkpoint(state: State, model: dict[str, Any], stage: Stage) -> State:
    """A state dict in the original layout, with what nothing reads at neutral values."""
    if stage == "r2d2" and not (model.get("text_fusion") and model.get("image_fusion")):
        raise ValueError("r2d2 has a text and an image fusion stack; this model has not both, export it as prd2")
    if model.get("shared_projection") or not model["image_encoder"].get("is_clip"):
        raise ValueError(f"{stage} has a CLIP image tower and a projection for each side; this model has not")
    if stage == "prd2":
        model = {name: value for name, value in model.items() if name not in _STACKS}
    theirs = to_theirs(state, entries(model))
    tower = {name.removeprefix(_BACKBONE): value for name, value in state.items() if name.startswith(_BACKBONE)}
    theirs |= {f"{_VISION}{name}": value for name, value in _vision_to_original(tower, model).items()}
    width = model["text_encoder"]["width"]
    theirs |= {f"{_POOLER}.weight": _zeros(width, width), f"{_POOLER}.bias": _zeros(width)}
    counter = torch.arange(model["text_encoder"]["max_positions"])[None]
    theirs["text_encoder.embeddings.position_ids"] = counter
    for prefix in _stacks(model).values():
        theirs |= {
            f"{prefix}.embeddings.position_ids": counter,
            f"{prefix}.embeddings.word_embeddings.weight": _zeros(model["text_encoder"]["vocab_size"], width),
            f"{prefix}.embeddings.position_embeddings.weight": _zeros(counter.shape[1], width),
            f"{prefix}.embeddings.LayerNorm.weight": torch.ones(width),
            f"{prefix}.embeddings.LayerNorm.bias": _zeros(width),
        }
    return theirs


def _vision_to_original(tower: State, model: dict[str, Any]) -> State:
    public = {"patch_embed.weight": "patch_embedding.weight", "pos_embed.weight": "position_embedding.weight"}
    in_embeddings = {**public, "class_embedding": "class_embedding", "position_ids": "position_ids"}
    theirs = {
        f"embeddings.{in_embeddings[name]}" if name in in_embeddings else name: value
        for name, value in vit.to_clip(tower, model["image_encoder"]).items()
    }
    width = model["image_encoder"]["width"]
    theirs.setdefault("post_layernorm.weight", torch.ones(width))
    theirs.setdefault("post_layernorm.bias", _zeros(width))
    return theirs


def _stacks(model: dict[str, Any]) -> dict[str, str]:
    return {ours: theirs for ours, theirs in _STACKS.items() if model.get(ours)}


def _heads(model: dict[str, Any]) -> dict[str, str]:
    has = {"match_head": model.get("text_fusion")}
    return {ours: theirs for ours, theirs in _HEADS.items() if has.get(ours, model.get("image_fusion"))}


def _zeros(*shape: int) -> torch.Tensor:
    """Zeros that take the room of a single number, in memory and in a file written by torch."""
    return torch.zeros(()).expand(shape)


def _why_unused(name: str, model: dict[str, Any]) -> str:
    """Why a foreign key has no place in our model, "" if there is no good reason."""
    if name.endswith("position_ids"):
        return "a counter 0, 1, 2, ..."
    if name.startswith(_POOLER):
        return "a pooler that nothing reads"
    if _PRETRAINING.search(name):
        return "state of a pre-training run: a momentum copy, a queue or the masked-language head"
    stacks = _stacks(model)
    for prefix in _STACKS.values():
        if name.startswith(f"{prefix}.") and prefix not in stacks.values():
            return "this model has no such fusion stack"
        if name.startswith(f"{prefix}.embeddings."):
            return "a table that nothing reads: the stack starts from the towers' tokens"
    unused = [theirs for ours, theirs in _HEADS.items() if ours not in _heads(model)]
    return "this model has no such fusion stack" if name.rpartition(".")[0] in unused else ""
