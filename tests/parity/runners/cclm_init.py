"""CCLM's start from public weights, and tables for other resolutions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compat import cclm_weights, swin, vit, weights
from models.model import Model
from tasks.image_text import ImageText
from tests.parity.runners.cclm_pretrain import pretrain_tree, starting_with
from tests.parity.runners.common import assert_close, read_case
from utils.config import build

TABLE_TOLERANCE = 1e-6


def init(folder: Path) -> None:
    case = read_case(folder)
    tree = pretrain_tree(case)
    ours = weights.text_tower(starting_with(case.inputs, "text/"), tree).state
    ours |= weights.image_tower(starting_with(case.inputs, "vision/"), tree).state
    model = Model(build(Model.Config, tree))
    absent = model.load_state_dict(ours, strict=False)
    assert not absent.unexpected_keys
    mapping = json.loads((folder / "mapping.json").read_text(encoding="utf-8"))
    fresh = originals_of(model, tree, set(absent.missing_keys))
    assert fresh == {name for name, source in mapping.items() if source.startswith("fresh")}
    written = cclm_weights.to_checkpoint(ours, tree, "pretrain")
    for name, source in mapping.items():
        if source in case.inputs:
            assert torch.equal(written[name], case.inputs[source]), name
        elif source == "interpolated":
            assert_close(written[name], case.outputs[name], name, TABLE_TOLERANCE)
    check_constants(cclm_weights.to_checkpoint(model.state_dict(), tree, "pretrain"), mapping)
    task = nn.Module()
    task.model = model
    larger = {name.removeprefix("model.") for name in ImageText.fresh_parameters(task)}
    expected = set(json.loads((folder / "init_params.json").read_text(encoding="utf-8")))
    assert originals_of(model, tree, larger) == expected


def originals_of(model: Model, tree: dict[str, Any], names: set[str]) -> set[str]:
    """The original names of some of our parameters."""
    marked = {n: torch.full_like(p.detach(), float(n in names)) for n, p in model.named_parameters()}
    assert names <= set(marked)
    written = cclm_weights.to_checkpoint(marked, tree, "pretrain")
    return {name for name, value in written.items() if value.is_floating_point() and bool(value.flatten()[0])}


def check_constants(written: dict[str, Tensor], mapping: dict[str, str]) -> None:
    """Fresh parameters that the original starts at a constant start there."""
    for name, source in mapping.items():
        if source.startswith("fresh (constant"):
            expected = float(source.removeprefix("fresh (constant").removesuffix(")"))
            assert torch.allclose(written[name], torch.tensor(expected)), name


def position_interpolation(folder: Path) -> None:
    case = read_case(folder)
    for name, expected in case.outputs.items():
        kind, _, target = name.split(".")
        if kind == "relpos":
            found = swin.interpolate_table(case.inputs[name], int(target.removeprefix("w")))
        else:
            found = vit.interpolate_positions(case.inputs[name], int(target.removeprefix("g")), kept=1)
        assert_close(found, expected, name, TABLE_TOLERANCE)


KINDS = {("cclm", "init"): init, ("cclm", "position_interpolation"): position_interpolation}
