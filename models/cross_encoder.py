"""Fusion stack: text rows read images through cross-attention; an image's keys and values are projected once per
layer.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from models.packing import Packing, Reading, fold_by_image, read_first
from models.text_encoder import TextEncoder, TextState
from models.transformer import KeyValue, Layer, Meeting, initialise


class CrossEncoder(nn.Module):
    """A stack of layers with cross-attention on top of a text tower; queries are text rows, keys and values image
    tokens.
    """

    @dataclass
    class Config:
        num_layers: int = 6

        def __post_init__(self) -> None:
            if self.num_layers < 1:
                raise ValueError(f"num_layers {self.num_layers} is too small; a fusion stack needs at least 1")

    def __init__(self, config: Config, text: TextEncoder.Config, image_width: int) -> None:
        super().__init__()
        self.width = text.width
        self.layers = nn.ModuleList(Layer(text.layer(cross_width=image_width)) for _ in range(config.num_layers))
        initialise(self)

    def project(self, tokens: Tensor, mask: Tensor | None = None) -> list[KeyValue]:
        """Keys and values of images (M, N, V) for every layer; mask (M, N) bool, True = real."""
        return [layer.cross_attention.project(tokens, mask) for layer in self.layers]

    def attend_texts(self, texts: TextState) -> TextState:
        """Texts after the first layer's self-attention, which no image touches: worth it where a text meets many
        images.
        """
        return replace(texts, tokens=self.layers[0].attention(texts.tokens, texts.packing, None))

    def forward(
        self,
        texts: TextState,
        keys: list[KeyValue],
        image_of_text: Tensor,
        reading: Reading | None = None,
        *,
        is_attended: bool = False,
    ) -> Tensor:
        """Fused rows (R, D), or (Q, D) for `reading`; text t meets image image_of_text[t] of the projected ones.

        The last layer computes only the rows of `reading`. is_attended: the texts come from `attend_texts`.
        """
        packing = texts.packing
        exact = packing.key_mask is None and image_of_text.device.type == "cpu"
        image_by_place = image_of_text[packing.order.to(image_of_text.device)]  # (T,)
        device = texts.tokens.device
        meeting = Meeting(None, image_by_place)
        if exact:
            meeting = Meeting(fold_by_image(_image_of_row(packing, image_by_place), device))
        if not exact and packing.key_mask is None:
            raise ValueError("texts of known lengths need image_of_text on the host")
        x = texts.tokens
        last = len(self.layers) - 1
        for number, layer in enumerate(self.layers):
            options = {"keys": keys[number], "is_attended": is_attended and number == 0}
            if number == last and reading is not None:
                read_meeting = meeting
                if exact:
                    read_meeting = Meeting(fold_by_image(image_of_text[reading.text_of_row.cpu()], device))
                return layer(x, packing, reading=reading, meeting=read_meeting, **options)
            x = layer(x, packing, meeting=meeting, **options)
        return x

    def first_tokens(
        self, texts: TextState, keys: list[KeyValue], image_of_text: Tensor, *, is_attended: bool = False
    ) -> Tensor:
        """Fused first token of every (text, image) pair, in the order of the texts: (T, D)."""
        rows = self(texts, keys, image_of_text, read_first(texts.packing), is_attended=is_attended)  # by packed place
        order = texts.packing.order
        return torch.zeros_like(rows).index_copy(0, order, rows)


def _image_of_row(packing: Packing, image_by_place: Tensor) -> Tensor:
    """The image that each packed row meets: (R,)."""
    lengths = torch.cat([torch.full((group.count,), group.length) for group in packing.groups])
    return image_by_place.repeat_interleave(lengths)
