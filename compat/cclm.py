"""CCLM's and CCRK's YAML files as trees of ours: the two share one set of keys."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compat.cclm_finetuning import RETRIEVAL_KEYS, retrieval_settings
from compat.cclm_labels import LABEL_KEYS, label_settings
from compat.cclm_pretraining import PRETRAINING_KEYS, WITHOUT_EFFECT, picture_pair_settings, pretraining_settings
from compat.cclm_questions import QUESTION_KEYS, question_settings
from compat.cclm_sizes import KNOWN_FILES, XLM_ROBERTA_LARGE, classifier_section, model_section, needed_sizes
from compat.cclm_training import training_settings
from compat.flags import nested
from compat.original import Circumstances, Original, read_json
from utils.config import ConfigError
from utils.config_tree import Node, plain

MARKS = ("use_swin", "image_res", "schedular", "train_file", "vision_config", "text_num_hidden_layers")
MODEL_KEYS = {
    "use_swin", "use_clip_vit", "vision_config", "image_res", "patch_size", "text_encoder", "text_config",
    "text_num_hidden_layers", "num_dec_layers", "embed_dim", "temp", "use_one_cl_proj_only",
}  # fmt: skip
TRAINING_KEYS = {
    "optimizer", "schedular", "accelerator", "start_eval", "eval_interval", "ckpt_frequent", "ckpt_frequent_step",
}  # fmt: skip
KNOWN_KEYS = (
    MODEL_KEYS | TRAINING_KEYS | PRETRAINING_KEYS | RETRIEVAL_KEYS | LABEL_KEYS | QUESTION_KEYS | WITHOUT_EFFECT
)

# The data, objectives and evaluation of each of the originals' programs.
OF_KIND = {
    "pretraining": pretraining_settings,
    "picture_pairs": picture_pair_settings,
    "labels": label_settings,
    "questions": question_settings,
    "retrieval": retrieval_settings,
}


def is_original(tree: Node) -> bool:
    """Whether a file is written in the originals' keys."""
    return sum(mark in tree.value for mark in MARKS) >= 2


def kind_of(tree: Node, task: str | None) -> str:
    """Which of the original's programs a file belongs to; only NLVR's domain pre-training needs the task to tell."""
    if "images" in tree.value:
        return "picture_pairs" if task == "nlvr_pretrain" else "pretraining"
    if "answer_list" in tree.value:
        return "questions"
    return "labels" if "batch_size" in tree.value else "retrieval"


def translate_config(
    tree: Node, path: Path, world_size: int, placeholders: Mapping[str, str], task: str | None = None
) -> tuple[Node, list[str]]:
    """Our tree for an original file, and the lines of notice. Batch sizes there are per process, ours over all."""
    original, kind = Original(tree), kind_of(tree, task)
    circumstances = Circumstances(world_size, placeholders)
    settings = {
        "data.tokenizer": original.node("text_encoder"),
        **_model_settings(original, path, kind),
        **OF_KIND[kind](original, circumstances),
        **training_settings(original, kind, circumstances.notices),
    }
    original.check_all_read(WITHOUT_EFFECT, KNOWN_KEYS)
    given = {key: value for key, value in settings.items() if value is not None}
    return nested(given, tree.place), circumstances.notices


def _model_settings(original: Original, path: Path, kind: str) -> dict[str, Any]:
    """Towers, fusion stack and heads, and the public weights that they start from in pre-training."""
    keys = {key: original.get(key) for key in MODEL_KEYS}
    keys["use_swin"] = original.get("use_swin", True)
    vision, text = _image_sizes(original, keys, path), _text_sizes(original, path)
    is_pretraining = kind == "pretraining"
    section = model_section(keys, vision, text, is_pretraining=is_pretraining)
    if kind == "labels":
        num_classes = original.get("num_labels")
        section = classifier_section(section, num_classes or 2, num_images=1 if num_classes else 2)
    elif kind == "picture_pairs":
        section = classifier_section(section, 3, num_images=2, num_layers=1, projections="image")
    elif kind == "questions":
        del section["temperature"]
    return {
        **{f"model.{name}": value for name, value in section.items()},
        "init.image": vision.get("ckpt") if is_pretraining else None,
        "init.text": keys["text_encoder"] if is_pretraining else None,
    }


def _image_sizes(original: Original, keys: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """An inline section, a JSON file, or a file name that is known."""
    needed = needed_sizes(keys)
    node = original.node("vision_config")
    if node is None:
        if not needed:
            return {}
        raise ConfigError(f"{original.tree.place}: 'vision_config' is missing; it has no default")
    sizes = plain(node) if isinstance(node.value, dict) else original.json_file("vision_config", path, KNOWN_FILES)
    for name in needed:
        if name not in sizes:
            raise ConfigError(f"{node.place}: 'vision_config' has no '{name}'; found: {', '.join(sizes)}")
    return sizes


def _text_sizes(original: Original, path: Path) -> dict[str, Any]:
    """XLM-R large, or what the text encoder's own config.json says."""
    inline, encoder = original.get("text_config"), original.get("text_encoder")
    if isinstance(inline, dict):
        return {**XLM_ROBERTA_LARGE, **inline}
    if isinstance(inline, str):
        return {**XLM_ROBERTA_LARGE, **original.json_file("text_config", path, {})}
    file = Path(encoder if isinstance(encoder, str) else "absent") / "config.json"
    if not file.is_file():
        return dict(XLM_ROBERTA_LARGE)
    sizes = {**XLM_ROBERTA_LARGE, **read_json(file)}
    del sizes["num_hidden_layers"]  # of the public tower, of which only some layers are kept
    return sizes
