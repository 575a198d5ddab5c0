"""Fusion stack: text rows read images through cross-attention, or image rows texts; the keys and values of what is read
are projected once per layer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from models.dual_encoder import RegionState
from models.packing import Packing, Reading, fold_by_image, read_first
from models.text_encoder import TextEncoder, TextState
from models.transformer import CrossAttention, KeyValue, Layer, Meeting, initialise


class CrossEncoder(nn.Module):
    """A stack of layers with cross-attention on top of a text tower; queries are text rows, keys and values image
    tokens. R2D2's second stack has them the other way round: its "texts" are images, all of one length.

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

    def __init__(self, config: Config, text: TextEncoder.Config, key_width: int) -> None:
        super().__init__()
        self.width, self.num_images = text.width, config.num_images
        copies = [text.layer(cross_width=key_width, projects_keys=copy == 0) for copy in range(config.num_images)]
        self.layers = nn.ModuleList(Layer(copy) for _ in range(config.num_layers) for copy in copies)
        initialise(self)

    def project(self, tokens: Tensor, mask: Tensor | None = None) -> list[KeyValue]:
        """Keys and values of images (M, N, V) for every layer; mask (M, N) bool, True = real."""
        return self._project(lambda cross_attention: cross_attention.project(tokens, mask))

    def _project(self, project: Callable[[CrossAttention], KeyValue]) -> list[KeyValue]:
        """Keys and values for every layer; the copies of a layer share them."""
        keys = [project(layer.cross_attention) for layer in self.layers[:: self.num_images]]
        return [key for key in keys for _ in range(self.num_images)]

    def project_texts(self, texts: TextState) -> list[KeyValue]:
        """Keys and values of texts for every layer, where queries are images, or texts that read texts (CCLM)."""
        return self._project(lambda cross_attention: cross_attention.project_packed(texts.tokens, texts.packing))

    def project_regions(self, regions: RegionState, full_keys: list[KeyValue]) -> list[KeyValue]:
        """Keys and values of regions; where they share their image's patches, only their global tokens are new."""
        if not regions.shares_patches:
            return self.project(regions.tokens, regions.mask)
        first = self.project(regions.tokens[:, :1])
        return [
            keys.select(regions.image_of_region).with_first(own, regions.mask)
            for keys, own in zip(full_keys, first, strict=True)
        ]

    def attend_texts(self, texts: TextState) -> TextState:
        """Texts after the first layer's self-attention, which no image touches: worth it where a text meets many
        images.
        """
        return replace(texts, tokens=self.layers[0].attention(texts.tokens, texts.packing, None))

    def forward(
        self,
        texts: TextState,
        keys: list[KeyValue] | None,
        image_of_text: Tensor | None,
        reading: Reading | None = None,
        *,
        is_attended: bool = False,
    ) -> Tensor:
        """Fused rows (R, D), or (Q, D) for `reading`; text t meets image image_of_text[t] of the projected ones.

        image_of_text is (T,), or (I, T) with num_images I: layer l reads image_of_text[l % I]. The last layer computes
        only the rows of `reading`. is_attended: the texts come from `attend_texts`. Without keys the texts stay alone
        and cross-attention is skipped.
        """
        packing, x = texts.packing, texts.tokens
        meet = []
        if keys is not None:
            image_of_text = image_of_text.reshape(self.num_images, packing.num_texts)
            meet = [meetings_of(packing, keys[0], images) for images in image_of_text]
        meetings = [of_all(None) for of_all in meet]
        last = len(self.layers) - 1
        for number, layer in enumerate(self.layers):
            place = number % self.num_images
            options = {"keys": keys and keys[number], "is_attended": is_attended and number == 0}
            if number == last and reading is not None:
                meeting = meet[place](reading) if meet else None
                return layer(x, packing, reading=reading, meeting=meeting, **options)
            x = layer(x, packing, meeting=meetings[place] if meet else None, **options)
        return x

    def first_tokens(
        self, texts: TextState, keys: list[KeyValue], image_of_text: Tensor, *, is_attended: bool = False
    ) -> Tensor:
        """Fused first token of every (text, image) pair, in the order of the texts: (T, D)."""
        rows = self(texts, keys, image_of_text, read_first(texts.packing), is_attended=is_attended)  # by packed place
        order = texts.packing.order
        return torch.zeros_like(rows).index_copy(0, order, rows)


def meetings_of(packing: Packing, keys: KeyValue, image_of_text: Tensor) -> Callable[[Reading | None], Meeting]:
    """Who meets whom for one image of every text, image_of_text (T,), by the rows that are read (None: all).

    Rows that share keys are folded, or keys are copied.
    """
    is_host, device = image_of_text.device.type == "cpu", keys.key.device
    image_by_place = image_of_text[packing.order.to(image_of_text.device)]  # (T,)
    # Of two sides that can both be copied the shorter is: image tokens that meet a text outnumber its tokens.
    is_copied = packing.is_uniform and (not is_host or packing.lengths[0] > keys.key.shape[2])
    if not is_host and not is_copied and packing.key_mask is None:
        raise ValueError("texts of known lengths need image_of_text on the host")

    def meet(reading: Reading | None) -> Meeting:
        has_equal_shares = reading is None or len(reading.rows) == packing.num_texts or not is_host
        if packing.key_mask is not None or (is_copied and has_equal_shares):
            num_rows = packing.num_rows if reading is None else len(reading.rows)
            return Meeting(None, image_by_place.to(device), num_rows // packing.num_texts)
        if reading is None:
            return Meeting(fold_by_image(_image_of_row(packing, image_by_place), device))
        return Meeting(fold_by_image(image_of_text[reading.text_of_row.cpu()], device))

    return meet


def _image_of_row(packing: Packing, image_by_place: Tensor) -> Tensor:
    """The image that each packed row meets: (R,)."""
    lengths = torch.cat([torch.full((group.count,), group.length) for group in packing.groups])
    return image_by_place.repeat_interleave(lengths)
