"""Checkpoints of CCLM and CCRK: pre-training and fine-tuning layouts <-> our state dict.

Both systems name their parts alike. Pre-training files have `text_encoder.bert.` and `text_encoder.cls.`; fine-tuning
files have neither.
"""

from __future__ import annotations

from typing import Any, Literal

import torch

from compat import swin, vit
from compat.bert import embedding_entries, layer_entries, masked_head_entries
from compat.layout import Entry, State, Translation, to_ours, to_theirs, with_weight_and_bias

Stage = Literal["pretrain", "finetune"]
_VISION, _BACKBONE = "vision_encoder.", "image_encoder.backbone."
RELEASED = {"pretrain": "configs/ccrk/pretrain_3m.yaml", "finetune": "configs/ccrk/retrieval_multi30k_en.yaml"}


def recognise(state: State) -> Stage | None:
    """Which layout a state dict has, None if it is not CCLM's or CCRK's."""
    if not any(name.startswith(_VISION) for name in state):
        return None
    if any(name.startswith("text_encoder.bert.encoder.") for name in state):
        return "pretrain"
    return "finetune" if any(name.startswith("text_encoder.encoder.") for name in state) else None


def released_config(state: State) -> str:
    """Our configuration of the released model that a checkpoint holds."""
    return RELEASED[recognise(state)]


def entries(model: dict[str, Any], stage: Stage) -> list[Entry]:
    """The table of everything but the image tower, for the model tree of a config."""
    text = "text_encoder.bert." if stage == "pretrain" else "text_encoder."
    num_text = model["text_encoder"]["num_layers"]
    num_fusion = (model.get("text_fusion") or {}).get("num_layers", 0)
    table = embedding_entries("text_encoder", f"{text}embeddings")
    for number in range(num_text):
        table += layer_entries(
            f"text_encoder.layers.{number}", f"{text}encoder.layer.{number}", has_cross_attention=False
        )
    for number in range(num_fusion):
        theirs = f"{text}encoder.layer.{num_text + number}"
        table += layer_entries(f"text_fusion.layers.{number}", theirs, has_cross_attention=True)
    table += _common_space_entries(model)
    if stage == "pretrain" and model.get("has_masked_language_head"):
        cls = "text_encoder.cls.predictions"
        table += masked_head_entries(
            "masked_language_head", f"{cls}.transform.dense", f"{cls}.transform.LayerNorm", f"{cls}.bias"
        )
    return table


def _common_space_entries(model: dict[str, Any]) -> list[Entry]:
    table, projections = [], model.get("projections", "both")
    if projections == "both":
        table += [Entry("temperature.value", ("temp",)), *with_weight_and_bias("text_projection", "text_proj")]
    if projections != "none" and not model.get("shared_projection"):
        table += with_weight_and_bias("image_projection", "vision_proj")
    if model.get("text_fusion") and model.get("has_match_head", True):
        for number in (0, 1, 3):
            table += with_weight_and_bias(f"match_head.{number}", f"itm_head.{number}")
    return table


def from_checkpoint(state: State, model: dict[str, Any]) -> Translation:
    """Our state for the model tree of a config; bias tables are interpolated to its window."""
    stage = recognise(state)
    if stage is None:
        raise ValueError(f"not a CCLM or CCRK checkpoint; first keys: {', '.join(list(state)[:4])}")
    vision = {name.removeprefix(_VISION): value for name, value in state.items() if name.startswith(_VISION)}
    rest = {name: value for name, value in state.items() if not name.startswith(_VISION)}
    ours, missing, unexpected = to_ours(rest, entries(model, stage))
    translation = Translation(ours, missing)
    tower = vision_to_timm(vision, model["image_encoder"])
    ours |= {f"{_BACKBONE}{name}": value for name, value in tower.items()}
    for name in unexpected:
        reason = _why_unused(name, model)
        if reason:
            translation.left_out[name] = reason
        else:
            translation.unexpected.append(name)
    return translation


def to_checkpoint(state: State, model: dict[str, Any], stage: Stage) -> State:
    """A state dict in the original layout, tied tensors under all their names and buffers included."""
    theirs = to_theirs(state, entries(model, stage))
    tower = {name.removeprefix(_BACKBONE): value for name, value in state.items() if name.startswith(_BACKBONE)}
    theirs |= {f"{_VISION}{name}": value for name, value in vision_to_original(tower, model["image_encoder"]).items()}
    text = "text_encoder.bert." if stage == "pretrain" else "text_encoder."
    theirs[f"{text}embeddings.position_ids"] = torch.arange(model["text_encoder"]["max_positions"])[None]
    if stage == "pretrain" and model.get("has_masked_language_head"):
        theirs["text_encoder.cls.predictions.decoder.weight"] = theirs[f"{text}embeddings.word_embeddings.weight"]
        theirs["text_encoder.cls.predictions.decoder.bias"] = theirs["text_encoder.cls.predictions.bias"]
    return theirs


def vision_to_timm(vision: State, image: dict[str, Any]) -> State:
    """The image tower's keys under timm's names: Swin, DeiT or CLIP-ViT."""
    return swin.to_timm(vision, image) if image.get("name") == "swin" else vit.to_timm(vision, image)


def vision_to_original(tower: State, image: dict[str, Any]) -> State:
    """The image tower's keys under the original names, buffers included."""
    if image.get("name") == "swin":
        return swin.to_original(tower, image)
    return vit.to_clip(tower, image) if image.get("is_clip") else tower


def _why_unused(name: str, model: dict[str, Any]) -> str:
    """Why a foreign key has no place in our model, "" if there is no good reason."""
    if name.endswith("position_ids"):
        return "a counter 0, 1, 2, ..."
    if name.startswith("text_encoder.cls.predictions.decoder."):
        return "tied to the word embedding or to the head's bias"
    if name.startswith("text_encoder.cls.") and not model.get("has_masked_language_head"):
        return "this model has no masked-language head"
    if name.startswith("bbox_head."):
        return "this model has no box head"
    projections = model.get("projections", "both")
    if name == "temp" or name.startswith("text_proj."):
        return "this model has no common space of images and texts" if projections != "both" else ""
    if name.startswith("vision_proj."):
        return "this model does not project images" if projections == "none" else ""
    if name.startswith("itm_head.") and not (model.get("text_fusion") and model.get("has_match_head", True)):
        return "this model has no match head"
    return ""
