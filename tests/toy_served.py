"""The output folder of a run with fresh tiny weights, as serving and exporting read it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from configs.schema import Config
from models.model import Model
from tests.toy_ccrk import toy_settings, write_toy_data
from utils.checkpoint import write_weights
from utils.config import build, dump_yaml


def write_run(folder: Path, *, num_images: int = 8, seed: int = 0, **model: Any) -> Path:
    """`folder`/out with config.yaml and weights, and `folder`/data with the pictures; `model` changes its settings."""
    write_toy_data(folder / "data", num_images=num_images)
    tree = toy_settings(folder / "data")
    tree["model"] |= model
    tree["objectives"] = {"itc": {}}
    settings = build(Config, tree)
    torch.manual_seed(seed)
    place = folder / "out" / "checkpoints" / "last"
    place.mkdir(parents=True)
    write_weights(Model(settings.model).state_dict(), place / "model.safetensors")
    dump_yaml(settings, folder / "out" / "config.yaml")
    return folder / "out"
