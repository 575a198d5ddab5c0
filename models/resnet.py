"""CLIP's modified ResNet (Radford et al. 2021): three convolutions at the stem, average pooling in place of strides,
and pooling by attention for the one vector of an image.

timm's form of it rounds numbers of channels to multiples of 8; this one has the numbers of the config.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.image_encoder import ImageConfig, ImageEncoder

EXPANSION, STRIDE = 4, 32  # of a bottleneck, and of the whole tower


class ConvNorm(nn.Sequential):
    """A convolution without bias and its batch norm, names `0` and `1`."""

    def __init__(self, num_in: int, num_out: int, kernel: int, stride: int = 1) -> None:
        convolution = nn.Conv2d(num_in, num_out, kernel, stride, padding=kernel // 2, bias=False)
        super().__init__(convolution, nn.BatchNorm2d(num_out))


class Bottleneck(nn.Module):
    """Three convolutions with a shortcut; where it strides, both ways are averaged."""

    def __init__(self, num_in: int, num_inner: int, stride: int) -> None:
        super().__init__()
        num_out = num_inner * EXPANSION
        self.first, self.second = ConvNorm(num_in, num_inner, 1), ConvNorm(num_inner, num_inner, 3)
        self.third = ConvNorm(num_inner, num_out, 1)
        nn.init.zeros_(self.third[1].weight)
        self.stride = stride
        self.shortcut = ConvNorm(num_in, num_out, 1) if stride > 1 or num_in != num_out else None

    def forward(self, x: Tensor) -> Tensor:
        """x (M, C, H, W) -> (M, 4 C', H / S, W / S)."""
        inner = self._pool(F.relu(self.second(F.relu(self.first(x)))))
        kept = x if self.shortcut is None else self.shortcut(self._pool(x))
        return F.relu(self.third(inner) + kept)

    def _pool(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, self.stride) if self.stride > 1 else x


class Stages(nn.Module):
    """The stem and the four stages; num_features channels of the last one."""

    def __init__(self, width: int, depths: list[int]) -> None:
        super().__init__()
        half = width // 2
        self.stem = nn.ModuleList([ConvNorm(3, half, 3, 2), ConvNorm(half, half, 3), ConvNorm(half, width, 3)])
        self.stages, num_in = nn.ModuleList(), width
        for number, depth in enumerate(depths):
            inner = width * 2**number
            strides = [min(number, 1) + 1] + [1] * (depth - 1)
            sizes = [num_in] + [inner * EXPANSION] * (depth - 1)
            blocks = (Bottleneck(size, inner, stride) for size, stride in zip(sizes, strides, strict=True))
            self.stages.append(nn.Sequential(*blocks))
            num_in = inner * EXPANSION
        self.num_features = num_in

    def forward_features(self, x: Tensor) -> Tensor:
        """x (M, 3, H, W) -> (M, C, H / 32, W / 32)."""
        for part in self.stem:
            x = F.relu(part(x))
        x = F.avg_pool2d(x, 2)
        for stage in self.stages:
            x = stage(x)
        return x


class AttentionPool(nn.Module):
    """The mean of a feature map attends to the map (Radford et al. 2021); their last projection is the model's own.

    Only the mean's query is computed, the one that is read.
    """

    def __init__(self, width: int, num_heads: int, grid: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.position = nn.Parameter(torch.randn(grid**2 + 1, width) * width**-0.5)
        self.query, self.key_value = nn.Linear(width, width), nn.Linear(width, 2 * width)
        for part in (self.query, self.key_value):
            nn.init.normal_(part.weight, std=width**-0.5)
            nn.init.zeros_(part.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens (M, N, D) of the map -> (M, 1, D)."""
        num_images, num_tokens, width = tokens.shape
        tokens = torch.cat([tokens.mean(dim=1, keepdim=True), tokens], dim=1) + self.position
        query = self.query(tokens[:, :1]).view(num_images, 1, self.num_heads, -1).transpose(1, 2)  # (M, H, 1, d)
        both = self.key_value(tokens).view(num_images, num_tokens + 1, 2, self.num_heads, -1)
        key, value = both.permute(2, 0, 3, 1, 4).unbind(0)  # each (M, H, 1 + N, d)
        return F.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(num_images, 1, width)


class ResNet(ImageEncoder):
    """CLIP's ResNet; what the pooling makes of an image stands in front of its map's tokens."""

    @dataclass
    class Config(ImageConfig):
        name: str = "resnet"
        width: int = 64  # of the first stage
        depths: list[int] = field(default_factory=lambda: [3, 4, 6, 3])
        num_heads: int = 32  # of the pooling
        sync_batch_norm: bool = False  # statistics over the batches of all GPUs

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.image_size % STRIDE:
                raise ValueError(f"image_size {self.image_size} is not a multiple of {STRIDE}")
            if len(self.depths) != 4 or min(self.depths) < 1:
                raise ValueError(f"depths must be four numbers of at least 1, found {self.depths}")
            if self.width % 2 or (self.width * STRIDE) % self.num_heads:
                raise ValueError(f"width {self.width} must be even, and {STRIDE} times it a multiple of num_heads")
            if self.recomputes_layers:
                raise ValueError("recomputes_layers would count batches twice in a ResNet's running statistics")

        @property
        def grid(self) -> int:
            return self.image_size // STRIDE

    def __init__(self, config: Config) -> None:
        backbone = Stages(config.width, config.depths)
        if config.sync_batch_norm:
            backbone = nn.SyncBatchNorm.convert_sync_batchnorm(backbone)
        super().__init__(config, backbone, "first")
        self.pool = AttentionPool(self.width, config.num_heads, config.grid)

    def forward(self, images: Tensor) -> Tensor:
        """images (M, 3, H, W): uint8 pixels, or floats that are normalised already. Returns tokens (M, 1 + N, D)."""
        tokens = self._as_sequence(self.backbone.forward_features(self.normalise(images)))
        return torch.cat([self.pool(tokens), tokens], dim=1)
