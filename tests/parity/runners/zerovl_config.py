"""ZeroVL's configuration files and overrides, and that ours say the same."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from compat.zerovl_defaults import PUBLISHED, resolve
from utils.config import ConfigError

# The original refuses whole numbers for fractions and tears values in parentheses apart; ours takes both.
BETTER = {"optim.lr.init=1": 1.0, "transforms.random_resize_crop.scale=(0.5,1.0)": [0.5, 1.0]}


def run_config(folder: Path) -> None:
    resolved = json.loads((folder / "resolved.json").read_text(encoding="utf-8"))
    for name, expected in resolved.items():
        task = Path(name).parts[0]
        assert resolve(PUBLISHED[Path(name).name], task=task) == expected, name
        assert resolve(without_output(expected), task=task) == expected, name  # a whole file over the defaults
    overrides = json.loads((folder / "overrides.json").read_text(encoding="utf-8"))
    task, file = Path(overrides["base"]).parts
    for case in overrides["cases"]:
        check_override(PUBLISHED[file], case, task)


def without_output(resolved: dict[str, Any]) -> dict[str, Any]:
    """A resolved configuration as it was before its output folder got the name of the experiment."""
    tree = copy.deepcopy(resolved)
    tree["ckpt"]["dir"] = str(tree["ckpt"]["dir"]).removesuffix(f"/{tree['data']['exp_name']}")
    return tree


def check_override(base: dict[str, Any], case: dict[str, Any], task: str) -> None:
    word = case["arg"]
    if not case["ok"] and word not in BETTER:
        with pytest.raises(ConfigError):
            resolve(base, [word], task)
        return
    value: Any = resolve(base, [word], task)
    for key in word.partition("=")[0].split("."):
        value = value[key]
    expected = BETTER.get(word, case.get("value"))
    assert value == expected and type(value) is type(expected), (word, value)


KINDS = {("zerovl", "config"): run_config}
