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

    With num_images I every layer stands I times in a row, for the first image of a text, the second and so on; the I
    copies share one projection to keys and values (CCLM for NLVR2).
    """

    @dataclass
    class Config:
        num_layers: int = 6
        num_images: int = 1  # that each text reads

        def __post_init__(self) -> None:
            for name in ("num_layers", "num_images"):
                if getattr(self, name) < 1:
                    raise ValueError(f"{name} {getattr(self, name)} is too small; a fusion stack needs at least 1")

    def __init__(self, config: Config, text: TextEncoder.Config, image_width: int) -> None:
        super().__init__()
        self.width, self.num_images = text.width, config.num_images
        copies = [text.layer(cross_width=image_width, projects_keys=copy == 0) for copy in range(config.num_images)]
        self.layers = nn.ModuleList(Layer(copy) for _ in range(config.num_layers) for copy in copies)
        initialise(self)

    def project(self, tokens: Tensor, mask: Tensor | None = None) -> list[KeyValue]:
        """Keys and values of images (M, N, V) for every layer; mask (M, N) bool, True = real."""
        first_copies = self.layers[:: self.num_images]
        keys = [layer.cross_attention.project(tokens, mask) for layer in first_copies]
        return [key for key in keys for _ in range(self.num_images)]

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

        image_of_text is (T,), or (I, T) with num_images I: layer l reads image_of_text[l % I]. The last layer computes
        only the rows of `reading`. is_attended: the texts come from `attend_texts`.
        """
        packing, device = texts.packing, texts.tokens.device
        image_of_text = image_of_text.reshape(self.num_images, packing.num_texts)
        meetings = [_meeting(packing, images, device) for images in image_of_text]
        x = texts.tokens
        last = len(self.layers) - 1
        for number, layer in enumerate(self.layers):
            place = number % self.num_images
            options = {"keys": keys[number], "is_attended": is_attended and number == 0}
            if number == last and reading is not None:
                meeting = meetings[place]
                if meeting.blocks:
                    images = image_of_text[place, reading.text_of_row.cpu()]
                    meeting = Meeting(fold_by_image(images, device))
                return layer(x, packing, reading=reading, meeting=meeting, **options)
            x = layer(x, packing, meeting=meetings[place], **options)
        return x

    def first_tokens(
        self, texts: TextState, keys: list[KeyValue], image_of_text: Tensor, *, is_attended: bool = False
    ) -> Tensor:
        """Fused first token of every (text, image) pair, in the order of the texts: (T, D)."""
        rows = self(texts, keys, image_of_text, read_first(texts.packing), is_attended=is_attended)  # by packed place
        order = texts.packing.order
        return torch.zeros_like(rows).index_copy(0, order, rows)


def _meeting(packing: Packing, image_of_text: Tensor, device: torch.device) -> Meeting:
    """Who meets whom for one image of every text, image_of_text (T,)."""
    image_by_place = image_of_text[packing.order.to(image_of_text.device)]  # (T,)
    if packing.key_mask is None and image_of_text.device.type == "cpu":
        return Meeting(fold_by_image(_image_of_row(packing, image_by_place), device))
    if packing.key_mask is None:
        raise ValueError("texts of known lengths need image_of_text on the host")
    return Meeting(None, image_by_place)


def _image_of_row(packing: Packing, image_by_place: Tensor) -> Tensor:
    """The image that each packed row meets: (R,)."""
    lengths = torch.cat([torch.full((group.count,), group.length) for group in packing.groups])
    return image_by_place.repeat_interleave(lengths)
