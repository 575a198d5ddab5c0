"""The door for weights: recognises whose they are and brings them into our layout for the model of a config."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from compat import (
    bert,
    cclm_weights,
    chinese_clip_training,
    chinese_clip_weights,
    r2d2_weights,
    swin,
    vit,
    zerovl_weights,
)
from compat.layout import State, Translation
from compat.parts import fit_parts
from utils.run_state import Progress

# Modules with recognise(state), released_config(state), from_checkpoint(state, model) and
# to_checkpoint(state, model, stage); the first that recognises a state dict translates it.
# CCRK's weights are CCLM's, PRD2's are R2D2's.
SYSTEMS = {"cclm": cclm_weights, "r2d2": r2d2_weights, "zerovl": zerovl_weights, "chinese_clip": chinese_clip_weights}
# What people call them.
NAMES = {
    "cclm": "CCLM or CCRK",
    "r2d2": "R2D2 or PRD2",
    "zerovl": "ZeroVL",
    "chinese_clip": "Chinese-CLIP",
}
# What `--task export --to` may name: the system and its stage.
EXPORTS = {
    "cclm_pretrain": ("cclm", "pretrain"),
    "cclm_finetune": ("cclm", "finetune"),
    "cclm_retrieval": ("cclm", "retrieval"),
    "cclm_vqa": ("cclm", "vqa"),
    "cclm_xvnli": ("cclm", "xvnli"),
    "cclm_nlvr": ("cclm", "nlvr"),
    "cclm_nlvr_pretrain": ("cclm", "nlvr_pretrain"),
    "ccrk_pretrain": ("cclm", "pretrain"),
    "ccrk_finetune": ("cclm", "finetune"),
    "r2d2": ("r2d2", "r2d2"),
    "prd2": ("r2d2", "prd2"),
    "zerovl": ("zerovl", "clip"),
    "chinese_clip": ("chinese_clip", "original"),
    "chinese_clip_hf": ("chinese_clip", "transformers"),
}

_OUR_PREFIX = "model."
# The task's own count of steps lies beside the model's weights.
_TASK_STATE = "_extra_state"
# And what else a training run needs to continue, by the beginnings of its names.
_TRAINING_STATE = {
    "teacher.": "the momentum copy of a pre-training run",
    "objective_state.": "queues and running means of a pre-training run",
}


def tensors_of(content: Mapping[str, Any]) -> State:
    """The state dict inside a file's content: bare, or under `model`, `model_state_dict` or `state_dict`.

    `module.` prefixes are removed.
    """
    for key in ("model", "model_state_dict", "state_dict"):
        if isinstance(content.get(key), Mapping):
            content = content[key]
    state = {str(name).removeprefix("module."): value for name, value in content.items() if isinstance(value, Tensor)}
    if not state:
        raise ValueError(f"no tensors in this file; it holds: {', '.join(map(str, list(content)[:6])) or 'nothing'}")
    return state


def recognise(state: State) -> str:
    """`ours`, a row of the table of systems, or `unknown`."""
    names = {name.removeprefix(_OUR_PREFIX) for name in state}
    if any(name.startswith("image_encoder.backbone.") for name in names):
        return "ours"
    return next((name for name, system in SYSTEMS.items() if system.recognise(state)), "unknown")


def released_config(state: State) -> str | None:
    """Our configuration of the released model that a state dict comes from, a path below the repository; None for
    ours and for unknown ones.
    """
    system = recognise(state)
    return SYSTEMS[system].released_config(state) if system in SYSTEMS else None


def what_fits(state: State, path: Any) -> str:
    """Whose weights a state dict is, and the command that takes the file; "" where nobody knows."""
    system = recognise(state)
    if system not in SYSTEMS:
        return ""
    try:
        config = SYSTEMS[system].released_config(state)
    except ValueError:  # of no released sizes
        config = "a configuration with their sizes"
    return f"these are weights of {NAMES[system]}, for: run.py --config {config} --checkpoint {path}"


def released_sizes(state: State) -> dict[str, Any]:
    """The `model` settings that the shapes of a state dict tell, where the system reads them; {} where it does not."""
    system = SYSTEMS.get(recognise(state))
    return system.released_sizes(state) if hasattr(system, "released_sizes") else {}


def translate(state: State, model: dict[str, Any]) -> Translation:
    """Our state for the model tree of a config; ValueError names the first keys of a layout that nobody knows.

    Our own weights may come from another image size or window: position and bias tables are interpolated to the
    config's.
    """
    system = recognise(state)
    if system in SYSTEMS:
        try:
            return SYSTEMS[system].from_checkpoint(state, model)
        except KeyError as error:  # its table asks for a size that this kind of tower does not have
            tower = model["image_encoder"]["name"]
            raise ValueError(
                f"these weights are of another image tower than model.image_encoder, a {tower} without {error}"
            ) from error
    if system == "unknown":
        known, first = ", ".join(SYSTEMS), ", ".join(list(state)[:4])
        raise ValueError(f"the weights are in no layout that is known (ours, {known}); first keys: {first}")
    ours = {n.removeprefix(_OUR_PREFIX): v for n, v in state.items() if n != _TASK_STATE}
    training = {part: [name for name in ours if name.startswith(part)] for part in _TRAINING_STATE}
    ours = {name: value for name, value in ours.items() if not name.startswith(tuple(_TRAINING_STATE))}
    tower = {n.removeprefix(_BACKBONE): v for n, v in ours.items() if n.startswith(_BACKBONE)}
    rest = {name: value for name, value in ours.items() if not name.startswith(_BACKBONE)}
    tower = _tower(tower, model["image_encoder"])
    translation = Translation(rest | {f"{_BACKBONE}{name}": value for name, value in tower.items()})
    for part, names in training.items():
        if names:
            translation.left_out[f"{part}* ({len(names)} tensors)"] = _TRAINING_STATE[part]
    return fit_parts(translation, model)


_BACKBONE = "image_encoder.backbone."
# What timm's architectures call the classifier that no tower here has.
_CLASSIFIERS = ("head.", "fc.", "classifier.")


def _tower(tower: State, image: dict[str, Any]) -> State:
    """A tower in timm's names at the config's resolution; towers that only timm knows stay as they are."""
    if image["name"] == "swin":
        return swin.to_timm(tower, image)
    if image["name"] == "vit" and image.get("class_token", True):
        return vit.to_timm(tower, image)
    return {name: value for name, value in tower.items() if not name.startswith(_CLASSIFIERS)}


def read_progress(content: Mapping[str, Any], model: dict[str, Any]) -> Progress | None:
    """How far the original's run had come that wrote a file, for the model tree of a config; None where the file or
    its system does not tell.
    """
    is_told = recognise(tensors_of(content)) == "chinese_clip"
    return chinese_clip_training.read_progress(content, model) if is_told else None


def image_tower(state: State, model: dict[str, Any]) -> Translation:
    """Our keys of a public image tower (original Swin, DeiT, CLIP or timm file) for the model tree of a config; of an
    OpenAI CLIP file also the projection and the temperature where the model has CLIP's.
    """
    if any(name.startswith("visual.") for name in state):
        return chinese_clip_weights.image_weights(state, model)
    state = {name.removeprefix("vision_encoder."): value for name, value in state.items()}
    tower = _tower(state, model["image_encoder"])
    if not model["image_encoder"].get("final_norm", True):
        tower = {name: value for name, value in tower.items() if name not in ("norm.weight", "norm.bias")}
    return Translation({f"{_BACKBONE}{name}": value for name, value in tower.items()})


def text_tower(state: State, model: dict[str, Any]) -> Translation:
    """Our keys of a public file: of BERT's family the text tower, then the fusion stack's own layers, and the
    masked-language head; of any other encoder the tower. Of a deeper file Chinese-CLIP keeps the first layers, the
    others keep evenly spaced ones.
    """
    if model["text_encoder"]["name"] == "hugging_face":
        return Translation(bert.foreign_tower(state))
    keeps_first = chinese_clip_weights.is_chinese_clip(model)
    return bert.from_public(state, model, bert.first_layers if keeps_first else bert.source_layers)


def to_original(state: State, model: dict[str, Any], layout: str) -> State:
    """A state dict in an original layout, a row of the table of exports."""
    if layout not in EXPORTS:
        raise ValueError(f"unknown layout '{layout}'; allowed: {', '.join(EXPORTS)}")
    system, stage = EXPORTS[layout]
    ours = {n.removeprefix(_OUR_PREFIX): v for n, v in state.items() if n != _TASK_STATE}
    return SYSTEMS[system].to_checkpoint(ours, model, stage)


def file_content(state: State, config: dict[str, Any], layout: str) -> dict[str, Any]:
    """What a file with a state dict in an original layout holds, so that the original's programs read it."""
    system, stage = EXPORTS[layout]
    if hasattr(SYSTEMS[system], "file_content"):
        return SYSTEMS[system].file_content(state, stage)
    return {"model": state, "config": config}
