"""Vectors of pictures and texts outside of training: batches read by workers, texts of about one length together.

Letters: M images, T texts, E embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from dataset.batch import pad_texts
from dataset.extraction import ImageSource, Pixels
from dataset.files import DataError
from dataset.loader import start_worker
from dataset.transforms import Transform
from utils.precision import autocast

# amp is fp32, as in Chinese-CLIP's extraction.
AnyPrecision = Literal["fp32", "bf16", "fp16", "amp"]

# Activations of so many pictures stay in memory that is used again; larger blocks are fetched anew for each layer.
CPU_BATCH = 8


def context(precision: AnyPrecision, device: torch.device) -> Any:
    """The context of a forward pass."""
    return autocast("fp32" if precision == "amp" else precision, device)


def unit_vectors(model: Any, images: Tensor) -> Tensor:
    """Embeddings (M, E) in the common space."""
    pieces = images.split(CPU_BATCH if images.device.type == "cpu" else len(images))
    return torch.cat([model.embed_image(piece) for piece in pieces])


@torch.inference_mode()
def encode_pictures(
    loaded: Any,
    source: ImageSource,
    parts: Sequence[Sequence[int]],
    device: torch.device,
    precision: AnyPrecision,
    *,
    batch_size: int,
    workers: int = 0,
    transform: Transform | None = None,
    seed: Sequence[int] = (),
    encode: Callable[[Any, Tensor], Tensor] = unit_vectors,
) -> Iterator[Tensor]:
    """Vectors (M, E) of each part of the places of a source; DataError names a picture that cannot be used.

    transform: another one than the model's evaluation has, its draws seeded; encode: what is made of (M, 3, S, S).
    """
    batches = [part[start : start + batch_size] for part in parts for start in range(0, len(part), batch_size)]
    pixels = DataLoader(
        Pixels(source, transform or loaded.inputs.transform, seed),
        batch_size=None,
        sampler=batches,
        num_workers=workers,
        worker_init_fn=start_worker,
        pin_memory=device.type == "cuda",
    )
    arriving = iter(pixels)
    for part in parts:
        found = []
        for _ in range(0, len(part), batch_size):
            images = next(arriving)
            if isinstance(images, str):
                raise DataError(images)
            with context(precision, device):
                found.append(encode(loaded.model, images.to(device, non_blocking=True)).float())
        yield torch.cat(found)


@torch.inference_mode()
def encode_tokens(
    loaded: Any, tokens: Sequence[Sequence[int]], device: torch.device, precision: AnyPrecision, *, batch_size: int
) -> Tensor:
    """Unit vectors (T, E) of texts as token ids, in their order."""
    order = sorted(range(len(tokens)), key=lambda row: len(tokens[row]))
    vectors = []
    for start in range(0, len(order), batch_size):
        batch = pad_texts([tokens[row] for row in order[start : start + batch_size]], loaded.inputs.tokenizer.pad_id)
        with context(precision, device):
            vectors.append(loaded.model.encode_text(batch.ids.to(device), batch.lengths).embed.float())
    return torch.cat(vectors)[torch.tensor(order).argsort().to(device)]
