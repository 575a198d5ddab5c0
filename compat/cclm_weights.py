"""Checkpoints of CCLM and CCRK: pre-training and fine-tuning layouts <-> our state dict.

Both systems name their parts alike. Pre-training files have `text_encoder.bert.` and `text_encoder.cls.`; fine-tuning
files have neither, and of the heads only those of their task.
"""

from __future__ import annotations

from typing import Any, Literal

import torch

from compat import swin, vit
from compat.bert import embedding_entries, layer_entries, masked_head_entries
from compat.cclm_decoder import becomes_decoder, decoder_entries, derived_keys, is_derived
from compat.layout import Entry, State, Translation, to_ours, to_theirs, with_weight_and_bias
from compat.parts import absent_part, fit_parts

Stage = Literal["pretrain", "finetune"]
_VISION, _BACKBONE = "vision_encoder.", "image_encoder.backbone."
# Our configuration of the released model of every layout.
RELEASED = {
    "pretrain": "configs/ccrk/pretrain_3m.yaml",
    "retrieval": "configs/ccrk/retrieval_multi30k_en.yaml",
    "xvnli": "configs/cclm/xvnli.yaml",
    "vqa": "configs/cclm/gqa.yaml",
    "nlvr": "configs/cclm/nlvr.yaml",
    "nlvr_pretrain": "configs/cclm/nlvr_pretrain.yaml",
}


def recognise(state: State) -> Stage | None:
    """Which layout a state dict has, None if it is not CCLM's or CCRK's."""
    if not any(name.startswith(_VISION) for name in state):
        return None
    if any(name.startswith("text_encoder.bert.encoder.") for name in state):
        return "pretrain"
    return "finetune" if any(name.startswith("text_encoder.encoder.") for name in state) else None


def layout_of(state: State) -> str:
    """Whose weights a recognised state dict holds: `pretrain`, or the task that it was fine-tuned for."""
    if recognise(state) == "pretrain":
        return "pretrain"
    if has_decoder(state):
        return "vqa"
    if "ta_head.weight" in state:
        return "nlvr_pretrain"
    if "cls_head.0.weight" in state:
        # NLVR's fusion reads two images, and so has twice as many layers as the text tower.
        return "nlvr" if _num_fusion_layers(state) * 3 == _num_layers(state) * 2 else "xvnli"
    return "retrieval"


def has_decoder(state: State) -> bool:
    """Whether a file holds a model for question answering."""
    return any(name.startswith("text_decoder.") for name in state)


def released_config(state: State) -> str:
    """Our configuration of the released model that a checkpoint holds; only CCLM's pre-trained ones predict boxes."""
    if "bbox_head.0.weight" in state:
        return "configs/cclm/pretrain_3m.yaml"
    return RELEASED[layout_of(state)]


def entries(model: dict[str, Any], stage: Stage, num_images: int | None = None) -> list[Entry]:
    """The table of everything but the image tower that a file of this stage may hold, sizes from a model tree.

    num_images: for how many images of a text the file has a copy of every fusion layer; absent, as the model.
    """
    text = "text_encoder.bert." if stage == "pretrain" else "text_encoder."
    num_text = model["text_encoder"]["num_layers"]
    table = [Entry("temperature.value", ("temp",)), *embedding_entries("text_encoder", f"{text}embeddings")]
    for number in range(num_text):
        table += layer_entries(
            f"text_encoder.layers.{number}", f"{text}encoder.layer.{number}", has_cross_attention=False
        )
    table += _fusion_entries(model, f"{text}encoder.layer", num_images)
    table += with_weight_and_bias("text_projection", "text_proj")
    if not model.get("shared_projection"):
        table += with_weight_and_bias("image_projection", "vision_proj")
    for number in (0, 1, 3):
        table += with_weight_and_bias(f"match_head.{number}", f"itm_head.{number}")
        table += with_weight_and_bias(f"classifier.{number}", f"cls_head.{number}")
        table += with_weight_and_bias(f"box_head.{number}", f"bbox_head.{number}")
    table += with_weight_and_bias("classifier", "ta_head")
    cls = "text_encoder.cls.predictions"
    return table + masked_head_entries(
        "masked_language_head", f"{cls}.transform.dense", f"{cls}.transform.LayerNorm", f"{cls}.bias"
    )


def _fusion_entries(model: dict[str, Any], theirs: str, num_images: int | None) -> list[Entry]:
    """The fusion layers; those that read the images of one text share their keys and values."""
    fusion, table = model.get("text_fusion") or {}, []
    num_images = num_images or fusion.get("num_images", 1)
    for number in range(fusion.get("num_layers", 0) * num_images):
        table += layer_entries(
            f"text_fusion.layers.{number}",
            f"{theirs}.{model['text_encoder']['num_layers'] + number}",
            has_cross_attention=True,
            keys_from=f"text_fusion.layers.{number - number % num_images}",
        )
    return table


def from_checkpoint(state: State, model: dict[str, Any]) -> Translation:
    """Our state for the model tree of a config; bias tables are interpolated to its window, fusion layers repeated."""
    stage = recognise(state)
    if stage is None:
        raise ValueError(f"not a CCLM or CCRK checkpoint; first keys: {', '.join(list(state)[:4])}")
    vision = {name.removeprefix(_VISION): value for name, value in state.items() if name.startswith(_VISION)}
    rest = {name: value for name, value in state.items() if not name.startswith(_VISION)}
    num_layers = (model.get("text_fusion") or {}).get("num_layers", 0)
    table = entries(model, stage, 1 if _num_fusion_layers(rest) == num_layers else None)
    if has_decoder(rest):
        table += decoder_entries(model)
    absent = {entry: reason for entry in table if (reason := absent_part(entry.ours, model))}
    for entry in [entry for entry in absent if becomes_decoder(entry, rest, model)]:
        del absent[entry]
    ours, missing, unexpected = to_ours(rest, [entry for entry in table if entry not in absent])
    absent = {name: reason for entry, reason in absent.items() for name in entry.theirs}
    translation = Translation(ours, missing)
    tower = vision_to_timm(vision, model["image_encoder"])
    ours |= {f"{_BACKBONE}{name}": value for name, value in tower.items()}
    for name in unexpected:
        reason = absent.get(name) or _why_unused(name, model)
        if reason:
            translation.left_out[name] = reason
        else:
            translation.unexpected.append(name)
    return fit_parts(translation, model)


def to_checkpoint(state: State, model: dict[str, Any], stage: str) -> State:
    """A state dict in the original layout, tied tensors under all their names and buffers included.

    stage: `pretrain`, `finetune` (whatever the model's task is), or the task, which must be the model's.
    """
    is_pretraining = stage == "pretrain"
    table = entries(model, "pretrain" if is_pretraining else "finetune")
    theirs = to_theirs(state, table + decoder_entries(model))
    theirs |= derived_keys(theirs, model)
    tower = {name.removeprefix(_BACKBONE): value for name, value in state.items() if name.startswith(_BACKBONE)}
    theirs |= {f"{_VISION}{name}": value for name, value in vision_to_original(tower, model["image_encoder"]).items()}
    text = "text_encoder.bert." if is_pretraining else "text_encoder."
    theirs[f"{text}embeddings.position_ids"] = torch.arange(model["text_encoder"]["max_positions"])[None]
    if is_pretraining and model.get("has_masked_language_head"):
        theirs["text_encoder.cls.predictions.decoder.weight"] = theirs[f"{text}embeddings.word_embeddings.weight"]
        theirs["text_encoder.cls.predictions.decoder.bias"] = theirs["text_encoder.cls.predictions.bias"]
    if not is_pretraining:
        only_there = ("text_encoder.cls.", "bbox_head.")
        theirs = {name: value for name, value in theirs.items() if not name.startswith(only_there)}
    if stage in RELEASED and layout_of(theirs) != stage:
        raise ValueError(f"these weights are a model for {layout_of(theirs)}, which cannot be written as {stage}")
    return theirs


def _num_layers(state: State) -> int:
    """Text and fusion layers of a file."""
    return sum(name.endswith(".attention.self.query.weight") for name in state if name.startswith("text_encoder."))


def _num_fusion_layers(state: State) -> int:
    """Layers of a file that read images."""
    return sum(name.endswith(".crossattention.self.query.weight") for name in state if name.startswith("text_encoder."))


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
    if name.startswith("text_decoder.") and not model.get("answer_decoder"):
        return "this model has no answer decoder"
    if name.startswith("text_encoder.cls.predictions.decoder.") or is_derived(name):
        return "tied to the word embedding or to the head's bias"
    if name.startswith("vision_proj.") and model.get("projections") == "none":
        return "this model has no projection of images"
    return ""
