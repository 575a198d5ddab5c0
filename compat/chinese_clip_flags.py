"""The flags of Chinese-CLIP's trainer (training/main.py) as settings of ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from compat.chinese_clip_sizes import CONFIGS, TEXT_MODELS, VISION_MODELS, model_section, named_config
from compat.flags import SWITCH, Translation
from utils.config import ConfigError
from utils.registry import unknown_name_message

TASK = "chinese_clip"
# Every flag with the type of its value; --lr, --seed and --debug mean the same here and are read with ours.
FLAGS: dict[str, type | None] = {
    "train-data": str, "val-data": str, "num-workers": int, "valid-num-workers": int, "logs": str, "name": str,
    "log-interval": int, "report-training-batch-acc": SWITCH, "batch-size": int, "valid-batch-size": int,
    "max-steps": int, "max-epochs": int, "valid-step-interval": int, "valid-epoch-interval": int,
    "context-length": int, "beta1": float, "beta2": float, "eps": float, "wd": float, "warmup": int,
    "use-bn-sync": SWITCH, "use-augment": SWITCH, "skip-scheduler": SWITCH, "save-epoch-frequency": int,
    "save-step-frequency": int, "resume": str, "reset-optimizer": SWITCH, "reset-data-offset": SWITCH,
    "precision": str, "vision-model": str, "mask-ratio": float, "clip-weight-path": str, "freeze-vision": SWITCH,
    "text-model": str, "bert-weight-path": str, "grad-checkpointing": SWITCH, "use-flash-attention": SWITCH,
    "accum-freq": int, "gather-with-grad": SWITCH, "skip-aggregate": SWITCH, "distillation": SWITCH,
    "teacher-model-name": str, "kd_loss_weight": float,
}  # fmt: skip
# --freeze-vision: the tower with its projection, and batch norms in evaluation mode.
FROZEN_VISION: dict[str, Any] = {
    "model.image_encoder.is_frozen": True,
    "optim.frozen": [r"^model\.image_projection\."],
}
PRECISIONS = {"amp": "fp16", "fp16": "fp16", "fp32": "fp32", "bf16": "bf16"}
DIRECT = {
    "num-workers": "data.num_workers",
    "log-interval": "train.log_every_steps",
    "max-steps": "train.max_steps",
    "max-epochs": "train.epochs",
    "context-length": "data.max_tokens",
    "eps": "optim.eps",
    "wd": "optim.weight_decay",
    "warmup": "schedule.warmup",
    "resume": "init.checkpoint",
    "clip-weight-path": "init.image",
    "bert-weight-path": "init.text",
}
# Here 0 and below mean: never.
INTERVALS = {
    "valid-step-interval": "train.eval_every_steps",
    "valid-epoch-interval": "train.eval_every_epochs",
    "save-epoch-frequency": "train.save_every_epochs",
    "save-step-frequency": "train.save_every_steps",
}
# The original's teachers, which it gets from ModelScope; two of them are released files.
TEACHERS = {
    "damo/multi-modal_clip-vit-huge-patch14_zh": "clip_cn_vit-h-14.pt",
    "damo/multi-modal_clip-vit-large-patch14_zh": "clip_cn_vit-l-14.pt",
    "damo/multi-modal_team-vit-large-patch14_multi-modal-similarity": "",
    "damo/multi-modal_rleg-vit-large-patch14": "",
}
DEFAULT_VISION, DEFAULT_TEXT = "ViT-B-16", "RoBERTa-wwm-ext-base-chinese"


def take(argv: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """The command without the trainer's flags, and their values by name; other tasks' commands come back whole."""
    if not _is_trainer(argv):
        return list(argv), {}
    kept, given, words = [], {}, list(argv)
    while words:
        word = words.pop(0)
        name, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") or name not in FLAGS:
            kept.append(word)
            continue
        kind = FLAGS[name]
        if kind is SWITCH:
            given[name] = True
            continue
        if not equals:
            if not words:
                raise ValueError(f"--{name} needs a value behind it")
            value = words.pop(0)
        given[name] = _convert(name, value, kind)
    return kept, given


def _is_trainer(argv: Sequence[str]) -> bool:
    pairs = zip(argv, argv[1:], strict=False)
    return f"--task={TASK}" in argv or any(pair == ("--task", TASK) for pair in pairs)


def _convert(name: str, value: str, kind: type) -> Any:
    try:
        return kind(value)
    except ValueError as error:
        words = {int: "a whole number", float: "a number"}
        raise ValueError(f"--{name} must be {words[kind]}, found '{value}'") from error


def config_of(given: Mapping[str, Any]) -> str | None:
    """Our configuration of the towers that the flags name; None where they name none."""
    if "vision-model" not in given and "text-model" not in given:
        return None
    vision = given.get("vision-model", DEFAULT_VISION)
    for name, table in ((vision, VISION_MODELS), (given.get("text-model", DEFAULT_TEXT), TEXT_MODELS)):
        if name not in table:
            raise ValueError(unknown_name_message("model", name, list(table)))
    return next(path for own, _, path in CONFIGS if own == vision)


def output_of(given: Mapping[str, Any]) -> str | None:
    """The folder of a run: `{logs}/{name}`, as there."""
    if "logs" not in given and "name" not in given:
        return None
    logs = given.get("logs") or "logs"
    return str(Path("logs" if logs.lower() == "none" else logs) / given.get("name", "train_clip"))


def translate(given: Mapping[str, Any], world: int) -> Translation:
    """Settings and notices of the flags, for a run of `world` processes."""
    found = Translation({DIRECT[name]: given[name] for name in DIRECT if name in given})
    found.settings |= {INTERVALS[name]: max(given[name], 0) for name in INTERVALS if name in given}
    for part in (_data, _model, _optimizer, _objectives):
        part(given, world, found)
    _notices(given, found)
    return found


def _data(given: Mapping[str, Any], world: int, found: Translation) -> None:
    for split, flag in (("train", "train-data"), ("val", "val-data"), ("test", "val-data")):
        if flag in given:
            found.settings |= {f"data.{split}.name": "pairs", f"data.{split}.files": {"zh": given[flag]}}
    if "train-data" in given and "val-data" not in given:
        found.settings |= {"data.val": None, "data.test": None}
    if "use-augment" in given:
        found.settings["data.train_transform"] = {"name": "clip_augment"}
    if "batch-size" in given:
        found.settings["data.batch_size"] = given["batch-size"] * world
    if given.get("accum-freq", 1) > 1:
        found.settings |= {"train.accumulate": given["accum-freq"], "train.accumulate_decoupled": True}
    if "valid-batch-size" in given:
        size = given["valid-batch-size"]
        found.settings |= {"evaluation.batch_size_image": size, "evaluation.in_batch_size": size}


def _model(given: Mapping[str, Any], world: int, found: Translation) -> None:
    vision = given.get("vision-model", DEFAULT_VISION)
    section = model_section(named_config(vision, given.get("text-model", DEFAULT_TEXT)))
    for flag, part in (("vision-model", "image_encoder"), ("text-model", "text_encoder")):
        if flag in given:
            found.settings |= {f"model.{part}.{name}": value for name, value in section[part].items()}
    if "vision-model" in given:
        found.settings |= {
            "model.embed_dim": section["embed_dim"],
            "model.image_projection_form": section.get("image_projection_form"),
        }
    is_resnet = vision == "RN50"
    if given.get("mask-ratio") and is_resnet:
        found.notices.append("--mask-ratio masks patches, of which RN50 has none; it is not used")
    elif "mask-ratio" in given:
        found.settings["model.image_encoder.mask_ratio"] = given["mask-ratio"]
    if "grad-checkpointing" in given:
        found.settings["model.text_encoder.recomputes_layers"] = True
        if not is_resnet:
            found.settings["model.image_encoder.recomputes_layers"] = True
    if "use-bn-sync" in given and is_resnet:
        found.settings["model.image_encoder.sync_batch_norm"] = True
    if "freeze-vision" in given:
        found.settings |= FROZEN_VISION


def _optimizer(given: Mapping[str, Any], world: int, found: Translation) -> None:
    if "beta1" in given or "beta2" in given:
        second = 0.999 if given.get("vision-model") == "RN50" else 0.98
        found.settings["optim.betas"] = [given.get("beta1", 0.9), given.get("beta2", second)]
    if "resume" in given:
        found.settings["init.keeps_optimizer"] = "reset-optimizer" not in given
        found.settings["init.keeps_position"] = "reset-data-offset" not in given
    if "precision" in given:
        if given["precision"] not in PRECISIONS:
            raise ConfigError(f"command line: --precision must be one of {', '.join(PRECISIONS)}")
        found.settings["train.precision"] = PRECISIONS[given["precision"]]


def _objectives(given: Mapping[str, Any], world: int, found: Translation) -> None:
    gather = "none" if "skip-aggregate" in given else "exact"
    if gather == "none":
        found.settings["objectives.nce.gather"] = gather
    elif world > 1 and "gather-with-grad" not in given:
        found.notices.append(
            "gradients travel through the gathering, as with --gather-with-grad; objectives.nce.gather=local_slice "
            "gives those of the original's default"
        )
    if given.get("accum-freq", 1) > 1:
        found.notices.append(
            "the temperature's gradient is that of the whole batch; train.decoupled_parameter_gradient=repeated "
            "gives the original's, --accum-freq times as large"
        )
    idle = [f"--{name}" for name in ("teacher-model-name", "kd_loss_weight") if name in given]
    if idle and "distillation" not in given:
        found.notices.append(f"{' and '.join(idle)}: nothing is distilled without --distillation")
        return
    if given.get("teacher-model-name") in TEACHERS:
        raise ConfigError(_told_teacher(given["teacher-model-name"]))
    if "distillation" in given:
        if "teacher-model-name" not in given:
            raise ConfigError("command line: --distillation needs --teacher-model-name, a checkpoint of any system")
        teacher = {"teacher": given["teacher-model-name"], "weight": given.get("kd_loss_weight", 0.5)}
        found.settings["objectives.distill_images"] = teacher | {"gather": gather}


def _told_teacher(name: str) -> str:
    file = TEACHERS[name] or "its model is of no system here, any released file or run does, as clip_cn_vit-h-14.pt"
    return f"command line: --teacher-model-name {name} is a name on ModelScope, and nothing is downloaded; give {file}"


def _notices(given: Mapping[str, Any], found: Translation) -> None:
    if given.get("precision") == "fp16":
        found.notices.append("--precision fp16 is mixed precision as amp is: weights and moments stay in 32 bits")
    if "valid-num-workers" in given:
        found.notices.append("--valid-num-workers is not used; as many threads as --num-workers read the evaluation")
    if given.get("logs", "logs").lower() in ("", "none"):
        found.notices.append("--logs none: a run always writes its folder, here below 'logs'")
    if "use-flash-attention" in given:
        found.notices.append("--use-flash-attention: the fastest attention of the machine is used in any case")
    if "skip-scheduler" in given:
        found.notices.append("--skip-scheduler has no effect, there as here; schedule.name=constant has")
