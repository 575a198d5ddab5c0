"""What a data loader hands to a task: padded texts with their real lengths, masked texts, images or regions with their
texts, and parallel texts.

Letters: M images, R regions, T texts, N image tokens, L text tokens, P masked positions.
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


class Transferable:
    """A dataclass of tensors that goes to a device, or to pinned memory, as a whole."""

    def to(self: Batch, device: torch.device | str, non_blocking: bool = False) -> Batch:
        return map_tensors(self, lambda x: x.to(device, non_blocking=non_blocking))

    def pin_memory(self: Batch) -> Batch:
        return map_tensors(self, Tensor.pin_memory)


@dataclass(frozen=True)
class Skipped:
    """A record that was left out: `where` is `file:line`, `reason` a few words that are the same for the same fault."""

    where: str
    reason: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}" + (f"; {self.detail}" if self.detail else "")


@dataclass
class TextBatch(Transferable):
    """ids (T, L) padded with the tokenizer's pad id to the longest text; lengths: real token counts, on the host."""

    ids: Tensor
    lengths: list[int]

    @property
    def num_tokens(self) -> int:
        return sum(self.lengths)

    @property
    def num_padded_tokens(self) -> int:
        return self.ids.numel()

    def __len__(self) -> int:
        return len(self.lengths)


@dataclass
class MaskedText(Transferable):
    """ids (T, L) with masks put in; positions (T, P), 0 where unused; targets (T, P), IGNORED_TARGET where unused."""

    ids: Tensor
    positions: Tensor
    targets: Tensor

    def select(self, index: Tensor) -> MaskedText:
        """The texts `index` (n,)."""
        return map_tensors(self, lambda x: x[index])


@dataclass
class Regions(Transferable):
    """Parts of images that texts describe, row r belongs to text r; several rows may lie in one image.

    image_of_region (R,): the row in `images`. mask (R, 1 + N) bool: image tokens inside the region, entry 0 is the
    global token and True. target_box (R, 4): centre x, centre y, width, height in [0, 1] of the image as it is fed.
    is_image (R,) bool: the row is the whole image with its caption.
    """

    image_of_region: Tensor
    mask: Tensor
    target_box: Tensor
    is_image: Tensor


@dataclass
class ImageTextBatch(Transferable):
    """Images with their texts, image-major: the texts of one image are neighbours, images in row order.

    images (M, 3, H, W) uint8; image_id (M,): equal numbers mean the same picture; image_of_text (T,): the row in
    `images`; language_of_text (T,): index into the data set's languages; `masked` has a row per text. With `regions`
    every text has its own region: T = R, image_of_text counts 0, 1, ..., R - 1, and equal image_id (R,) is the same
    region, taken twice. `stream` names the training stream that the batch comes from.
    """

    images: Tensor
    image_id: Tensor
    texts: TextBatch
    image_of_text: Tensor
    language_of_text: Tensor
    masked: MaskedText | None = None
    skipped: list[Skipped] = field(default_factory=list)
    regions: Regions | None = None
    stream: str = "image"

    @property
    def num_images(self) -> int:
        return len(self.images)

    @property
    def num_texts(self) -> int:
        return len(self.texts)

    @property
    def num_tokens(self) -> int:
        return self.texts.num_tokens

    @property
    def num_padded_tokens(self) -> int:
        return self.texts.num_padded_tokens


@dataclass
class TextPairBatch(Transferable):
    """Parallel texts: row t of `first` and of `second` say the same (two languages, or two captions of a picture).

    `masked` belongs to `first`. For translation language modelling it holds the concatenated pairs instead, whose real
    lengths are `masked_lengths`.
    """

    first: TextBatch
    second: TextBatch
    masked: MaskedText | None = None
    masked_lengths: list[int] | None = None
    skipped: list[Skipped] = field(default_factory=list)
    stream: str = "text"

    @property
    def num_texts(self) -> int:
        return len(self.first) + len(self.second)

    @property
    def num_tokens(self) -> int:
        return self.first.num_tokens + self.second.num_tokens

    @property
    def num_padded_tokens(self) -> int:
        return self.first.num_padded_tokens + self.second.num_padded_tokens


@dataclass
class LabelledBatch(Transferable):
    """Texts with one or more images each and the class of each: images (I T, 3, H, W) uint8, all first images, then
    all second ones; labels (T,).
    """

    images: Tensor
    texts: TextBatch
    labels: Tensor
    skipped: list[Skipped] = field(default_factory=list)
    stream: str = "image"

    @property
    def image_of_text(self) -> Tensor:
        """Rows in `images` of every text's images, on the host: (I, T)."""
        return torch.arange(len(self.images)).view(-1, len(self.texts))

    @property
    def num_tokens(self) -> int:
        return self.texts.num_tokens

    @property
    def num_padded_tokens(self) -> int:
        return self.texts.num_padded_tokens


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
