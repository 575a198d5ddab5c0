"""Tiny models and batches for tests."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dataset.batch import ImageTextBatch, MaskedText, TextBatch
from models.model import Model
from utils.config import build

VOCAB, WIDTH = 60, 16


def model_tree(**changes: Any) -> dict[str, Any]:
    return {
        "image_encoder": {
            "name": "vit",
            "image_size": 32,
            "patch_size": 16,
            "width": 24,
            "num_layers": 1,
            "num_heads": 2,
        },
        "text_encoder": {
            "name": "bert",
            "vocab_size": VOCAB,
            "width": WIDTH,
            "num_layers": 2,
            "num_heads": 2,
            "mlp_width": 32,
            "max_positions": 20,
        },
        "text_fusion": {"num_layers": 2},
        "embed_dim": 8,
        "has_masked_language_head": True,
    } | changes


def build_model(seed: int = 0, **changes: Any) -> Model:
    """A model whose biases and norms are not at their neutral start values."""
    torch.manual_seed(seed)
    model = Model(build(Model.Config, model_tree(**changes)))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def make_texts(lengths: list[int], seed: int = 0) -> tuple[Tensor, Tensor]:
    """ids (T, L) and mask (T, L) of random texts."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(4, VOCAB, (len(lengths), max(lengths)), generator=generator)
    mask = torch.arange(max(lengths))[None, :] < torch.tensor(lengths)[:, None]
    return ids.masked_fill(~mask, 1), mask


def make_batch(lengths: list[int], num_images: int, seed: int = 0) -> ImageTextBatch:
    """A batch with equally many captions per image and two masked positions per text."""
    ids, _ = make_texts(lengths, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    images = torch.randint(0, 256, (num_images, 3, 32, 32), generator=generator).to(torch.uint8)
    image_of_text = torch.arange(num_images).repeat_interleave(len(lengths) // num_images)
    positions = torch.stack([torch.tensor([0, length - 1]) for length in lengths])
    targets = ids.gather(1, positions)
    targets[positions[:, 0] == positions[:, 1], 1] = -100
    masked = MaskedText(ids.scatter(1, positions, VOCAB - 1), positions, targets)
    texts = TextBatch(ids, lengths)
    return ImageTextBatch(
        images, torch.arange(num_images), texts, image_of_text, torch.zeros_like(image_of_text), masked
    )
