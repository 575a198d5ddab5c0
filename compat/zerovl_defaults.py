"""ZeroVL's configuration system: what its programs start from, its published files, and its command-line overrides."""

from __future__ import annotations

import ast
import copy
import re
from collections.abc import Sequence
from typing import Any

from utils.config import ConfigError
from utils.registry import nearest

COMMAND_LINE = "command line"
# Plain dictionaries there, which a file or an override replaces as a whole.
OPEN = {"optim.param", "optim.lr.param", "optim.grad_clip", "optim.param_group_rules", "dist.param"}

CLIP: dict[str, Any] = {
    "epoch": None,
    "seed": None,
    "mae_seed": False,
    "inference": False,
    "runner": {"name": "clip", "val_interval": 1, "val_interval_steps": -1, "log_interval": 1, "stable_random": "none"},
    "dist": {"name": "torch", "enable_adasum": False, "enable_adascale": False, "fp16": True, "param": {}},
    "model": {
        "name": "clip",
        "pretrain_prefix_change_list": [],
        "max_length": 25,
        "syncbn": True,
        "interpolate_pos_embed": False,
        "freeze_cnn_bn": False,
        "image_encoder": {"name": "timm_modelzoo", "tag": "vit_base_patch16_224_in21k", "embedding_dim": 768,
                          "pretrained": True, "trainable": True, "vit": {"only_cls_token": True}},
        "text_encoder": {"name": "huggingface_modelzoo", "tag": "bert-base-uncased", "embedding_dim": 768,
                         "pretrained": True, "trainable": True, "target_token_idx": 0, "only_cls_token": False},
        "projection": {"name": "simple", "dim": 512, "text_projector_trainable": True,
                       "image_projector_trainable": True, "complex_projection": {"drop_out": 0.1}},
        "pool": {"name": "identity"},
    },
    "data": {
        "name": "parquet", "batch_size": 128, "batch_size_val": 256, "train_steps": None, "val_steps": None,
        "exp_name": "test", "train_type": "sequential", "train_name": ["cc"],
        "valid_name": ["f30k", "coco"], "data_path": "./data/", "batch_size_train": 128, "num_workers": 8,
        "enable_valid": True, "single_eval": True, "cuda_eval": True,
    },
    "optim": {
        "name": "torch.optim.AdamW",
        "param": {"betas": [0.9, 0.98], "eps": 1e-6, "weight_decay": 0.1},
        "param_group_rules": {},
        "grad_clip": {},
        "lr": {"name": "cosine_schedule_with_warmup", "init": 0.0001, "warmup_proportion": 0.025,
               "warmup_epoch": None, "param": {"num_cycles": 0.5}},
    },
    "ckpt": {"dir": "./output", "step_interval": 2000, "filename": "step_checkpoint.pth", "external_resume": None,
             "auto_resume": True, "soft_resume": False, "only_load_image_encoder": False,
             "only_load_text_encoder": False},
    "log": {"interval_train": 1, "interval_val": 1},
    "wandb": {"enable": False, "project": "your_proj", "entity": "your_entity",
              "train_record_keys": ["loss", "i2t_acc", "t2i_acc", "lr"]},
    "transforms": {
        "input_size": 224,
        "train_transforms": ["resize"],
        "valid_transforms": ["resize"],
        "resize": {"size": 224},
        "resize_bicubic": {"size": 224},
        "normalize": {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]},
        "random_crop": {"size": 224},
        "center_crop": {"size": 224},
        "random_resize_crop": {"size": 224, "scale": [0.6, 1.0]},
        "random_augment": {"N": 2, "M": 7},
        "mixup": 0.8, "cutmix": 1.0, "cutmix_minmax": None, "mixup_prob": 1.0, "mixup_switch_prob": 0.5,
        "mixup_mode": "batch",
        "random_erasing": {"reprob": 0.0, "remode": "pixel", "recount": 1},
        "color_jitter": 0.4,
    },
    "loss": {
        "name": "NCE", "global_reduce": True, "group_size": -1, "smoothing": 0.0, "extra_losses": [],
        "nce_loss": {"gather_backward": False}, "mixup": {"beta": 0.1},
        "temperature": {"name": "constant", "value": 0.02}, "triplet_loss": {"reduce_mode": "max", "margin": 0.2},
    },
}  # fmt: skip

# Both tasks of the original: the dual encoder, and the linear probe of its image tower.
DEFAULTS = {
    "clip": CLIP,
    "linear_prob": {
        **CLIP,
        "model": {key: value for key, value in CLIP["model"].items() if key != "projection"}
        | {"classifier": {"num_classes": 512}},
        "data": CLIP["data"] | {"train_name": ["imagenet1k"], "valid_name": ["imagenet1k"]},
        "wandb": {"enable": False, "project": "f30k", "entity": "zeromml",
                  "train_record_keys": ["loss", "lr", "train_acc1", "train_acc5"]},
    },
}  # fmt: skip

_COMMON = {
    "dist": {"param": {"opt_level": "O1"}},
    "data": {"train_steps": -1, "num_workers": 2, "single_eval": False},
    "log": {"interval_train": 10},
    "transforms": {"train_transforms": ["random_resize_crop", "autoaug"],
                   "valid_transforms": ["resize", "center_crop"], "resize": {"size": 256}},
}  # fmt: skip
_TRAINING = {
    **_COMMON,
    "epoch": 20,
    "runner": {"stable_random": "step"},
    "data": {**_COMMON["data"], "name": "local", "batch_size": 1024, "batch_size_val": 1024, "train_type": "shuffle",
             "train_name": ["sbu", "cc3m"]},
    "optim": {
        "param": {"betas": [0.9, 0.98], "eps": 1e-6, "weight_decay": 0.001},
        "lr": {"name": "cosine_schedule_with_warmup_min_lr_scale", "param": {"num_cycles": 0.5, "min_lr_scale": 0.1}},
    },
    "loss": {"nce_loss": {"gather_backward": True}},
}  # fmt: skip
_PLAIN_NAME = (
    "batch_shuffle.autoaug.minlr0.1.gather_backward.no_ga.t0.02.4m.local.bs1024.val_step_1000.const_temp.no_mixup"
)
_HALF = {"mean": [0.5] * 3, "std": [0.5] * 3}


def _joined(*trees: dict[str, Any]) -> dict[str, Any]:
    """Later trees over earlier ones, section by section."""
    found: dict[str, Any] = {}
    for tree in trees:
        for key, value in tree.items():
            old = found.get(key)
            found[key] = _joined(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return found


_PLAIN = _joined(_TRAINING, {"runner": {"val_interval_steps": 100}, "data": {"exp_name": _PLAIN_NAME}})
_LEARNED = {"loss": {"temperature": {"name": "parameter"}}}
# What the published files say, where they differ from the defaults.
PUBLISHED: dict[str, dict[str, Any]] = {
    "zerovl.yaml": _PLAIN,
    "zerovl_dga.yaml": _joined(_TRAINING, {
        "runner": {"name": "clip_bsgs"},
        "data": {"batch_size": 16384, "batch_size_train": 1024, "train_type": "debias", "exp_name": "your_exp_name"},
        "loss": {"name": "MixUpNCE"},
    }),
    "zerovl_14m_eval.yaml": _joined(_PLAIN, _LEARNED, {"data": {"exp_name": "eval_14m"}}),
    "zerovl_100m_eval.yaml": _joined(
        _PLAIN, _LEARNED, {"data": {"exp_name": "eval_100m"}, "transforms": {"normalize": _HALF}}
    ),
    "imagenet.yaml": _joined(_COMMON, {
        "epoch": 90,
        "runner": {"name": "linear_prob", "val_interval": 2},
        "model": {"name": "linear_prob", "image_encoder": {"pretrained": False, "trainable": False},
                  "classifier": {"num_classes": 1000}},
        "data": {"name": "imagenet_local", "batch_size": 16384, "batch_size_val": 16384,
                 "exp_name": "imagenet.linear_prob.zerovl_100m_pretrained",
                 "data_path": "./data/ILSVRC/Data/CLS-LOC/"},
        "optim": {"name": "LARS", "param": {"lr": 0.001, "momentum": 0.9, "weight_decay": 0.0},
                  "lr": {"init": 6.4, "warmup_proportion": 0.1111}},
        "ckpt": {"external_resume": "./ckpts/zerovl_100m.pth", "only_load_image_encoder": True},
        "wandb": {"project": "zerovl"},
        "transforms": {"random_resize_crop": {"scale": [0.08, 1.0]}, "normalize": _HALF},
        "loss": {"name": "CrossEntropy"},
    }),
}  # fmt: skip


def resolve(file: dict[str, Any], overrides: Sequence[str] = (), task: str = "clip") -> dict[str, Any]:
    """The original's whole configuration: a task's defaults under a file's content under `key.sub=value` words."""
    tree = copy.deepcopy(DEFAULTS[task])
    _merge(tree, file, "")
    for word in overrides:
        _override(tree, word)
    tree["ckpt"]["dir"] = f"{tree['ckpt']['dir'].rstrip('/')}/{tree['data']['exp_name']}"
    for key in ("batch_size", "batch_size_val"):
        if isinstance(tree["data"][key], list):
            tree["data"][key] = tree["data"][key][0]
    return tree


def knows(key: str, task: str = "clip") -> bool:
    """Whether the original has a setting of this name."""
    tree: Any = DEFAULTS[task]
    parts = key.split(".")
    for place, part in enumerate(parts):
        if ".".join(parts[:place]) in OPEN:
            return True
        if not isinstance(tree, dict) or part not in tree:
            return False
        tree = tree[part]
    return True


def _merge(tree: dict[str, Any], content: dict[str, Any], where: str) -> None:
    for key, value in content.items():
        dotted = f"{where}{key}"
        if key not in tree:
            raise ConfigError(_unknown(dotted, key, tree))
        if isinstance(tree[key], dict) and dotted not in OPEN:
            if not isinstance(value, dict):
                raise ConfigError(f"'{dotted}' must be a section of settings, found {value!r}")
            _merge(tree[key], value, f"{dotted}.")
        else:
            tree[key] = value if value is None or dotted in OPEN else converted(value, tree[key], dotted)


def _override(tree: dict[str, Any], word: str) -> None:
    key, equals, text = word.partition("=")
    if not equals:
        raise ConfigError(f"{COMMAND_LINE}: '{word}' is no key=value")
    *sections, last = key.strip().split(".")
    for part in sections:
        if not isinstance(tree, dict) or part not in tree:
            raise ConfigError(f"{COMMAND_LINE}: {_unknown(key, part, tree)}")
        tree = tree[part]
    if not isinstance(tree, dict) or last not in tree:
        raise ConfigError(f"{COMMAND_LINE}: {_unknown(key, last, tree)}")
    tree[last] = converted(literal(text), tree[last], key)


def literal(text: str) -> Any:
    """The value of an override: a Python literal whose words need no quotes, else the text itself."""
    text = text.strip()
    quoted = re.sub(r"(?<![\w'\"./-])([A-Za-z_./][\w./-]*)(?![\w'\"])", _quote, text)
    for candidate in (text, quoted) if text[:1] in ("[", "(", "{") else (text,):
        try:
            return ast.literal_eval(candidate)
        except (ValueError, SyntaxError):
            continue
    return text


def _quote(found: re.Match[str]) -> str:
    word = found[1]
    return word if word in ("None", "True", "False") else repr(word)


def converted(value: Any, old: Any, key: str) -> Any:
    """The value as the kind of the one it replaces."""
    if old is None or type(value) is type(old):
        return list(value) if isinstance(value, tuple) else value
    if isinstance(old, list) and isinstance(value, (tuple, str)):
        if isinstance(value, tuple):
            return list(value)
        return [part.strip() for part in value.removeprefix("[").removesuffix("]").split(",")]
    if isinstance(old, str) and not isinstance(value, (list, dict)):
        return str(value)
    if isinstance(old, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    raise ConfigError(f"{COMMAND_LINE}: '{key}' must be like {old!r}, found {value!r}")


def _unknown(dotted: str, name: str, known: Any) -> str:
    names = sorted(known) if isinstance(known, dict) else []
    close = nearest(name, names)
    return f"unknown key '{dotted}'; " + (f"did you mean '{close}'?" if close else f"allowed: {', '.join(names)}")
