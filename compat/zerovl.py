"""ZeroVL's configuration as settings of ours."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from compat.bert import read_text_encoder
from compat.flags import nested
from compat.zerovl_defaults import PUBLISHED, knows, resolve
from compat.zerovl_rules import group_rules
from utils.config import ConfigError
from utils.config_tree import Node, located, plain, read_file

MARKS = ("runner", "ckpt", "transforms", "loss", "dist", "epoch")
# Settings that are called alike in both.
SHARED_KEYS = ("data.batch_size=", "data.num_workers=", "seed=")
NOISE = 0.2  # of the pieces of a training caption, always on there
SCHEDULES = {
    "cosine_schedule_with_warmup_min_lr_scale": "cosine",
    "cosine_schedule_with_warmup": "cosine",
    "linear_schedule_with_warmup": "linear",
    "constant_schedule_with_warmup": "constant",
    "constant_schedule": "constant",
    "multi_step_schedule_with_warmup": "steps",
}
VIT_SIZES = {"tiny": (192, 12, 3), "small": (384, 12, 6), "base": (768, 12, 12), "large": (1024, 24, 16)}
BERT_BASE = {"vocab_size": 30522, "width": 768, "num_layers": 12, "num_heads": 12, "mlp_width": 3072}
BERT_SIZES = {
    "bert-base-uncased": BERT_BASE,
    "bert-base-cased": BERT_BASE | {"vocab_size": 28996},
    "bert-base-chinese": BERT_BASE | {"vocab_size": 21128},
}


def is_original(tree: Node) -> bool:
    """Whether a file is written in ZeroVL's keys."""
    return isinstance(tree.value, dict) and sum(mark in tree.value for mark in MARKS) >= 3


def split_words(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """`key=value` words in our keys alone, and those that the original knows."""
    theirs = [word for word in words if knows(word.partition("=")[0].strip())]
    return [word for word in words if word not in theirs], theirs


def original_tree(config: str | None, theirs: Sequence[str]) -> Node | None:
    """The original's settings that a --config names: its file, or what its published file of that name says where no
    file is. A file of ours in the original's name stands for it where settings are in the original's keys alone.
    """
    if not config:
        return None
    path = Path(config)
    if path.is_file():
        tree = read_file(path) if path.suffix in (".yaml", ".yml") else None
        if tree is not None and is_original(tree):
            return tree
        only_theirs = any(not word.startswith(SHARED_KEYS) for word in theirs)
        return located(PUBLISHED[path.name], str(path)) if only_theirs and path.name in PUBLISHED else None
    return located(PUBLISHED[path.name], config) if path.name in PUBLISHED else None


def translate_tree(tree: Node, words: list[str], notices: list[str]) -> Node:
    """Our tree for an original file under overrides in the original's keys."""
    try:
        original = resolve(plain(tree), words)
    except ConfigError as error:
        raise ConfigError(str(error) if "command line" in str(error) else f"{tree.place}: {error}") from error
    return nested(settings_of(original, tree.place, notices), tree.place)


def settings_of(original: dict[str, Any], place: str, notices: list[str]) -> dict[str, Any]:
    """Our settings by dotted key for a resolved configuration."""
    if original["model"]["name"] != "clip":
        raise ConfigError(f"{place}: model.name '{original['model']['name']}' is not the dual encoder 'clip'")
    if original["epoch"] is None:
        raise ConfigError(f"{place}: 'epoch' is not set, and the original has no default for it")
    settings = {
        **_model(original["model"], original["transforms"], place),
        **_objective(original["loss"], place),
        **_data(original),
        **_training(original, place),
        **_weights(original),
    }
    if original["optim"]["param_group_rules"]:
        tree = {name: settings[f"model.{name}"] for name in ("text_encoder", "projection_form", "temperature")}
        settings["optim.rules"] = group_rules(original["optim"]["param_group_rules"], tree, place)
    if (original["data"]["train_steps"] or 0) > 0:
        settings["train.max_steps"] = original["data"]["train_steps"] * original["epoch"]
    if original["runner"]["stable_random"] != "step" and settings["train.accumulate_decoupled"]:
        notices.append("runner.stable_random: both passes draw the same random numbers here, whatever it says")
    return {key: value for key, value in settings.items() if value is not None}


def _model(model: dict[str, Any], transforms: dict[str, Any], place: str) -> dict[str, Any]:
    image, text, projection = model["image_encoder"], model["text_encoder"], model["projection"]
    tower = _image_tower(image["tag"], transforms["input_size"])
    if tower["name"] == "timm" and (model["freeze_cnn_bn"] or model["syncbn"]):
        tower["batch_norm"] = "frozen" if model["freeze_cnn_bn"] else "synced"
    tower |= {**transforms["normalize"], "is_frozen": not image["trainable"]}
    if text["target_token_idx"] != 0:
        raise ConfigError(f"{place}: model.text_encoder.target_token_idx must be 0, the first token")
    encoder = {**_text_encoder(text["tag"]), "is_frozen": not text["trainable"]}
    frozen = [f"model.{side}_projection" for side in ("image", "text") if not projection[f"{side}_projector_trainable"]]
    return {
        "model.image_encoder": tower,
        "model.text_encoder": encoder,
        "model.embed_dim": projection["dim"],
        "model.projection_form": {
            "kind": projection["name"], "dropout": projection["complex_projection"]["drop_out"],
        },
        "data.tokenizer": f"data/{text['tag']}" if not Path(text["tag"]).exists() else text["tag"],
        "data.max_tokens": model["max_length"],
        "data.max_words": 0,
        "optim.frozen": frozen or None,
    }  # fmt: skip


def _image_tower(tag: str, size: int) -> dict[str, Any]:
    """A plain ViT by its sizes, any other architecture by timm's name."""
    words = tag.split(".")[0].split("_")
    if len(words) > 2 and words[0] == "vit" and words[1] in VIT_SIZES and words[2].startswith("patch"):
        width, num_layers, num_heads = VIT_SIZES[words[1]]
        sizes = {"width": width, "num_layers": num_layers, "num_heads": num_heads}
        return {"name": "vit", "image_size": size, "patch_size": int(words[2].removeprefix("patch")), **sizes}
    return {"name": "timm", "model": tag, "image_size": size}


def _text_encoder(tag: str) -> dict[str, Any]:
    """Sizes of a well-known encoder, or those in the config.json of its folder."""
    if tag in BERT_SIZES:
        return {
            "name": "bert",
            **BERT_SIZES[tag],
            "max_positions": 512,
            "num_token_types": 2,
            "layer_norm_eps": 1e-12,
            "pad_id": 0,
        }
    return read_text_encoder(tag if Path(tag).is_dir() else f"data/{tag}")


def _objective(loss: dict[str, Any], place: str) -> dict[str, Any]:
    if loss["extra_losses"]:
        raise ConfigError(f"{place}: loss.extra_losses must be empty; found {loss['extra_losses']}")
    gather = "exact" if loss["nce_loss"]["gather_backward"] else "constant"
    inner: dict[str, Any] = {"gather": gather if loss["global_reduce"] else "none", "smoothing": loss["smoothing"]}
    inner |= {"group_size": max(loss["group_size"], 0), "reports_accuracy": True}
    temperature = loss["temperature"]
    if temperature["name"] not in ("constant", "parameter"):
        raise ConfigError(f"{place}: loss.temperature.name must be constant or parameter, found {temperature['name']}")
    objectives = {
        "NCE": {"nce": inner},
        "MixUpNCE": {"mixup": {"beta": loss["mixup"]["beta"], "objective": {"name": "nce", **inner}}},
    }
    if loss["name"] not in objectives:
        raise ConfigError(f"{place}: loss.name must be one of {', '.join(objectives)}; found {loss['name']}")
    return {
        "objectives": objectives[loss["name"]],
        "model.temperature": {
            "initial": temperature["value"], "clamps": "used", "is_learned": temperature["name"] == "parameter",
        },
    }  # fmt: skip


def _data(original: dict[str, Any]) -> dict[str, Any]:
    data, transforms = original["data"], original["transforms"]
    root = Path(data["data_path"])
    valid = {"name": "csv_pairs", "files": {name: f"{root}/{name}/valid_anno.csv" for name in data["valid_name"]}}
    train = {
        name: {"name": "csv_pairs", "files": {name: f"{root}/{name}/train_anno.csv"}, "word_noise": {"share": NOISE}}
        for name in data["train_name"]
    }
    is_decoupled = original["runner"]["name"] == "clip_bsgs"
    batch, part = data["batch_size"], data["batch_size_train"]
    if is_decoupled and (part < 1 or batch % part):
        raise ConfigError(f"data.batch_size {batch} is not a multiple of data.batch_size_train {part}")
    return {
        "data.train": {"name": "mixture", "order": data["train_type"], "sets": train},
        "data.val": valid if data["enable_valid"] else None,
        "data.test": valid,
        "data.batch_size": part if is_decoupled else batch,
        "data.num_workers": data["num_workers"],
        "data.train_transform": image_steps(transforms, "train_transforms"),
        "data.test_transform": image_steps(transforms, "valid_transforms"),
        "train.accumulate": batch // part if is_decoupled else 1,
        "train.accumulate_decoupled": is_decoupled,
    }


def image_steps(transforms: dict[str, Any], key: str) -> dict[str, Any]:
    """Our steps for `train_transforms` or `valid_transforms`."""
    names = transforms[key]
    found = {"name": "steps", "steps": names}
    for name, setting in (("resize", "resize"), ("resize_bicubic", "resize"), ("center_crop", "crop"),
                          ("random_crop", "crop")):  # fmt: skip
        if name in names:
            found[setting] = transforms[name]["size"]
    if "random_resize_crop" in names:
        found["scale"] = transforms["random_resize_crop"]["scale"]
    erasing = transforms["random_erasing"]
    if key == "train_transforms" and erasing["reprob"] > 0:
        chosen = {"probability": erasing["reprob"], "kind": erasing["remode"], "count": erasing["recount"]}
        found["erasing"] = chosen | transforms["normalize"]
    return found


def _training(original: dict[str, Any], place: str) -> dict[str, Any]:
    optim, runner, lr = original["optim"], original["runner"], original["optim"]["lr"]
    name = {"torch.optim.AdamW": "adamw", "LARS": "lars"}.get(optim["name"])
    if name is None or lr["name"] not in SCHEDULES:
        raise ConfigError(f"{place}: optim.name {optim['name']} with optim.lr.name {lr['name']} is not known")
    param, epochs, warmup = lr["param"], original["epoch"], float(lr["warmup_proportion"])
    if lr["warmup_epoch"] is not None:
        warmup = lr["warmup_epoch"] / epochs
    return {
        "optim.name": name,
        "optim.lr": lr["init"],
        "optim.weight_decay": optim["param"].get("weight_decay", 0.01 if name == "adamw" else 0.0),
        "optim.betas": optim["param"].get("betas"),
        "optim.eps": optim["param"].get("eps"),
        "optim.momentum": optim["param"].get("momentum"),
        "optim.no_decay": [],
        "optim.decays_vectors": True,
        "schedule.name": SCHEDULES[lr["name"]],
        "schedule.warmup": 0.0 if lr["name"] == "constant_schedule" else warmup,
        "schedule.floor": param.get("min_lr_scale", 0.01) if lr["name"].endswith("min_lr_scale") else None,
        "schedule.cycles": param.get("num_cycles"),
        "schedule.milestones": param.get("milestone_steps"),
        "schedule.gamma": param.get("gamma"),
        "train.epochs": epochs,
        "train.precision": "fp16" if original["dist"]["fp16"] else "fp32",
        "train.clip_norm": optim["grad_clip"].get("max_norm", 0.0),
        "train.eval_every_epochs": runner["val_interval"] if original["data"]["enable_valid"] else 0,
        "train.eval_every_steps": max(runner["val_interval_steps"], 0) if original["data"]["enable_valid"] else 0,
        "train.save_every_steps": max(original["ckpt"]["step_interval"], 0),
        "train.log_every_steps": original["log"]["interval_train"],
        "train.wandb_project": original["wandb"]["project"] if original["wandb"]["enable"] else None,
        "train.test_weights": "last",
        "evaluation.score": "dual",
        "seed": original["seed"],
    }


def _weights(original: dict[str, Any]) -> dict[str, Any]:
    """Where weights come from: a checkpoint, or the towers' public ones below data/."""
    model, ckpt = original["model"], original["ckpt"]
    image, text = model["image_encoder"], model["text_encoder"]
    is_public = not ckpt["external_resume"]
    only = [
        name
        for side in ("image", "text") if ckpt[f"only_load_{side}_encoder"]
        for name in (f"{side}_encoder", f"{side}_projection")
    ]  # fmt: skip
    renamed = (rule.replace("module.", "").split("->") for rule in model["pretrain_prefix_change_list"])
    return {
        "output_dir": ckpt["dir"],
        "init.checkpoint": ckpt["external_resume"],
        "init.only": only or None,
        "init.rename": {old.strip(): new.strip() for old, new in renamed} or None,
        "init.image": f"data/{image['tag']}.safetensors" if is_public and image["pretrained"] else None,
        "init.text": f"data/{text['tag']}" if is_public and text["pretrained"] else None,
    }
