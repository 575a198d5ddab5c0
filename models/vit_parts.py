"""Parts of a ViT that do less where no gradient is asked for: fused attention, activation in place, and a last layer
that computes the first token alone.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Attention, Block
from torch import Tensor, nn

QUICK = 1.702  # the factor of CLIP's approximation of GELU


class QuickGELU(nn.Module):
    """x sigmoid(1.702 x); without a gradient in the memory of x, which is then the caller's to give away."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training or torch.is_grad_enabled():
            return x * torch.sigmoid(QUICK * x)
        return F.silu(x.mul_(QUICK), inplace=True).mul_(1 / QUICK)


class SelfAttention(Attention):
    """timm's, fused where that is faster: its backward is the slower form on a CPU, its forward is not."""

    @classmethod
    def like(cls, attention: Attention) -> SelfAttention:
        """The same weights in this form."""
        attention.__class__ = cls
        return attention

    @property
    def fused_attn(self) -> bool:
        if torch.cuda.is_available():
            return True
        return not (self.training or torch.is_grad_enabled() or torch.compiler.is_exporting())

    def first_token(self, x: Tensor) -> Tensor:
        """What forward gives for token 0 of x (M, 1 + N, D), computed for it alone: (M, 1, D)."""
        weights, biases = self.qkv.weight.split(self.attn_dim), [None] * 3
        if self.qkv.bias is not None:
            biases = self.qkv.bias.split(self.attn_dim)
        query, key, value = (
            F.linear(tokens, weight, bias)
            .unflatten(-1, (self.num_heads, -1))
            .transpose(1, 2)  # (M, H, 1 or 1 + N, D/H)
            for tokens, weight, bias in zip((x[:, :1], x, x), weights, biases, strict=True)
        )
        dropout = self.attn_drop.p if self.training else 0.0
        found = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout)  # (M, H, 1, D/H)
        return self.proj_drop(self.proj(found.transpose(1, 2).flatten(2)))  # (M, 1, D)


def first_token_of_block(block: Block, x: Tensor) -> Tensor:
    """Token 0 (M, 1, D) after a layer on x (M, 1 + N, D)."""
    first = x[:, :1] + block.drop_path1(block.ls1(block.attn.first_token(block.norm1(x))))
    return first + block.drop_path2(block.ls2(block.mlp(block.norm2(first))))
