"""CCRK's and CCLM's YAML files as trees of ours: the two share one set of keys."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compat.flags import nested
from utils.config import ConfigError
from utils.config_tree import Node, located, merge, plain, type_name
from utils.registry import nearest

MARKS = ("use_swin", "image_res", "schedular", "train_file", "vision_config", "text_num_hidden_layers")

# The originals' configs that our own replace, by file name.
OUR_CONFIG = {
    "Pretrain.yaml": "configs/base/ccrk_pretrain.yaml",
    "Pretrain_1m.yaml": "configs/ccrk/pretrain_1m.yaml",
    "Pretrain_2m.yaml": "configs/ccrk/pretrain_2m.yaml",
    "Pretrain_3m.yaml": "configs/ccrk/pretrain_3m.yaml",
    "xFlickrCO.yaml": "configs/ccrk/xflickrco.yaml",
    "xFlickrCO_fewshot.yaml": "configs/ccrk/xflickrco_fewshot.yaml",
    "WIT.yaml": "configs/ccrk/wit.yaml",
    **{f"Retrieval_multi30k_{x}_ft.yaml": f"configs/ccrk/retrieval_multi30k_{x}.yaml" for x in ("en", "de", "fr", "cs", "all")},
    **{f"Retrieval_coco_{x}_ft.yaml": f"configs/ccrk/retrieval_coco_{x}.yaml" for x in ("en", "ja", "zh", "all")},
}

# The Swin sizes of the files configs/config_swinB_*.json that the originals' configs name.
SWIN_BASE = {"embed_dim": 128, "depths": [2, 2, 18, 2], "num_heads": [4, 8, 16, 32]}
SWIN_BASE_WINDOW = {"config_swinB_224.json": 7, "config_swinB_384.json": 12, "config_swinB_480.json": 15}
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
# Keys that change nothing in these systems, or that only say what the data shows.
WITHOUT_EFFECT = {
    "train_dataset_size", "print_broken_data", "patch_size", "regions", "images_mono", "texts_para", "mask_whole_word",
    "use_tlm", "sample_2_captions", "calc_image_bbox_loss", "use_clip_vit", "is_xvlm_ckpt", "xvlm_ckpt_text_num_hidden_layers",
}  # fmt: skip
# Data and objectives of CCLM that have to be empty or off here.
MUST_BE_EMPTY = ("train_file_regions", "train_file_mono", "train_file_text")
MUST_BE_OFF = ("use_tlm", "sample_2_captions", "calc_image_bbox_loss", "use_clip_vit", "mask_whole_word")


def is_original(tree: Node) -> bool:
    """Whether a file is written in the originals' keys."""
    return sum(mark in tree.value for mark in MARKS) >= 2


class Original:
    """An original's file: values by key with their places, and what was never read."""

    def __init__(self, tree: Node) -> None:
        self.tree = tree
        self.unread = set(tree.value)

    def node(self, key: str) -> Node | None:
        """The value at a key, noted as read."""
        self.unread.discard(key)
        return self.tree.value.get(key)

    def get(self, key: str, default: Any = None) -> Any:
        """The plain value at a key."""
        node = self.node(key)
        return default if node is None else plain(node)

    def section(self, key: str, known: set[str]) -> dict[str, Any]:
        """A section's plain values; an unknown key in it is an error."""
        node = self.node(key)
        if node is None:
            return {}
        if not isinstance(node.value, dict):
            raise ConfigError(f"{node.place}: '{key}' must be a section of settings, found {type_name(node.value)}")
        for name, item in node.value.items():
            if name not in known:
                raise _unknown(item.place, f"{key}.{name}", name, known)
        return plain(node)


def translate_config(tree: Node, path: Path, world_size: int, placeholders: Mapping[str, str]) -> tuple[Node, list[str]]:
    """Our tree for an original file, and the lines of notice. Batch sizes there are per process, ours over all."""
    original = Original(tree)
    notices: list[str] = []
    is_pretraining = "images" in tree.value
    _refuse_what_is_not_here(original)
    settings = {
        **_model_settings(original, path, is_pretraining),
        **_objective_settings(original, is_pretraining),
        **(_pretraining_data(original, world_size) if is_pretraining else _retrieval_data(original, world_size, placeholders)),
        **_text_settings(original),
        **_optimizer_settings(original),
        **_training_settings(original, is_pretraining, notices),
    }
    for key in sorted(original.unread - WITHOUT_EFFECT):
        known = set(tree.value) - original.unread | WITHOUT_EFFECT
        raise _unknown(tree.value[key].place, key, key, known)
    return nested({key: value for key, value in settings.items() if value is not None}, tree.place), notices


def _refuse_what_is_not_here(original: Original) -> None:
    for key in MUST_BE_EMPTY:
        if original.get(key):
            place = original.tree.value[key].place
            raise ConfigError(f"{place}: '{key}' names data of a kind that is not supported; leave it empty")
    for key in MUST_BE_OFF:
        if original.get(key):
            raise ConfigError(f"{original.tree.value[key].place}: '{key}: True' is not supported; allowed: False")


def _model_settings(original: Original, path: Path, is_pretraining: bool) -> dict[str, Any]:
    """Towers, fusion stack and heads."""
    if not original.get("use_swin", True):
        raise ConfigError(f"{original.tree.value['use_swin'].place}: 'use_swin: False' is not supported; allowed: True")
    vision = _sizes(original, "vision_config", path)
    text = _text_sizes(original, path)
    num_layers = original.get("text_num_hidden_layers") or text.get("num_hidden_layers", 12)
    fusion_layer = text.get("fusion_layer", num_layers // 2)
    encoder = {ours: text[theirs] for theirs, ours in TEXT_SIZES.items() if theirs in text}
    return {
        "model.image_encoder": {
            "name": "swin",
            "image_size": original.get("image_res") or vision.get("image_res", 224),
            "window_size": vision["window_size"],
            "width": vision["embed_dim"],
            "depths": vision["depths"],
            "num_heads": vision["num_heads"],
        },
        "model.text_encoder": {"name": "bert", "num_layers": fusion_layer, **encoder},
        "model.text_fusion.num_layers": num_layers - fusion_layer,
        "model.embed_dim": original.get("embed_dim"),
        "model.shared_projection": original.get("use_one_cl_proj_only"),
        "model.temperature.initial": original.get("temp"),
        "model.temperature.is_clamped": is_pretraining,
        "model.has_masked_language_head": is_pretraining,
        "init.image": vision.get("ckpt") if is_pretraining else None,
        "init.text": original.get("text_encoder") if is_pretraining else None,
    }


def _sizes(original: Original, key: str, path: Path) -> dict[str, Any]:
    """The Swin sizes: an inline section, a JSON file, or a file name that is known."""
    node = original.node(key)
    if node is None:
        raise ConfigError(f"{original.tree.place}: '{key}' is missing; it has no default")
    if isinstance(node.value, dict):
        sizes = plain(node)
    else:
        sizes = _read_sizes(node, path)
    for name in ("embed_dim", "depths", "num_heads", "window_size"):
        if name not in sizes:
            raise ConfigError(f"{node.place}: '{key}' has no '{name}'; found: {', '.join(sizes)}")
    return sizes


def _read_sizes(node: Node, path: Path) -> dict[str, Any]:
    """A JSON file beside the working folder, or beside the YAML file or a folder above it."""
    name = Path(str(node.value))
    for folder in (Path(), *path.resolve().parents):
        if (folder / name).is_file():
            return _read_json(folder / name)
    if name.name in SWIN_BASE_WINDOW:
        return {**SWIN_BASE, "window_size": SWIN_BASE_WINDOW[name.name]}
    known = ", ".join(SWIN_BASE_WINDOW)
    raise ConfigError(f"{node.place}: {name} does not exist; known without the file: {known}")


def _text_sizes(original: Original, path: Path) -> dict[str, Any]:
    """XLM-R large, or what the text encoder's own config.json says."""
    node = original.tree.value.get("text_encoder")
    inline = original.get("text_config")
    if isinstance(inline, dict):
        return {**XLM_ROBERTA_LARGE, **inline}
    folder = Path(str(node.value)) if node is not None and isinstance(node.value, str) else Path("absent")
    if isinstance(inline, str):
        return {**XLM_ROBERTA_LARGE, **_read_sizes(original.tree.value["text_config"], path)}
    if not (folder / "config.json").is_file():
        return dict(XLM_ROBERTA_LARGE)
    sizes = {**XLM_ROBERTA_LARGE, **_read_json(folder / "config.json")}
    del sizes["num_hidden_layers"]  # of the public tower, of which only some layers are kept
    return sizes


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected an object of sizes, found {type_name(content)}")
    return content


def _unknown(place: str, dotted: str, name: str, known: set[str]) -> ConfigError:
    close = nearest(name, known)
    hint = f"did you mean '{close}'?" if close else f"allowed: {', '.join(sorted(known))}"
    return ConfigError(f"{place}: unknown key '{dotted}'; {hint}")
