"""The sizes that CCLM's and CCRK's files give or leave unsaid, as the `model` section of ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from utils.config import ConfigError

# The Swin sizes of the files configs/config_swinB_*.json that the originals' configs name, and CLIP's of ViT-B/16.
SWIN_BASE = {
    "ckpt": "data/swin_base_patch4_window7_224_22k.pth",
    "embed_dim": 128,
    "depths": [2, 2, 18, 2],
    "num_heads": [4, 8, 16, 32],
}
SWIN_BASE_WINDOW = {"config_swinB_224.json": 7, "config_swinB_384.json": 12, "config_swinB_480.json": 15}
CLIP_BASE = {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072, "num_hidden_layers": 12}
KNOWN_FILES: dict[str, dict[str, Any]] = {
    **{name: {**SWIN_BASE, "window_size": window} for name, window in SWIN_BASE_WINDOW.items()},
    "config_clipvitB.json": CLIP_BASE,
}
XLM_ROBERTA_LARGE = {
    "vocab_size": 250002,
    "hidden_size": 1024,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "max_position_embeddings": 514,
    "type_vocab_size": 1,
    "layer_norm_eps": 1e-5,
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "pad_token_id": 1,
}
CLAMPED_TEMPERATURE = (0.001, 0.5)
# Names of the same sizes in our text encoder.
TEXT_SIZES = {
    "vocab_size": "vocab_size",
    "hidden_size": "width",
    "num_attention_heads": "num_heads",
    "intermediate_size": "mlp_width",
    "max_position_embeddings": "max_positions",
    "type_vocab_size": "num_token_types",
    "layer_norm_eps": "layer_norm_eps",
    "hidden_dropout_prob": "dropout",
    "attention_probs_dropout_prob": "attention_dropout",
    "pad_token_id": "pad_id",
}
SWIN_SIZES = ("embed_dim", "depths", "num_heads", "window_size")
CLIP_SIZES = ("num_attention_heads", "intermediate_size", "num_hidden_layers")


def needed_sizes(keys: Mapping[str, Any]) -> tuple[str, ...]:
    """What the image sizes must name: those of a CLIP ViT, of a Swin, or of a DeiT (nothing, it is always ViT-B)."""
    if keys.get("use_clip_vit"):
        return CLIP_SIZES
    return SWIN_SIZES if keys.get("use_swin", True) else ()


def model_section(
    keys: Mapping[str, Any], vision: Mapping[str, Any], text: Mapping[str, Any], *, is_pretraining: bool
) -> dict[str, Any]:
    """Our `model` section for an original's keys, its image sizes and its text sizes: towers, fusion stack, heads.

    The two halves of the kept text layers are the text tower and the fusion stack.
    """
    if text.get("hidden_act", "gelu") != "gelu":
        raise ConfigError(f"config.json of text_encoder: hidden_act must be gelu, found {text['hidden_act']!r}")
    num_layers = keys.get("text_num_hidden_layers") or text.get("num_hidden_layers", 12)
    fusion_layer = text.get("fusion_layer", num_layers // 2)
    encoder = {ours: text[theirs] for theirs, ours in TEXT_SIZES.items() if theirs in text}
    section = {
        "image_encoder": _image_section(keys, vision),
        "text_encoder": {"name": "bert", "num_layers": fusion_layer, **encoder},
        "text_fusion": {"num_layers": num_layers - fusion_layer},
        "embed_dim": keys.get("embed_dim"),
        "shared_projection": keys.get("use_one_cl_proj_only"),
        "temperature": {
            "initial": _initial_temperature(keys.get("temp"), is_pretraining),
            "is_clamped": is_pretraining,
        },
        "has_masked_language_head": is_pretraining,
    }
    if keys.get("num_dec_layers"):  # question answering compares no images with texts
        section |= {"answer_decoder": {"num_layers": keys["num_dec_layers"]}}
        section |= {"projections": "none", "has_match_head": False}
    return _given(section)


def _initial_temperature(value: float | None, is_clamped: bool) -> float | None:
    """The original clamps what stands in its file before the first loss."""
    if value is None or not is_clamped or not isinstance(value, (int, float)):
        return value
    return min(max(value, CLAMPED_TEMPERATURE[0]), CLAMPED_TEMPERATURE[1])


def classifier_section(
    section: dict[str, Any],
    num_classes: int,
    *,
    num_images: int,
    num_layers: int | None = None,
    projections: str = "none",
) -> dict[str, Any]:
    """The section of a model that compares no images with texts but tells classes of texts with their images."""
    left_out = ("temperature", "shared_projection")
    classifier = _given({"num_classes": num_classes, "num_layers": num_layers})
    return {
        **{key: value for key, value in section.items() if key not in left_out},
        "text_fusion": {**section["text_fusion"], "num_images": num_images},
        "projections": projections,
        "has_match_head": False,
        "classifier": classifier,
    }


def _image_section(keys: Mapping[str, Any], vision: Mapping[str, Any]) -> dict[str, Any]:
    image_size = keys.get("image_res") or vision.get("image_res", 224)
    if keys.get("use_clip_vit"):
        width = vision.get("hidden_size") or vision.get("vision_width", CLIP_BASE["hidden_size"])
        return {
            "name": "vit",
            "is_clip": True,
            "image_size": image_size,
            "patch_size": vision.get("patch_size", keys.get("patch_size", 16)),
            "width": width,
            "num_layers": vision["num_hidden_layers"],
            "num_heads": vision["num_attention_heads"],
            "mlp_ratio": vision["intermediate_size"] / width,
            "activation": vision.get("hidden_act"),
            "layer_norm_eps": 1e-5,
            "num_region_layers": vision.get("local_attn_depth"),
        }
    if not keys.get("use_swin", True):
        return {"name": "vit", "image_size": image_size, "patch_size": keys.get("patch_size", 16)}
    return {
        "name": "swin",
        "image_size": image_size,
        "window_size": vision["window_size"],
        "width": vision["embed_dim"],
        "depths": vision["depths"],
        "num_heads": vision["num_heads"],
    }


def _given(section: dict[str, Any]) -> dict[str, Any]:
    """The section without what the original does not say."""
    section = {key: _given(value) if isinstance(value, dict) else value for key, value in section.items()}
    return {key: value for key, value in section.items() if value is not None}
