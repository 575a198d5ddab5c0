"""The answer decoder of CCLM's question answering: its keys, and how a pre-trained model without one becomes one."""

from __future__ import annotations

import re
from typing import Any

import torch

from compat.bert import embedding_entries, layer_entries, masked_head_entries
from compat.layout import Entry, State

_THEIRS, _OURS = "text_decoder.", "answer_decoder."
_EMBEDDING = re.compile(r"text_encoder\.((?:word|position|token_type|norm)\..*)")
_LAYER = re.compile(r"text_fusion\.layers\.(\d+)\.(.*)")


def decoder_entries(model: dict[str, Any]) -> list[Entry]:
    """The table of the decoder, empty for a model without one."""
    if not model.get("answer_decoder"):
        return []
    cls = f"{_THEIRS}cls.predictions"
    table = embedding_entries(f"{_OURS}embedding", f"{_THEIRS}bert.embeddings")
    for number in range(model["answer_decoder"]["num_layers"]):
        theirs = f"{_THEIRS}bert.encoder.layer.{number}"
        table += layer_entries(f"{_OURS}layers.{number}", theirs, has_cross_attention=True)
    return table + masked_head_entries(
        f"{_OURS}head", f"{cls}.transform.dense", f"{cls}.transform.LayerNorm", f"{cls}.bias"
    )


def derived_keys(theirs: State, model: dict[str, Any]) -> State:
    """What a file of the original has besides: the counter of positions, and tied tensors under their second name."""
    if not model.get("answer_decoder"):
        return {}
    cls = f"{_THEIRS}cls.predictions"
    return {
        f"{_THEIRS}bert.embeddings.position_ids": torch.arange(model["text_encoder"]["max_positions"])[None],
        f"{cls}.decoder.weight": theirs[f"{_THEIRS}bert.embeddings.word_embeddings.weight"],
        f"{cls}.decoder.bias": theirs[f"{cls}.bias"],
    }


def is_derived(name: str) -> bool:
    """Whether a foreign key is one of the `derived_keys` that are tied."""
    return name.startswith(f"{_THEIRS}cls.predictions.decoder.")


def becomes_decoder(entry: Entry, state: State, model: dict[str, Any]) -> bool:
    """Whether a file's masked-language head, which the model has no place for, is what its decoder is made from."""
    is_head = entry.ours.startswith("masked_language_head.")
    return bool(model.get("answer_decoder")) and is_head and all(name in state for name in entry.theirs)


def make_decoder(state: State, model: dict[str, Any]) -> tuple[State, list[str]]:
    """The decoder's weights from those of a model without one, in our keys, and the names that stay fresh.

    Layer j is fusion layer j, the embeddings are the text tower's and the head is the masked-language head. The keys
    and values of fusion layers read images, the decoder's read texts: those of another width are not taken.
    Nothing for a model without a decoder, or when the state has one.
    """
    decoder = model.get("answer_decoder")
    if not decoder or any(name.startswith(_OURS) for name in state):
        return {}, []
    made, fresh = {}, []
    for name, value in state.items():
        if found := _EMBEDDING.fullmatch(name):
            made[f"{_OURS}embedding.{found[1]}"] = value
        elif name.startswith("masked_language_head."):
            made[f"{_OURS}head.{name.removeprefix('masked_language_head.')}"] = value
        elif (found := _LAYER.fullmatch(name)) and int(found[1]) < decoder["num_layers"]:
            ours = f"{_OURS}layers.{name.removeprefix('text_fusion.layers.')}"
            if name.endswith("cross_attention.key_value.weight") and value.shape[1] != model["text_encoder"]["width"]:
                fresh += [ours, ours.removesuffix("weight") + "bias"]
            else:
                made[ours] = value
    return {name: value for name, value in made.items() if name not in fresh}, fresh
