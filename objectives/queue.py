"""A ring of a teacher's embeddings of recent iterations: more columns for a softmax than a batch has."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class EmbeddingQueue(nn.Module):
    """The last S pairs: image (S, E) and text (S, E) unit vectors, image_id (S,), age (S,) in iterations, 0 where
    nothing was put yet.

    All is buffers, the place of the next entry too, so that a resumed run has the same queue. S need not be a multiple
    of the batch: entries wrap around.
    """

    is_replicated = True  # every process puts in the rows of all of them

    def __init__(self, size: int, embed_dim: int) -> None:
        super().__init__()
        if size < 0:
            raise ValueError(f"a queue cannot have {size} entries")
        self.register_buffer("image", torch.zeros(size, embed_dim))
        self.register_buffer("text", torch.zeros(size, embed_dim))
        self.register_buffer("image_id", torch.zeros(size, dtype=torch.int64))
        self.register_buffer("age", torch.zeros(size, dtype=torch.int64))
        self.register_buffer("next", torch.zeros((), dtype=torch.int64))

    def __len__(self) -> int:
        return len(self.age)

    @property
    def is_filled(self) -> Tensor:
        """Which places hold an entry: (S,) bool."""
        return self.age > 0

    def weight(self, decay: float) -> Tensor:
        """decay ** age of every entry (S,), 0 of empty places: what an entry counts that is used `age` iterations after
        its own.
        """
        return torch.pow(decay, self.age.to(self.image.dtype)) * self.is_filled

    @torch.no_grad()
    def put(self, image: Tensor, text: Tensor, image_id: Tensor) -> None:
        """End an iteration: entries grow older, its pairs (n, E), of all processes, replace the oldest ones."""
        self.age += self.is_filled
        size = len(self)
        if not size:
            return
        places = (self.next + torch.arange(len(image), device=image.device)) % size
        kept = slice(max(0, len(image) - size), None)  # of more pairs than places the last ones stay
        for buffer, rows in ((self.image, image), (self.text, text), (self.image_id, image_id)):
            buffer[places[kept]] = rows[kept].to(buffer.dtype)
        self.age[places[kept]] = 1
        self.next.add_(len(image)).remainder_(size)
