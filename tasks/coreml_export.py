"""The towers as Core ML packages. They can be converted anywhere, but only Apple's systems run them."""

from __future__ import annotations

from pathlib import Path

import torch

from models.model import Model
from models.padded import ImageTower, TextTower
from utils.optional import require


def write_coreml(model: Model, prefix: str, parts: list[str], length: int, requirements: str) -> list[str]:
    """PREFIX.image.mlpackage and PREFIX.text.mlpackage as wanted; their paths.

    One image `image` or one text `text` (1, length) int32, padded on the right, to un-normalised `image_features` or
    `text_features`, in half precision (Chinese-CLIP's names and shapes).
    """
    coremltools = require("coremltools", f"{requirements} coremltools")
    size, options = model.image_encoder.config.image_size, {"is_normalised": False, "gives_tokens": False}
    example = {"image": torch.zeros(1, 3, size, size), "text": torch.ones(1, length, dtype=torch.int32)}
    towers = {"image": ImageTower, "text": TextTower}
    paths = []
    for part in (part for part in parts if part in towers):
        program = torch.export.export(towers[part](model, **options).eval(), (example[part],)).run_decompositions({})
        package = coremltools.convert(
            program,
            outputs=[coremltools.TensorType(f"{part}_features")],
            convert_to="mlprogram",
            minimum_deployment_target=coremltools.target.iOS15,
            compute_precision=coremltools.precision.FLOAT16,
        )
        paths.append(f"{prefix}.{part}.mlpackage")
        Path(prefix).parent.mkdir(parents=True, exist_ok=True)
        package.save(paths[-1])
    return paths
