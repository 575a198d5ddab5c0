"""Checkpoints of ZeroVL: its dual encoder, and the image tower of its linear probe, <-> our state dict."""

from __future__ import annotations

from typing import Any, Literal

import torch

from compat import vit
from compat.bert import FOREIGN_TOWER, embedding_entries, is_idle, layer_entries
from compat.layout import Entry, State, Translation, to_ours, to_theirs, with_weight_and_bias

Stage = Literal["clip"]
_IMAGE, _TEXT, _BACKBONE = "image_encoder.model.model.", "text_encoder.model.model.", "image_encoder.backbone."
_TEMPERATURE = "loss.temperature"
RELEASED = "configs/zerovl/zerovl_14m_eval.yaml"


def recognise(state: State) -> bool:
    """Whether a state dict has ZeroVL's names."""
    return any(name.startswith(_IMAGE) for name in state)


def released_config(state: State) -> str:
    """Our configuration of the released 14M model; the 100M model's file does not tell itself apart, its pixels do."""
    return RELEASED


def entries(model: dict[str, Any]) -> list[Entry]:
    """The table of everything but the image tower, and a text tower in the library's own names, for the model tree of
    a config.
    """
    table = [Entry("temperature.value", (_TEMPERATURE,))] if is_learned(model) else []
    if not is_foreign(model):
        table += embedding_entries("text_encoder", f"{_TEXT}embeddings")
        for number in range(model["text_encoder"]["num_layers"]):
            theirs = f"{_TEXT}encoder.layer.{number}"
            table += layer_entries(f"text_encoder.layers.{number}", theirs, has_cross_attention=False)
    for side in ("image", "text"):
        if form(model) == "complex":
            for part in ("projection", "fc", "layer_norm"):
                table += with_weight_and_bias(f"{side}_projection.{part}", f"{side}_projection.{part}")
        else:
            table.append(Entry(f"{side}_projection.weight", (f"{side}_projection.linear.weight",)))
    return table


def is_foreign(model: dict[str, Any]) -> bool:
    """Whether the text tower is the transformers library's, whose names it keeps."""
    return model["text_encoder"].get("name") == "hugging_face"


def is_learned(model: dict[str, Any]) -> bool:
    """Whether the temperature is a parameter, which ZeroVL's files then hold."""
    return model.get("temperature", {}).get("is_learned", True)


def form(model: dict[str, Any]) -> str:
    """The kind of the projections."""
    return model.get("projection_form", {}).get("kind", "linear")


def from_checkpoint(state: State, model: dict[str, Any]) -> Translation:
    """Our state for the model tree of a config; position embeddings are interpolated to its grid, bicubic."""
    image = {name.removeprefix(_IMAGE): value for name, value in state.items() if name.startswith(_IMAGE)}
    rest = {name: value for name, value in state.items() if not name.startswith(_IMAGE)}
    ours, missing, unexpected = to_ours(rest, entries(model))
    if "temperature.value" not in ours and not is_learned(model):
        ours["temperature.value"] = torch.tensor(float(model.get("temperature", {}).get("initial", 0.07)))
    tower = image
    if image and model["image_encoder"]["name"] == "vit":
        tower = vit.to_timm(image, model["image_encoder"])
    translation = Translation(ours | {f"{_BACKBONE}{name}": value for name, value in tower.items()}, missing)
    for name in unexpected:
        own = name.removeprefix(_TEXT)
        if is_foreign(model) and own != name and not is_idle(own):
            translation.state[f"{FOREIGN_TOWER}{own}"] = rest[name]
        elif reason := _why_unused(name, model):
            translation.left_out[name] = reason
        else:
            translation.unexpected.append(name)
    return translation


def to_checkpoint(state: State, model: dict[str, Any], stage: Stage = "clip") -> State:
    """A state dict in the original layout; a constant temperature is not part of it."""
    tower = {name.removeprefix(_BACKBONE): value for name, value in state.items() if name.startswith(_BACKBONE)}
    text = {n.removeprefix(FOREIGN_TOWER): value for n, value in state.items() if n.startswith(FOREIGN_TOWER)}
    towers = {f"{_IMAGE}{name}": value for name, value in tower.items()}
    return towers | {f"{_TEXT}{name}": value for name, value in text.items()} | to_theirs(state, entries(model))


def _why_unused(name: str, model: dict[str, Any]) -> str:
    if name.endswith("position_ids"):
        return "a counter 0, 1, 2, ..."
    if name == _TEMPERATURE:
        return f"this model's temperature is the constant {model['temperature']['initial']}"
    if name.startswith("classifier."):
        return "the classifier of a linear probe"
    if name.startswith(f"{_TEXT}pooler."):
        return "a pooler that nothing reads"
    return ""
