"""CCRK's and CCLM's YAML files as trees of ours: the two share one set of keys."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compat.ccrk_keys import (
    IMAGE_KEYS,
    KNOWN_KEYS,
    MARKS,
    MASK_KEYS,
    MUST_BE_EMPTY,
    MUST_BE_OFF,
    PRECISIONS,
    SWIN_BASE,
    SWIN_BASE_WINDOW,
    TEXT_SIZES,
    WITHOUT_EFFECT,
    XLM_ROBERTA_LARGE,
)
from compat.flags import nested
from utils.config import ConfigError
from utils.config_tree import Node, plain, type_name
from utils.registry import nearest


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


def translate_config(
    tree: Node, path: Path, world_size: int, placeholders: Mapping[str, str]
) -> tuple[Node, list[str]]:
    """Our tree for an original file, and the lines of notice. Batch sizes there are per process, ours over all."""
    original = Original(tree)
    notices: list[str] = []
    is_pretraining = "images" in tree.value
    _refuse_what_is_not_here(original)
    batches = _batch_settings(original, world_size, is_pretraining)
    data = _pretraining_data(original) if is_pretraining else _retrieval_data(original, placeholders)
    settings = {
        **_model_settings(original, path, is_pretraining),
        **_objective_settings(original, is_pretraining),
        **_text_settings(original),
        **data,
        **batches,
        **_training_settings(original, is_pretraining, notices),
    }
    for key in sorted(original.unread - WITHOUT_EFFECT):
        raise _unknown(tree.value[key].place, key, key, KNOWN_KEYS)
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


def _objective_settings(original: Original, is_pretraining: bool) -> dict[str, Any]:
    """Losses; the contrastive gradient is the originals' so that their numbers come out."""
    if not is_pretraining:
        return {"objectives": {"itc": {"gather": "local_slice"}, "itm": {}}}
    contrastive = "one_to_k" if original.get("sample_n_captions") else "itc"
    return {"objectives": {contrastive: {"gather": "local_slice"}, "itm": {}, "mlm": {}}}


def _pretraining_data(original: Original) -> dict[str, Any]:
    """Pictures with captions by language."""
    images = original.section("images", IMAGE_KEYS)
    if images.get("tokenized"):
        place = original.tree.value["images"].place
        raise ConfigError(f"{place}: 'images.tokenized: True' is not supported; allowed: False")
    train = {
        "name": "captioned_images",
        "files": original.node("train_file"),
        "image_key": images.get("image_key"),
        "caption_key": images.get("caption_key"),
        "languages": images.get("language_chosen"),
        "caption_num": None if original.get("sample_n_captions") else 1,
    }
    mask = {ours: original.node(theirs) for theirs, ours in MASK_KEYS.items()}
    return {"data.train": _given(train), "data.mask": _given(mask), "data.num_workers": images.get("num_workers")}


def _retrieval_data(original: Original, placeholders: Mapping[str, str]) -> dict[str, Any]:
    """Pairs of the three layouts; few-shot files hold `{}` for the language and the number of shots."""
    words = tuple(placeholders.values())
    train, val = original.get("train_file", []), original.get("val_file")
    language = placeholders.get("lang", "en")
    train = [_format(name, words, original, "train_file") for name in ([train] if isinstance(train, str) else train)]
    if isinstance(val, str):
        val = {language: _format(val, words, original, "val_file")}
    layout = _layout(original, train)
    max_words = 30 if layout["name"] == "image_text_pairs" else 80
    # The few-shot files name no test set: the one watched while training is the test set of the language.
    splits = {"val": val, "test": original.get("test_file") or val, "translated_test": original.get("gmt_test_file")}
    data = {f"data.{split}": {**layout, "files": files, **_folds(files)} for split, files in splits.items() if files}
    return {
        "data.train": {**layout, "files": {language: train} if words else train},
        **data,
        "data.max_words": original.node("max_words") or max_words,
        "data.truncate": layout["name"] != "image_text_pairs",
        "data.train_transform": {"name": "augmented_crop", "scale": [0.5, 1.0]},
        "data.num_workers": original.node("num_workers"),
    }


def _layout(original: Original, train: list[str]) -> dict[str, Any]:
    """Which of the three kinds of records the files hold, and where their pictures are."""
    root = original.get("image_root")
    if isinstance(root, dict):
        return {"name": "xflickrco", "flickr_root": root.get("flickr30k"), "coco_root": root.get("coco")}
    return {"name": "image_text_pairs", "image_root": root} if root else {"name": "wit"}


def _folds(files: dict[str, str]) -> dict[str, Any]:
    """The original cuts these two files, known by their names, into five galleries of 1000 pictures."""
    folded = {k: 5 for k, path in files.items() if any(f"mscoco/{x}.test.json" in str(path) for x in ("en", "ja"))}
    return {"folds": folded} if folded else {}


def _format(name: str, words: tuple[str, ...], original: Original, key: str) -> str:
    wanted = name.count("{}")
    if wanted > len(words):
        place = original.tree.value[key].place
        raise ConfigError(f"{place}: '{key}' has {wanted} places to fill; give --fewshot LANGUAGE,SHOTS")
    return name.format(*words)


def _batch_settings(original: Original, world_size: int, is_pretraining: bool) -> dict[str, Any]:
    """Batch sizes: training ones count one process in the original and all of them here."""
    batch_size = (
        original.section("images", IMAGE_KEYS).get("batch_size") if is_pretraining else original.get("batch_size_train")
    )
    if batch_size is not None and not isinstance(batch_size, int):
        raise ConfigError(
            f"{original.tree.place}: the batch size must be a whole number, found {type_name(batch_size)}"
        )
    return {
        "data.batch_size": batch_size and batch_size * world_size,
        "evaluation.batch_size_image": original.node("batch_size_test"),
        "evaluation.batch_size_text": original.node("batch_size_test_text"),
        "evaluation.num_candidates": original.node("k_test"),
    }


def _text_settings(original: Original) -> dict[str, Any]:
    return {
        "data.tokenizer": original.node("text_encoder"),
        "data.max_tokens": original.node("max_tokens"),
        "data.max_words": original.node("max_words"),
    }


def _training_settings(original: Original, is_pretraining: bool, notices: list[str]) -> dict[str, Any]:
    """Optimizer, schedule, precision, and when to evaluate and save."""
    optimizer = original.section("optimizer", {"opt", "lr", "weight_decay", "lr_mult"})
    schedule = original.section("schedular", {"sched", "lr", "epochs", "num_warmup_steps"})
    for value, allowed, key in (
        (optimizer.get("opt"), "adamW", "optimizer.opt"),
        (schedule.get("sched"), "linear", "schedular.sched"),
    ):
        if value is not None and value != allowed:
            place = original.tree.value[key.partition(".")[0]].place
            raise ConfigError(f"{place}: '{key}' must be {allowed}, found {type_name(value)}")
    return {
        "optim.lr": schedule.get("lr", optimizer.get("lr")),
        "optim.weight_decay": optimizer.get("weight_decay"),
        "optim.flavour": "hf",
        "optim.decays_vectors": True,
        "optim.no_decay": ["bias", r"norm[12]?\.weight$"],
        "optim.fresh_lr_multiplier": optimizer.get("lr_mult") if is_pretraining else None,
        "schedule.warmup": schedule.get("num_warmup_steps"),
        "train.epochs": schedule.get("epochs"),
        "train.first_evaluation_epoch": original.node("start_eval"),
        "train.eval_every_epochs": original.node("eval_interval"),
        "train.save_every_epochs": original.node("ckpt_frequent"),
        "train.save_every_steps": original.node("ckpt_frequent_step"),
        **_accelerator_settings(original, is_pretraining, notices),
    }


def _accelerator_settings(original: Original, is_pretraining: bool, notices: list[str]) -> dict[str, Any]:
    """Apex's keys in today's terms."""
    known = {"SYNCBN", "FP16_OPT_LEVEL", "FP16_LOSS_SCALE", "RNG_SEED", "GRAD_ACCUMULATE_STEPS", "CLIP_GRAD_NORM"}
    keys = original.section("accelerator", known)
    if not keys:
        return {}
    level = keys.get("FP16_OPT_LEVEL", "O0")
    if level not in PRECISIONS:
        place = original.tree.value["accelerator"].place
        raise ConfigError(
            f"{place}: 'accelerator.FP16_OPT_LEVEL' cannot be {type_name(level)}; allowed: {', '.join(PRECISIONS)}"
        )
    clip, accumulate = keys.get("CLIP_GRAD_NORM", 0.0), keys.get("GRAD_ACCUMULATE_STEPS", 1)
    notices.append(
        f"accelerator: FP16_OPT_LEVEL {level} is precision {PRECISIONS[level]}, CLIP_GRAD_NORM {clip} and "
        f"GRAD_ACCUMULATE_STEPS {accumulate} are kept; SYNCBN, FP16_LOSS_SCALE and RNG_SEED have no counterpart"
    )
    return {
        "train.precision": PRECISIONS[level],
        "train.clip_norm": max(0.0, float(clip)),
        "train.accumulate": accumulate,
    }


def _given(settings: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if value is not None}


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
