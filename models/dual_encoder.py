"""Two towers and a common space: images and texts become unit vectors whose product is their similarity.

Models that only read pairs (question answering, classification) have the towers without the space.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.heads import Temperature
from models.image_encoder import ImageEncoder
from models.packing import Packing
from models.text_encoder import TextEncoder, TextState


@dataclass
class ImageState:
    """Images after the tower: tokens (M, N, D), token 0 global, and unit embeddings (M, E) where there is a space."""

    tokens: Tensor
    embed: Tensor | None = None


class DualEncoder(nn.Module):
    """Image tower, text tower, their projections to E dimensions and the temperature; E = 0: the towers alone."""

    def __init__(
        self,
        image_encoder: ImageEncoder,
        text_encoder: TextEncoder,
        *,
        embed_dim: int,
        shared_projection: bool,
        temperature: Temperature,
    ) -> None:
        super().__init__()
        if shared_projection and image_encoder.width != text_encoder.width:
            raise ValueError(
                "model.shared_projection needs towers of one width; "
                f"found image {image_encoder.width}, text {text_encoder.width}"
            )
        self.image_encoder, self.text_encoder = image_encoder, text_encoder
        self.temperature = self.text_projection = self.image_projection = None
        if embed_dim:
            self.temperature = temperature
            self.text_projection = nn.Linear(text_encoder.width, embed_dim)
            self.image_projection = None if shared_projection else nn.Linear(image_encoder.width, embed_dim)
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
        if not self.has_common_space:
            return ImageState(tokens)
        projection = self.image_projection or self.text_projection
        return ImageState(tokens, _unit(projection(tokens[:, 0])))

    def encode_text(self, ids: Tensor, lengths: Sequence[int] | Packing) -> TextState:
        """ids (T, L) padded on the right; lengths on the host, or a packing that is known already."""
        encoder = self.text_encoder
        state = encoder.encode_packed(ids, lengths) if isinstance(lengths, Packing) else encoder(ids, lengths)
        if self.has_common_space:
            state.embed = _unit(self.text_projection(encoder.pool(state)))
        return state


def _unit(x: Tensor) -> Tensor:
    """Rows of length 1, in single precision whatever the autocast."""
    with torch.autocast(x.device.type, enabled=False):
        return F.normalize(x.float(), dim=-1)
