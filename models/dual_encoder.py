"""Two towers and a common space: images and texts become unit vectors whose product is their similarity."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from models.heads import LogScale, Temperature
from models.image_encoder import ImageEncoder, RegionTokens
from models.packing import Packing, pack
from models.projection import Projection
from models.text_encoder import TextEncoder, TextState

Projections = Literal["both", "image", "none"]


@dataclass
class ImageState:
    """Images after the tower: tokens (M, N, D), token 0 global, and unit embeddings (M, E) where they are projected."""

    tokens: Tensor
    embed: Tensor | None = None


@dataclass
class RegionState(RegionTokens):
    """Regions after the tower, with their unit embeddings (R, E), mask (R, 1 + N) and image_of_region (R,)."""

    embed: Tensor | None
    mask: Tensor
    image_of_region: Tensor


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
        temperature: Temperature | LogScale | None,
        projections: Projections = "both",
        projection_form: Projection.Config | None = None,
        image_projection_form: Projection.Config | None = None,
    ) -> None:
        super().__init__()
        if shared_projection and image_encoder.width != text_encoder.width:
            raise ValueError(
                "model.shared_projection needs towers of one width; "
                f"found image {image_encoder.width}, text {text_encoder.width}"
            )
        self.image_encoder, self.text_encoder, self.temperature = image_encoder, text_encoder, temperature
        self.projection_form = form = projection_form or Projection.Config()
        self.image_projection_form = image_form = image_projection_form or form
        self.text_projection = self.image_projection = None
        if projections == "both":
            self.text_projection = Projection.build(form, text_encoder.width, embed_dim)
        if projections != "none" and not shared_projection:
            self.image_projection = Projection.build(image_form, image_encoder.width, embed_dim)
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
        return ImageState(tokens, self._embed_image(tokens))

    def embed_image(self, images: Tensor) -> Tensor:
        """The embeddings (M, E) that encode_image gives, where nothing reads the tokens."""
        return self._embed_image(self.image_encoder.first_token(images))

    def encode_regions(self, images: Tensor, image_of_region: Tensor, mask: Tensor) -> RegionState:
        """Regions image_of_region (R,), mask (R, 1 + N) bool with True first, of images (M, 3, H, W)."""
        found = self.image_encoder.encode_regions(images, image_of_region, mask)
        embed = self._embed_image(found.tokens)
        return RegionState(found.tokens, found.full, found.shares_patches, embed, mask, image_of_region)

    def project_image(self, tokens: Tensor) -> Tensor:
        """The image vectors (M, E) before they get their length."""
        return (self.image_projection or self.text_projection)(tokens[:, 0])

    def project_text(self, state: TextState) -> Tensor:
        """The text vectors (T, E) before they get their length."""
        return self.text_projection(self.text_encoder.pool(state))

    def _embed_image(self, tokens: Tensor) -> Tensor | None:
        if self.image_projection is None and self.text_projection is None:
            return None
        return Projection.finish(self.image_projection_form, self.project_image(tokens))

    def encode_text(
        self,
        ids: Tensor,
        lengths: Sequence[int] | Packing,
        change_projected: Callable[[Tensor], Tensor] | None = None,
    ) -> TextState:
        """ids (T, L) padded on the right; lengths on the host, or a packing that is known already.

        change_projected is applied to the projected vectors (T, E) before they get their length.
        """
        encoder = self.text_encoder
        state = encoder.encode_packed(ids, lengths) if isinstance(lengths, Packing) else encoder(ids, lengths)
        return self.embed_encoded(state, change_projected)

    def embed_encoded(self, state: TextState, change_projected: Callable[[Tensor], Tensor] | None = None) -> TextState:
        """The same texts with their embeddings, where the model projects texts; see `encode_text`."""
        if self.text_projection is not None:
            state.embed = self._embed_text(self.text_encoder.pool(state), change_projected)
        return state

    def embed_text(
        self, ids: Tensor, lengths: Sequence[int], change_projected: Callable[[Tensor], Tensor] | None = None
    ) -> Tensor:
        """The embeddings (T, E) that encode_text gives, where nothing reads the tokens."""
        return self._embed_text(self.text_encoder.encode_pooled(ids, pack(lengths, ids.device)), change_projected)

    def _embed_text(self, pooled: Tensor, change_projected: Callable[[Tensor], Tensor] | None) -> Tensor:
        projected = self.text_projection(pooled)
        if change_projected is not None:
            projected = change_projected(projected)
        return Projection.finish(self.projection_form, projected)
