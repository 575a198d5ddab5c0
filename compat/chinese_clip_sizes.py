"""Chinese-CLIP's models by the original's names, and its model settings as ours."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

EMBED_DIM = {"RN50": 1024, "ViT-B-32": 512, "ViT-B-16": 512, "ViT-L-14": 768, "ViT-L-14-336": 768, "ViT-H-14": 1024}


def _vit(image_size: int, num_layers: int, width: int, patch_size: int, head_width: int = 64) -> dict[str, Any]:
    return {
        "image_resolution": image_size,
        "vision_layers": num_layers,
        "vision_width": width,
        "vision_patch_size": patch_size,
        "vision_head_width": head_width,
    }


def _bert(num_layers: int, width: int, num_heads: int) -> dict[str, Any]:
    return {
        "vocab_size": 21128,
        "text_hidden_size": width,
        "text_intermediate_size": 4 * width,
        "text_max_position_embeddings": 512,
        "text_num_attention_heads": num_heads,
        "text_num_hidden_layers": num_layers,
        "text_type_vocab_size": 2,
    }


VISION_MODELS: dict[str, dict[str, Any]] = {
    "RN50": {"image_resolution": 224, "vision_layers": [3, 4, 6, 3], "vision_width": 64, "vision_head_width": 64},
    "ViT-B-32": _vit(224, 12, 768, 32),
    "ViT-B-16": _vit(224, 12, 768, 16),
    "ViT-L-14": _vit(224, 24, 1024, 14),
    "ViT-L-14-336": _vit(336, 24, 1024, 14),
    "ViT-H-14": _vit(224, 32, 1280, 14, 80),
}
TEXT_MODELS: dict[str, dict[str, Any]] = {
    "RoBERTa-wwm-ext-base-chinese": _bert(12, 768, 12),
    "RoBERTa-wwm-ext-large-chinese": _bert(24, 1024, 16),
    "RBT3-chinese": _bert(3, 768, 12),
}
_BASE, _LARGE, _FOLDER = "RoBERTa-wwm-ext-base-chinese", "RoBERTa-wwm-ext-large-chinese", "configs/chinese_clip"
# Towers, and our configuration of the model that they make.
CONFIGS: list[tuple[str, str, str]] = [
    ("ViT-B-16", _BASE, f"{_FOLDER}/vit_b_16.yaml"),
    ("ViT-B-32", _BASE, f"{_FOLDER}/vit_b_32.yaml"),
    ("ViT-L-14", _BASE, f"{_FOLDER}/vit_l_14.yaml"),
    ("ViT-L-14-336", _BASE, f"{_FOLDER}/vit_l_14_336.yaml"),
    ("ViT-H-14", _LARGE, f"{_FOLDER}/vit_h_14.yaml"),
    ("RN50", "RBT3-chinese", f"{_FOLDER}/rn50.yaml"),
]


@dataclass(frozen=True)
class ReleasedModel:
    """A released file, its towers and where it lies on the model hubs."""

    file: str
    vision_model: str
    text_model: str
    repository: str


def _released(vision: str, text: str, size: str) -> ReleasedModel:
    return ReleasedModel(f"clip_cn_{vision.lower()}.pt", vision, text, f"chinese-clip-{size}")


# In the order of the original.
RELEASED = {
    "ViT-B-16": _released("ViT-B-16", _BASE, "vit-base-patch16"),
    "ViT-L-14": _released("ViT-L-14", _BASE, "vit-large-patch14"),
    "ViT-L-14-336": _released("ViT-L-14-336", _BASE, "vit-large-patch14-336px"),
    "ViT-H-14": _released("ViT-H-14", _LARGE, "vit-huge-patch14"),
    "RN50": _released("RN50", "RBT3-chinese", "rn50"),
}


def named_config(vision_model: str, text_model: str) -> dict[str, Any]:
    """The original's settings of a pair of towers; ValueError names what there is."""
    for name, table in ((vision_model, VISION_MODELS), (text_model, TEXT_MODELS)):
        if name not in table:
            raise ValueError(f"unknown model '{name}'; allowed: {', '.join(table)}")
    return {"embed_dim": EMBED_DIM[vision_model], **VISION_MODELS[vision_model], **TEXT_MODELS[text_model]}


def model_section(config: dict[str, Any]) -> dict[str, Any]:
    """The `model` section of our configuration for the original's settings (its constructor's names)."""
    layers = config["vision_layers"]
    layers = json.loads(layers) if isinstance(layers, str) else layers  # RN50's file holds a list written as a string
    width, head_width = config["vision_width"], config.get("vision_head_width") or 64
    image = {"image_size": config["image_resolution"], "width": width}
    if isinstance(layers, list):
        image |= {"name": "resnet", "depths": layers, "num_heads": 32 * width // head_width}
    else:
        image |= {"name": "vit", "num_layers": layers, "num_heads": width // head_width, **CLIP_FORM}
        image["patch_size"] = config["vision_patch_size"]
    text = {
        "name": "bert",
        "vocab_size": config["vocab_size"],
        "width": config["text_hidden_size"],
        "num_layers": config["text_num_hidden_layers"],
        "num_heads": config["text_num_attention_heads"],
        "mlp_width": config["text_intermediate_size"],
        "max_positions": config["text_max_position_embeddings"],
        "num_token_types": config["text_type_vocab_size"],
        "dropout": config.get("text_hidden_dropout_prob", 0.1),
        "attention_dropout": config.get("text_attention_probs_dropout_prob", 0.1),
        **BERT_FORM,
    }
    return {
        "image_encoder": image,
        "text_encoder": text,
        "embed_dim": config["embed_dim"],
        "temperature": dict(TEMPERATURE),
        **projection_forms(image["name"]),
    }


CLIP_FORM = {"is_clip": True, "layer_norm_eps": 1e-5}
BERT_FORM = {"layer_norm_eps": 1e-12, "pad_id": 0}
# The original clamps its log-scale to [0, 4.6052].
TEMPERATURE = {"minimum": math.exp(-4.6052), "maximum": 1.0, "stored_as": "log_scale"}


def projection_forms(image_name: str) -> dict[str, Any]:
    """No projection has a bias but the one inside the ResNet's pooling."""
    forms: dict[str, Any] = {"projection_form": {"kind": "plain"}}
    return forms | ({"image_projection_form": {"kind": "linear"}} if image_name == "resnet" else {})
