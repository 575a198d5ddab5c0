"""FLIP (Li et al. 2023): a share of an image's patches is left out while training."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class PatchMasking(nn.Module):
    """Keeps the class token and, of each image of a training batch, randomly chosen patches.

    Of L patches int(L * (1 - mask_ratio)) stay, a product of floats cut off as it is in the published recipes: 4 of 25
    at 0.8. They stand in the order of their draws.
    """

    def __init__(self, mask_ratio: float) -> None:
        super().__init__()
        self.mask_ratio = mask_ratio

    def draw(self, num_images: int, num_patches: int, device: torch.device) -> Tensor:
        """A uniform number for every patch; the smallest stay: (M, N)."""
        return torch.rand(num_images, num_patches, device=device)

    def num_kept(self, num_patches: int) -> int:
        """How many patches of an image stay."""
        return int(num_patches * (1 - self.mask_ratio))

    def forward(self, x: Tensor) -> Tensor:
        """Class token and patches x (M, 1 + N, D) -> (M, 1 + K, D); unchanged outside of training."""
        if not self.training:
            return x
        num_images, num_tokens, width = x.shape
        order = self.draw(num_images, num_tokens - 1, x.device).argsort(dim=1)
        kept = order[:, : self.num_kept(num_tokens - 1), None].expand(-1, -1, width)  # (M, K, D)
        return torch.cat([x[:, :1], x[:, 1:].gather(1, kept)], dim=1)
