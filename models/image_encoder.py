"""Image towers from timm behind one interface: tokens (M, 1 + N, D) whose first token stands for the whole image, or
for a region of it.

Letters as in style, and R regions.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import timm
import torch
import torch.nn.functional as F
from timm.layers import Mlp
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from models.patch_masking import PatchMasking
from models.vit_parts import QuickGELU, SelfAttention, first_token_of_block

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
ACTIVATIONS: dict[str, type[nn.Module]] = {"gelu": nn.GELU, "quick_gelu": QuickGELU}


@dataclass
class ImageConfig:
    """What every image tower has in common; pixels are scaled to [0, 1] and normalised by mean and std."""

    image_size: int = 224
    mean: list[float] = field(default_factory=lambda: list(CLIP_MEAN))
    std: list[float] = field(default_factory=lambda: list(CLIP_STD))
    is_frozen: bool = False
    recomputes_layers: bool = False  # in backward, instead of keeping what they computed: less memory, more time

    def __post_init__(self) -> None:
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise ValueError(f"mean and std need three numbers each, std above 0; found {self.mean} and {self.std}")

    @property
    def grid(self) -> int:
        """The tokens behind the global one stand for grid x grid patches of the image; 0 where that is not known."""
        return 0


@dataclass
class RegionTokens:
    """tokens (R, 1 + N, D) of regions, token 0 global, and full (M, 1 + N, D) of the images they lie in.

    shares_patches: a region's tokens are its image's but for the global one.
    """

    tokens: Tensor
    full: Tensor
    shares_patches: bool


class PatchProjection(nn.Conv2d):
    """A convolution whose stride is its kernel, as one matrix product: on a CPU its backward is several times
    faster.
    """

    @classmethod
    def like(cls, convolution: nn.Conv2d) -> PatchProjection:
        """The same weights in this form."""
        convolution.__class__ = cls
        return convolution

    def forward(self, images: Tensor) -> Tensor:
        """images (M, 3, H, W) -> (M, D, H / P, W / P)."""
        patch = self.kernel_size[0]
        num_images, _, height, width = images.shape
        grid = images.unflatten(2, (height // patch, patch)).unflatten(4, (width // patch, patch))
        patches = grid.permute(0, 2, 4, 1, 3, 5).reshape(num_images, height // patch, width // patch, -1)
        return F.linear(patches, self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)


def is_patch_projection(part: nn.Module) -> bool:
    """Whether a module is a convolution of whole, plain patches."""
    return (
        type(part) is nn.Conv2d
        and part.stride == part.kernel_size
        and part.kernel_size[0] == part.kernel_size[1] > 1
        and part.padding == (0, 0)
        and part.dilation == (1, 1)
        and part.groups == 1
    )


class ImageEncoder(nn.Module):
    """A timm backbone, its normalisation and the token layout of all systems: [global token; tokens]."""

    def __init__(self, config: ImageConfig, backbone: nn.Module, global_token: Literal["first", "mean"]) -> None:
        super().__init__()
        self.config, self.backbone, self.global_token = config, backbone, global_token
        self.width: int = backbone.num_features
        self.register_buffer("mean", torch.tensor(config.mean)[:, None, None] * 255, persistent=False)
        self.register_buffer("std", torch.tensor(config.std)[:, None, None] * 255, persistent=False)
        for part in backbone.modules():
            if is_patch_projection(part):
                PatchProjection.like(part)
            if hasattr(part, "fused_attn"):
                # The fused kernel's backward is the slower form on a CPU; on an accelerator it saves the score matrix.
                part.fused_attn = torch.cuda.is_available()
        if config.recomputes_layers:
            backbone.set_grad_checkpointing(True)

    def train(self, mode: bool = True) -> ImageEncoder:
        """As torch's; the running statistics of a frozen tower stay as they are."""
        super().train(mode)
        if self.config.is_frozen:
            for part in self.modules():
                if isinstance(part, nn.modules.batchnorm._BatchNorm):
                    part.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        """images (M, 3, H, W): uint8 pixels, or floats that are normalised already. Returns tokens (M, 1 + N, D)."""
        tokens = self._as_sequence(self.backbone.forward_features(self.normalise(images)))
        if self.global_token == "first":
            return tokens
        return torch.cat([tokens.mean(dim=1, keepdim=True), tokens], dim=1)

    def first_token(self, images: Tensor) -> Tensor:
        """Token 0 alone (M, 1, D), as forward gives it."""
        return self(images)[:, :1]

    def encode_regions(self, images: Tensor, image_of_region: Tensor, mask: Tensor) -> RegionTokens:
        """Tokens of the regions image_of_region (R,), mask (R, 1 + N) bool, in images (M, 3, H, W).

        The tower runs once per image; the global token of a region is the mean of the tokens inside it (CCLM's Swin).
        """
        full = self(images)
        patches, inside = full[image_of_region, 1:], mask[:, 1:, None].to(full.dtype)  # (R, N, D), (R, N, 1)
        mean = (patches * inside).sum(dim=1, keepdim=True) / inside.sum(dim=1, keepdim=True)
        return RegionTokens(torch.cat([mean, patches], dim=1), full, shares_patches=True)

    def normalise(self, images: Tensor) -> Tensor:
        """Pixels (M, 3, H, W), uint8 as normalised floats; floats are normalised already."""
        return (images - self.mean) / self.std if images.dtype == torch.uint8 else images

    def _as_sequence(self, feature_map: Tensor) -> Tensor:
        if feature_map.dim() == 3:
            return feature_map
        if feature_map.shape[-1] == self.width and feature_map.shape[1] != self.width:
            return feature_map.flatten(1, 2)  # channels last (M, N, D)
        return feature_map.flatten(2).transpose(1, 2)  # channels first (M, N, D)


class Swin(ImageEncoder):
    """Swin Transformer (Liu et al. 2021) at any resolution and window; the global token is the mean of the normed
    map.
    """

    @dataclass
    class Config(ImageConfig):
        name: str = "swin"
        patch_size: int = 4
        window_size: int = 7
        width: int = 128
        depths: list[int] = field(default_factory=lambda: [2, 2, 18, 2])
        num_heads: list[int] = field(default_factory=lambda: [4, 8, 16, 32])
        drop_path: float = 0.1

        def __post_init__(self) -> None:
            super().__post_init__()
            if len(self.depths) != len(self.num_heads):
                raise ValueError(f"depths {self.depths} and num_heads {self.num_heads} differ in length")
            stage = self.image_size // self.patch_size
            for number in range(len(self.depths)):
                if stage > self.window_size and stage % self.window_size:
                    raise ValueError(
                        f"image_size {self.image_size}: stage {number} is {stage} wide, "
                        f"not a multiple of window_size {self.window_size}"
                    )
                if number + 1 < len(self.depths) and stage % 2:
                    raise ValueError(
                        f"image_size {self.image_size}: stage {number} is {stage} wide and cannot be halved"
                    )
                stage //= 2

        @property
        def grid(self) -> int:
            return self.image_size // (self.patch_size * 2 ** (len(self.depths) - 1))

    def __init__(self, config: Config) -> None:
        backbone = SwinTransformer(
            img_size=config.image_size,
            patch_size=config.patch_size,
            num_classes=0,
            embed_dim=config.width,
            depths=tuple(config.depths),
            num_heads=tuple(config.num_heads),
            window_size=config.window_size,
            drop_path_rate=config.drop_path,
        )
        super().__init__(config, backbone, "mean")


class ViT(ImageEncoder):
    """Vision Transformer (Dosovitskiy et al. 2021), DeiT and CLIP forms; without a class token the mean stands
    first.
    """

    @dataclass
    class Config(ImageConfig):
        name: str = "vit"
        patch_size: int = 16
        width: int = 768
        num_layers: int = 12
        num_heads: int = 12
        mlp_ratio: float = 4.0
        class_token: bool = True
        # CLIP: a norm before the first layer, no bias in the patch projection, quick GELU, layer_norm_eps 1e-5.
        is_clip: bool = False
        activation: Literal["gelu", "quick_gelu"] | None = None  # not said: as in DeiT's or in CLIP's form
        layer_norm_eps: float = 1e-6
        final_norm: bool = True
        drop_path: float = 0.0
        dropout: float = 0.0
        mask_ratio: float = 0.0  # of the patches of a training image, left out at random (FLIP)
        # Regions part from their image in so many last layers, where they see nothing but themselves (X-VLM, CCLM).
        num_region_layers: int = 4

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.num_region_layers < 0:
                raise ValueError(f"num_region_layers must not be negative, found {self.num_region_layers}")
            if self.image_size % self.patch_size:
                raise ValueError(f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}")
            if not 0 <= self.mask_ratio < 1 or (self.mask_ratio and not self.class_token):
                raise ValueError(f"mask_ratio must be in [0, 1), with a class_token; found {self.mask_ratio}")
            if self.width % self.num_heads:
                raise ValueError(f"width {self.width} is not a multiple of num_heads {self.num_heads}")

        @property
        def grid(self) -> int:
            return self.image_size // self.patch_size

    def __init__(self, config: Config) -> None:
        backbone = VisionTransformer(
            img_size=config.image_size,
            patch_size=config.patch_size,
            num_classes=0,
            global_pool="token" if config.class_token else "avg",
            class_token=config.class_token,
            embed_dim=config.width,
            depth=config.num_layers,
            num_heads=config.num_heads,
            mlp_ratio=config.mlp_ratio,
            pre_norm=config.is_clip,
            final_norm=config.final_norm,
            fc_norm=False,
            drop_path_rate=config.drop_path,
            proj_drop_rate=config.dropout,
            norm_layer=_layer_norm(config.layer_norm_eps),
            act_layer=ACTIVATIONS[config.activation or ("quick_gelu" if config.is_clip else "gelu")],
            mlp_layer=Mlp,
        )
        if config.mask_ratio:
            backbone.patch_drop = PatchMasking(config.mask_ratio)
        super().__init__(config, backbone, "first" if config.class_token else "mean")
        for block in backbone.blocks:
            SelfAttention.like(block.attn)

    def first_token(self, images: Tensor) -> Tensor:
        """As ImageEncoder, but the last layer computes no other token."""
        backbone = self.backbone
        if self.global_token == "mean" or backbone.grad_checkpointing:
            return super().first_token(images)
        x = backbone._pos_embed(backbone.patch_embed(self.normalise(images)))
        x = backbone.blocks[:-1](backbone.norm_pre(backbone.patch_drop(x)))
        return backbone.norm(first_token_of_block(backbone.blocks[-1], x))

    def encode_regions(self, images: Tensor, image_of_region: Tensor, mask: Tensor) -> RegionTokens:
        """As ImageEncoder, but the last num_region_layers run on the regions apart, with a key mask."""
        if self.global_token == "mean":
            return super().encode_regions(images, image_of_region, mask)
        backbone = self.backbone
        x = backbone.norm_pre(backbone._pos_embed(backbone.patch_embed(self.normalise(images))))
        num_shared = max(0, len(backbone.blocks) - self.config.num_region_layers)
        full = backbone.blocks[:num_shared](x)
        both = torch.cat([full[image_of_region], full])  # (R + M, 1 + N, D)
        is_key = torch.cat([mask, mask.new_ones(full.shape[:2])])[:, None, None, :]
        for block in backbone.blocks[num_shared:]:
            both = block(both, attn_mask=torch.zeros_like(is_key, dtype=both.dtype).masked_fill(~is_key, -torch.inf))
        tokens, full = backbone.norm(both).split([len(mask), len(full)])
        return RegionTokens(tokens, full, shares_patches=False)


class Timm(ImageEncoder):
    """Any timm architecture by its name, built without downloading; weights come through `init.image`."""

    @dataclass
    class Config(ImageConfig):
        model: str = "vit_base_patch16_224"
        name: str = "timm"
        drop_path: float = 0.0
        # Statistics of batch norms: of each process's batch, of the batch of all (GPUs only), or as loaded for good.
        batch_norm: Literal["local", "synced", "frozen"] = "local"

        def __post_init__(self) -> None:
            super().__post_init__()
            if not timm.is_model(self.model):
                near = timm.list_models(f"*{self.model[:6]}*")[:5]
                raise ValueError(f"timm has no model {self.model!r}; near it: {', '.join(near) or 'none'}")

    def __init__(self, config: Config) -> None:
        options: dict[str, object] = {"drop_path_rate": config.drop_path} if config.drop_path else {}
        if any(word in config.model for word in ("vit", "swin", "deit", "beit", "eva")):
            options["img_size"] = config.image_size
        backbone = timm.create_model(config.model, pretrained=False, num_classes=0, **options)
        if config.batch_norm == "synced":
            backbone = timm.layers.convert_sync_batchnorm(backbone)
        has_class_token = getattr(backbone, "cls_token", None) is not None
        super().__init__(config, backbone, "first" if has_class_token else "mean")

    def train(self, mode: bool = True) -> Timm:
        """As always; frozen batch norms stay as in evaluation."""
        super().train(mode)
        if self.config.batch_norm == "frozen":
            for part in self.modules():
                if isinstance(part, nn.modules.batchnorm._BatchNorm):
                    part.eval()
        return self


def _layer_norm(eps: float) -> type[nn.LayerNorm]:
    class LayerNorm(nn.LayerNorm):
        def __init__(self, width: int, **options: object) -> None:
            super().__init__(width, eps=eps, **options)

    return LayerNorm
