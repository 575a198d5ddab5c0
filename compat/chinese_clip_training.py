"""How far a training file of Chinese-CLIP's trainer had come: the moments of its AdamW under our names, epoch, step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from compat import chinese_clip_weights
from compat.layout import State
from utils.run_state import Progress

_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")
# Its first group, without weight decay, holds the names with one of these in them; its second group all others.
_FIRST_GROUP = ("bn", "ln", "bias", "logit_scale")
_MOMENTS = ("exp_avg", "exp_avg_sq")


def read_progress(content: Mapping[str, Any], model: dict[str, Any]) -> Progress | None:
    """The progress that a file of the trainer holds, for the model tree of a config; None for a file without any.

    Released files have no optimizer, some have no epoch. ValueError where the optimizer's state is of other parameters
    than the file's weights.
    """
    if "state_dict" not in content:
        return None
    progress = Progress()
    if "epoch" in content:
        progress.epoch, progress.step = int(content["epoch"]), int(content.get("step", 0))
    if content.get("optimizer"):
        progress.moments, progress.num_updates = _moments(content["state_dict"], content["optimizer"], model)
    return progress if progress.epoch is not None or progress.moments else None


def _moments(
    weights: Mapping[str, Tensor], optimizer: Mapping[str, Any], model: dict[str, Any]
) -> tuple[dict[str, dict[str, Tensor]], int]:
    """Moments by our names, and the number of updates that they come from."""
    numbers = [number for group in optimizer["param_groups"] for number in group["params"]]
    names = parameter_order(weights, len(numbers))
    state = {name: optimizer["state"][number] for name, number in zip(names, numbers) if number in optimizer["state"]}
    for name, own in state.items():
        if own["exp_avg"].shape != weights[f"module.{name}"].shape:
            raise ValueError(
                f"the optimizer's state of {name} is {list(own['exp_avg'].shape)}, its weight "
                f"{list(weights[f'module.{name}'].shape)}; add --reset-optimizer"
            )
    counts = {int(own["step"]) for own in state.values()}
    if len(counts) != 1:
        raise ValueError(f"parameters were updated {sorted(counts)} times, needed is one number; add --reset-optimizer")
    _check_positions(state, model)
    moments: dict[str, dict[str, Tensor]] = {}
    for kind in _MOMENTS:
        theirs: State = {name: own[kind] for name, own in state.items()}
        for name, value in chinese_clip_weights.from_checkpoint(theirs, model).state.items():
            moments.setdefault(name, {})[kind] = value
    return moments, counts.pop()


def parameter_order(weights: Mapping[str, Tensor], count: int) -> list[str]:
    """The original's names of the `count` parameters that its optimizer numbers, in the order of its two groups.

    Weights lie in the order of the modules, which is that of the parameters. --freeze-vision leaves the tower out.
    """
    names = [
        name.removeprefix("module.") for name in weights if not name.endswith(_BUFFERS) and "bert.pooler" not in name
    ]
    trained = next(
        (part for part in (names, [n for n in names if not n.startswith("visual.")]) if len(part) == count), None
    )
    if trained is None:
        raise ValueError(
            f"the optimizer's state is of {count} parameters, the file's weights are {len(names)}: it was trained in "
            "another layout (--use-flash-attention packs some); add --reset-optimizer"
        )
    is_first = {name: any(word in name for word in _FIRST_GROUP) for name in trained}
    return sorted(trained, key=lambda name: not is_first[name])  # stable: the order within a group stays


def _check_positions(state: Mapping[str, Any], model: dict[str, Any]) -> None:
    """Weights of positions can be stretched to another grid, their moments cannot."""
    image, positions = model["image_encoder"], state.get("visual.positional_embedding")
    if positions is None or image["name"] != "vit":
        return
    wanted = (image["image_size"] // image["patch_size"]) ** 2 + 1
    if len(positions["exp_avg"]) != wanted:
        raise ValueError(
            f"the optimizer's state is of {len(positions['exp_avg'])} positions, the model has {wanted}; add "
            "--reset-optimizer"
        )
