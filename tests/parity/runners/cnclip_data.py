"""Chinese-CLIP's pictures on their way into the model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from dataset.transforms import Resize
from models.image_encoder import CLIP_MEAN, CLIP_STD
from tests.parity.runners.common import assert_close


def run_preprocess(folder: Path) -> None:
    outputs = load_file(folder / "outputs.safetensors")
    for number, entry in enumerate(json.loads((folder / "images.json").read_text(encoding="utf-8"))):
        data = (folder / entry["file"]).read_bytes()
        for size in entry["resolutions"]:
            pixels = Resize(Resize.Config(in_own_mode=True), size)(data, np.random.default_rng(0))
            mean, std = (torch.tensor(values)[:, None, None] for values in (CLIP_MEAN, CLIP_STD))
            found = (torch.from_numpy(pixels) / 255 - mean) / std
            assert_close(found, outputs[f"img{number}.res{size}"], f"{entry['file']} at {size}")


KINDS = {("chinese_clip", "preprocess"): run_preprocess}
