"""The padded form of everything that the model computes on packed rows: static shapes, as exporters need them.

They use the weights of the model's own modules, so that a difference is one of form. Functions that take a `model` need
its parts of those names only. Letters as in style: B texts padded to L, N image tokens, D width, V width of the image
tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.model import Model
from models.projection import Projection
from models.text_encoder import TextEncoder


def attention(query: Tensor, key: Tensor, value: Tensor, num_heads: int, mask: Tensor | None) -> Tensor:
    """(B, Q, D) on (B, K, D) with additive masks (B, K) or (B, Q, K) and a materialised softmax, as the originals:
    (B, Q, D).
    """
    heads = lambda x: x.view(*x.shape[:2], num_heads, -1).transpose(1, 2)  # noqa: E731
    query, key, value = heads(query), heads(key), heads(value)
    scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5  # (B, H, Q, K)
    if mask is not None:
        mask = mask[:, None] if mask.ndim == 3 else mask[:, None, None, :]
        scores = scores + (1 - mask.to(scores.dtype)) * -10000.0
    return (scores.softmax(dim=-1) @ value).transpose(1, 2).flatten(2)


def layer(
    block: nn.Module,
    x: Tensor,
    mask: Tensor,
    image: Tensor | None = None,
    *,
    image_mask: Tensor | None = None,
    key_value: nn.Module | None = None,
) -> Tensor:
    """One layer on padded texts x (B, L, D), mask (B, L) or (B, L, L); image (B, N, V) is projected anew for every
    text.

    key_value: the projection of another layer, where it is shared. image_mask (B, N): without it all are real.
    """
    own = block.attention
    query, key, value = own.qkv(x).chunk(3, dim=-1)
    x = own.norm(x + own.residual_dropout(own.output(attention(query, key, value, own.num_heads, mask))))
    if image is not None:
        cross = block.cross_attention
        key, value = (key_value or cross.key_value)(image).chunk(2, dim=-1)
        # The originals add a mask of an image without padding, too.
        real = torch.ones(image.shape[:2], device=x.device, dtype=x.dtype) if image_mask is None else image_mask
        attended = attention(cross.query(x), key, value, cross.num_heads, real)
        x = cross.norm(x + cross.residual_dropout(cross.output(attended)))
    return block.feed_forward(x)


def encode_text(encoder: TextEncoder, ids: Tensor, mask: Tensor) -> Tensor:
    """All padded tokens through the tower: (B, L, D)."""
    position = torch.arange(ids.shape[1], device=ids.device) + encoder.config.position_offset
    x = encoder.dropout(encoder.norm(encoder.word(ids) + encoder.token_type.weight[0] + encoder.position(position)))
    for block in encoder.layers:
        x = layer(block, x, mask)
    return x


def fuse(model: nn.Module, x: Tensor, mask: Tensor, *images: Tensor, image_mask: Tensor | None = None) -> Tensor:
    """All layers at all positions; x (B, L, D), images (B, N, V) each, one copy per pair, read in turn: (B, L, D).

    Without images the cross-attention is skipped.
    """
    layers = model.text_fusion.layers
    for number, block in enumerate(layers):
        place = number % max(1, len(images))
        key_value = layers[number - place].cross_attention.key_value
        image = images[place] if images else None
        x = layer(block, x, mask, image, image_mask=image_mask, key_value=key_value)
    return x


def project_text(model: nn.Module, x: Tensor, mask: Tensor) -> Tensor:
    """Projected vectors of padded tokens (B, L, D), before they get their length: (B, E)."""
    if model.text_encoder.config.pooling == "first":
        pooled = x[:, 0]
    else:
        pooled = (x * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)
    return model.text_projection(pooled)


def match_logits(model: nn.Module, x: Tensor, mask: Tensor, image: Tensor, image_mask: Tensor | None = None) -> Tensor:
    """Logits of every (text, image) pair: (B, 2)."""
    return model.match_head(fuse(model, x, mask, image, image_mask=image_mask)[:, 0])


def image_match_logits(model: nn.Module, x: Tensor, mask: Tensor, image: Tensor) -> Tensor:
    """Logits of every (image, text) pair from the stack whose queries are the image tokens (B, N, V): (B, 2)."""
    queries = model.image_fusion_projection(image)
    real = torch.ones(queries.shape[:2], device=x.device, dtype=x.dtype)
    for block in model.image_fusion.layers:
        queries = layer(block, queries, real, x, image_mask=mask)
    return model.image_match_head(queries[:, 0])


class ImageTower(nn.Module):
    """An image tower for export: normalised floats (M, 3, H, W) to vectors (M, E) and, if asked, tokens (M, N, V)."""

    def __init__(self, model: Model, *, is_normalised: bool, gives_tokens: bool) -> None:
        super().__init__()
        self.image_encoder, self.projection = model.image_encoder, model.image_projection or model.text_projection
        self.form, self.gives_tokens = model.image_projection_form if is_normalised else None, gives_tokens

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """In and out in single precision, whatever the weights are in."""
        tokens = self.image_encoder(image.to(_precision(self)))
        return _with_length(self.projection(tokens[:, 0]), self.form), *_if(self.gives_tokens, tokens)


class TextTower(nn.Module):
    """A text tower for export: ids (T, L) padded on the right to vectors (T, E) and, where asked, tokens (T, L, D)."""

    def __init__(self, model: Model, *, is_normalised: bool, gives_tokens: bool) -> None:
        super().__init__()
        self.text_encoder, self.text_projection = model.text_encoder, model.text_projection
        self.form, self.gives_tokens = model.projection_form if is_normalised else None, gives_tokens

    def forward(self, text: Tensor) -> tuple[Tensor, ...]:
        """Out in single precision; what stands at padded places means nothing."""
        mask = (text != self.text_encoder.config.pad_id).to(_precision(self))
        tokens = encode_text(self.text_encoder, text, mask)
        return _with_length(project_text(self, tokens, mask), self.form), *_if(self.gives_tokens, tokens)


class PairScore(nn.Module):
    """The fusion stacks for export: what the pairs of P images and P texts come to, from the tokens of both towers."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        for name in ("text_fusion", "match_head", "image_fusion", "image_fusion_projection", "image_match_head"):
            setattr(self, name, getattr(model, name))
        self.pad_id = model.text_encoder.config.pad_id

    def forward(self, image_tokens: Tensor, text_tokens: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """Probability (P,) that a pair belongs together, and logits (P, S, 2) of S stacks.

        image_tokens (P, N, V); text_tokens (P, L, D); text (P, L) holds the ids.
        """
        image, x = image_tokens.to(_precision(self)), text_tokens.to(_precision(self))
        mask = (text != self.pad_id).to(x.dtype)
        sides = [match_logits(self, x, mask, image)]
        if self.image_fusion is not None:
            sides.append(image_match_logits(self, x, mask, image))
        logits = torch.stack(sides, dim=1).float()
        return logits.softmax(dim=2)[..., 1].mean(dim=1), logits


def _precision(module: nn.Module) -> torch.dtype:
    return next(module.parameters()).dtype


def _with_length(projected: Tensor, form: Projection.Config | None) -> Tensor:
    return projected.float() if form is None else Projection.finish(form, projected)


def _if(is_wanted: bool, tokens: Tensor) -> list[Tensor]:
    return [tokens.float()] if is_wanted else []
