"""From a tower's width to the common space, in the forms of the systems."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ADDED_TO_NORM = 1e-8


class Projection:
    """Builds a tower's projection and brings what it returns to its final length."""

    @dataclass
    class Config:
        # linear: with a bias, unit length (CCLM, CCRK, R2D2). simple: without a bias, divided by norm + 1e-8 (ZeroVL).
        # complex: a residual block of two maps with LayerNorm, whose length is left alone (ZeroVL). plain: without a
        # bias, unit length (CLIP, Chinese-CLIP).
        kind: Literal["linear", "simple", "complex", "plain"] = "linear"
        dropout: float = 0.1  # of `complex`

        def __post_init__(self) -> None:
            if not 0 <= self.dropout < 1:
                raise ValueError(f"dropout must be in [0, 1), found {self.dropout}")

    @staticmethod
    def build(config: Config, width: int, embed_dim: int) -> nn.Module:
        """The learned map, (n, D) -> (n, E)."""
        if config.kind == "complex":
            return ResidualProjection(width, embed_dim, config.dropout)
        projection = nn.Linear(width, embed_dim, bias=config.kind == "linear")
        if config.kind == "plain":
            nn.init.normal_(projection.weight, std=width**-0.5)
        return projection

    @staticmethod
    def finish(config: Config, x: Tensor) -> Tensor:
        """Projected vectors (n, E) as embeddings, in single precision whatever the autocast."""
        with torch.autocast(x.device.type, enabled=False):
            x = x.float()
            if config.kind == "complex":
                return x
            if config.kind == "simple":
                return x / (torch.linalg.vector_norm(x, dim=-1, keepdim=True) + ADDED_TO_NORM)
            return F.normalize(x, dim=-1)


class ResidualProjection(nn.Module):
    """ZeroVL's `complex` projection: h = W x + b; LayerNorm(dropout(V GELU(h) + c) + h)."""

    def __init__(self, width: int, embed_dim: int, dropout: float) -> None:
        super().__init__()
        self.projection, self.fc = nn.Linear(width, embed_dim), nn.Linear(embed_dim, embed_dim)
        self.dropout, self.layer_norm = nn.Dropout(dropout), nn.LayerNorm(embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        """x (n, D) -> (n, E)."""
        hidden = self.projection(x)
        return self.layer_norm(self.dropout(self.fc(F.gelu(hidden))) + hidden)
