"""What a data loader hands to a task: padded texts with their real lengths, masked texts, and images with their texts.

Letters: M images, T texts, L text tokens, P masked positions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

IGNORED_TARGET = -100

Batch = TypeVar("Batch")


@dataclass(frozen=True)
class Skipped:
    """A record that was left out: `where` is `file:line`, `reason` a few words that are the same for the same fault."""

    where: str
    reason: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}" + (f"; {self.detail}" if self.detail else "")


@dataclass
class TextBatch:
    """ids (T, L) padded with the tokenizer's pad id to the longest text; lengths: real token counts, on the host."""

    ids: Tensor
    lengths: list[int]

    @property
    def num_tokens(self) -> int:
        return sum(self.lengths)

    @property
    def num_padded_tokens(self) -> int:
        return self.ids.numel()

    def to(self, device: torch.device | str, non_blocking: bool = False) -> TextBatch:
        return map_tensors(self, lambda x: x.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> TextBatch:
        return map_tensors(self, Tensor.pin_memory)

    def __len__(self) -> int:
        return len(self.lengths)


@dataclass
class MaskedText:
    """ids (T, L) with masks put in; positions (T, P), 0 where unused; targets (T, P), IGNORED_TARGET where unused."""

    ids: Tensor
    positions: Tensor
    targets: Tensor

    def to(self, device: torch.device | str, non_blocking: bool = False) -> MaskedText:
        return map_tensors(self, lambda x: x.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> MaskedText:
        return map_tensors(self, Tensor.pin_memory)


@dataclass
class ImageTextBatch:
    """Images with their texts, image-major: the texts of one image are neighbours, images in row order.

    images (M, 3, H, W) uint8; image_id (M,): equal numbers mean the same picture; image_of_text (T,): the row in
    `images`; language_of_text (T,): index into the data set's languages; `masked` has a row per text.
    """

    images: Tensor
    image_id: Tensor
    texts: TextBatch
    image_of_text: Tensor
    language_of_text: Tensor
    masked: MaskedText | None = None
    skipped: list[Skipped] = field(default_factory=list)

    @property
    def num_images(self) -> int:
        return len(self.image_id)

    @property
    def num_texts(self) -> int:
        return len(self.texts)

    @property
    def num_tokens(self) -> int:
        return self.texts.num_tokens

    @property
    def num_padded_tokens(self) -> int:
        return self.texts.num_padded_tokens

    def to(self, device: torch.device | str, non_blocking: bool = False) -> ImageTextBatch:
        return map_tensors(self, lambda x: x.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> ImageTextBatch:
        return map_tensors(self, Tensor.pin_memory)


def map_tensors(batch: Batch, function: Callable[[Tensor], Tensor]) -> Batch:
    """The same batch with the function applied to every tensor in it; everything else is shared."""
    changed = {}
    for entry in dataclasses.fields(batch):
        value = getattr(batch, entry.name)
        if isinstance(value, Tensor):
            changed[entry.name] = function(value)
        elif dataclasses.is_dataclass(value):
            changed[entry.name] = map_tensors(value, function)
    return dataclasses.replace(batch, **changed)


def pad_texts(texts: Sequence[Sequence[int]], pad_id: int) -> TextBatch:
    """Token ids of any lengths as one TextBatch, padded to the longest."""
    lengths = [len(text) for text in texts]
    ids = torch.full((len(texts), max(lengths, default=0)), pad_id, dtype=torch.int64)  # (T, L)
    for row, text in enumerate(texts):
        ids[row, : len(text)] = torch.as_tensor(text, dtype=torch.int64)
    return TextBatch(ids=ids, lengths=lengths)
