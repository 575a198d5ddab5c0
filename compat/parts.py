"""Which parts the model of a config has, and what becomes of weights for a model with more, fewer or repeated parts."""

from __future__ import annotations

import re
from typing import Any

from compat.cclm_decoder import make_decoder
from compat.layout import State, Translation

_FUSION_LAYER = re.compile(r"text_fusion\.layers\.(\d+)\.(.*)")


def absent_part(name: str, model: dict[str, Any]) -> str:
    """Why the model of this tree has no place for one of our keys, "" if it has one."""
    has_fusion = bool(model.get("text_fusion"))
    projections = model.get("projections", "both")
    classifier = model.get("classifier")
    parts = {
        "masked_language_head.": (model.get("has_masked_language_head", False), "no masked-language head"),
        "text_fusion.": (has_fusion, "no fusion stack"),
        "image_fusion": (bool(model.get("image_fusion")), "no image fusion stack"),
        "image_match_head.": (bool(model.get("image_fusion")), "no image fusion stack"),
        "box_head.": (model.get("has_box_head", False), "no box head"),
        "match_head.": (has_fusion and model.get("has_match_head", True), "no matching head"),
        "text_projection.": (projections == "both", "no projection of texts"),
        "image_projection.": (projections != "none", "no projection of images"),
        "temperature.": (projections == "both", "no temperature"),
        "classifier.": (classifier is not None, "no classifier"),
        "answer_decoder.": (bool(model.get("answer_decoder")), "no answer decoder"),
    }
    for beginning, (is_there, words) in parts.items():
        if name.startswith(beginning) and not is_there:
            return f"this model has {words}"
    if classifier and name.startswith("classifier."):
        is_linear = name in ("classifier.weight", "classifier.bias")
        if is_linear != (classifier.get("num_layers", 2) == 1):
            return "this model has a classifier of another form"
    return ""


def fit_parts(translation: Translation, model: dict[str, Any]) -> Translation:
    """The translation without the parts that the model lacks, with as many copies of fusion layers as it has, and with
    an answer decoder made from them.
    """
    decoder, fresh = make_decoder(translation.state, model)
    translation.state |= decoder
    translation.fresh += fresh
    for name in list(translation.state):
        reason = absent_part(name, model)
        if reason:
            del translation.state[name]
            translation.left_out[name] = reason
    translation.state = _repeat_fusion_layers(translation.state, model.get("text_fusion") or {})
    return translation


def _repeat_fusion_layers(state: State, fusion: dict[str, Any]) -> State:
    """Every fusion layer once for each image that a text reads; the copies read the first one's keys and values."""
    num_images = fusion.get("num_images", 1)
    numbers = {int(found[1]) for name in state if (found := _FUSION_LAYER.match(name))}
    if num_images == 1 or len(numbers) != fusion["num_layers"]:
        return state
    repeated: State = {}
    for name, value in state.items():
        found = _FUSION_LAYER.match(name)
        if not found:
            repeated[name] = value
            continue
        first = int(found[1]) * num_images
        num_copies = 1 if found[2].startswith("cross_attention.key_value.") else num_images
        for layer in range(first, first + num_copies):
            repeated[f"text_fusion.layers.{layer}.{found[2]}"] = value
    return repeated
