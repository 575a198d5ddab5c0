"""Our model with the methods that users of CLIP's Python programs know."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.model import Model
from models.patch_masking import PatchMasking


class ClipFace(nn.Module):
    """encode_image and encode_text give vectors before they get their length, as in the original."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    @property
    def logit_scale(self) -> nn.Parameter:
        """ln(1 / temperature), ()."""
        return self.model.temperature.log_scale

    @property
    def dtype(self) -> torch.dtype:
        """What the towers compute in, and pixels are turned into."""
        return next(self.model.image_encoder.parameters()).dtype

    def encode_image(self, image: Tensor, mask_ratio: float = 0) -> Tensor:
        """(M, E) of normalised pixels (M, 3, S, S); mask_ratio: of the patches, left out at random (FLIP)."""
        with self._masked(mask_ratio):
            return self.model.project_image(self.model.image_encoder.first_token(image.to(self.dtype)))

    def encode_text(self, text: Tensor) -> Tensor:
        """(T, E) of ids (T, L) padded with 0; a text of padding alone is read as a text of L pads."""
        lengths = [length or text.shape[1] for length in (text != self._pad_id).sum(dim=1).tolist()]
        return self.model.project_text(self.model.text_encoder(text, lengths))

    def forward(self, image: Tensor | None, text: Tensor | None, mask_ratio: float = 0) -> Tensor | tuple:
        """Unit vectors of images and texts and the factor of their products; one side's raw vectors where the other is
        None.
        """
        if image is None and text is None:
            raise ValueError("give images, texts or both")
        if text is None:
            return self.encode_image(image, mask_ratio)
        if image is None:
            return self.encode_text(text)
        sides = (self.encode_image(image, mask_ratio), self.encode_text(text))
        return *(F.normalize(side, dim=-1) for side in sides), self.logit_scale.exp()

    def get_similarity(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (M, T) of images over texts, and (T, M)."""
        image_embed, text_embed, scale = self(image, text)
        logits = scale * image_embed @ text_embed.T  # (M, T)
        return logits, logits.T

    @property
    def _pad_id(self) -> int:
        return self.model.text_encoder.config.pad_id

    @contextmanager
    def _masked(self, ratio: float) -> Iterator[None]:
        """Inside, the tower leaves out patches; a ResNet has none."""
        backbone = self.model.image_encoder.backbone
        if not ratio or not hasattr(backbone, "patch_drop"):
            yield
            return
        kept, backbone.patch_drop = backbone.patch_drop, PatchMasking(ratio).train()
        try:
            yield
        finally:
            backbone.patch_drop = kept
