"""Two towers and a common space: images and texts become unit vectors whose product is their similarity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.heads import Temperature
from models.image_encoder import ImageEncoder
from models.packing import Packing
from models.text_encoder import TextEncoder, TextState

Projections = Literal["both", "image", "none"]


Projections = Literal["both", "image", "none"]


@dataclass
class ImageState:
    """Images after the tower: tokens (M, N, D), token 0 global, and unit embeddings (M, E) where they are projected."""

    tokens: Tensor
    embed: Tensor | None


class DualEncoder(nn.Module):
    """Image tower, text tower, their projections to E dimensions and the temperature.

    Fine-tuned classifiers keep the towers alone (projections `none`), or what compares images with images (`image`);
    only `both` has a temperature.
    """

    def __init__(
        self,
        image_encoder: ImageEncoder,
        text_encoder: TextEncoder,
        *,
        embed_dim: int,
        shared_projection: bool,
        temperature: Temperature | None,
        projections: Projections = "both",
    ) -> None:
        super().__init__()
        if shared_projection and image_encoder.width != text_encoder.width:
            raise ValueError(
                "model.shared_projection needs towers of one width; "
                f"found image {image_encoder.width}, text {text_encoder.width}"
            )
        self.image_encoder, self.text_encoder, self.temperature = image_encoder, text_encoder, temperature
        self.text_projection = nn.Linear(text_encoder.width, embed_dim) if projections == "both" else None
        self.image_projection = None
        if projections != "none" and not shared_projection:
            self.image_projection = nn.Linear(image_encoder.width, embed_dim)
        for tower in (image_encoder, text_encoder):
            if tower.config.is_frozen:
                tower.requires_grad_(False)

    @property
    def has_common_space(self) -> bool:
        """Whether images and texts have embeddings."""
        return self.text_projection is not None

    def encode_image(self, images: Tensor) -> ImageState:
        """images (M, 3, H, W), uint8 or normalised floats."""
        tokens = self.image_encoder(images)
        projection = self.image_projection or self.text_projection
        return ImageState(tokens, None if projection is None else _unit(projection(tokens[:, 0])))

    def encode_text(self, ids: Tensor, lengths: Sequence[int] | Packing) -> TextState:
        """ids (T, L) padded on the right; lengths on the host, or a packing that is known already."""
        encoder = self.text_encoder
        state = encoder.encode_packed(ids, lengths) if isinstance(lengths, Packing) else encoder(ids, lengths)
        if self.text_projection is not None:
            state.embed = _unit(self.text_projection(encoder.pool(state)))
        return state


def _unit(x: Tensor) -> Tensor:
    """Rows of length 1, in single precision whatever the autocast."""
    with torch.autocast(x.device.type, enabled=False):
        return F.normalize(x.float(), dim=-1)
