"""The BERT-family transformer layer on packed texts: one block for text towers and, with cross-attention, for fusion
stacks.

Post-layer-norm (Devlin et al. 2019): x = LayerNorm(x + Dropout(f(x))) after self-attention, cross-attention and
feed-forward. Letters: R packed rows, Q rows that are read, M images, N image tokens, H heads, D width, V width of the
image tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.packing import ImageBlock, Packing, Reading, token_rows


@dataclass
class LayerConfig:
    """Sizes of one layer; `cross_width` is the width of the tokens that cross-attention reads (None: no
    cross-attention), `projects_keys` is False where it reads the keys and values of another layer. In a causal layer a
    row sees itself and the rows before it in its text.
    """

    width: int
    num_heads: int
    mlp_width: int
    layer_norm_eps: float
    dropout: float
    attention_dropout: float
    cross_width: int | None = None
    projects_keys: bool = True
    is_causal: bool = False

    def __post_init__(self) -> None:
        if self.width % self.num_heads:
            raise ValueError(f"width {self.width} is not a multiple of num_heads {self.num_heads}")


@dataclass
class KeyValue:
    """Projected keys and values of M images for one layer: (M, H, N, D / H) each; mask (M, N) bool, None = all real."""

    key: Tensor
    value: Tensor
    mask: Tensor | None = None

    def select(self, index: Tensor) -> KeyValue:
        """Keys and values of the images `index` (P,), repeats and any order allowed."""
        return KeyValue(self.key[index], self.value[index], None if self.mask is None else self.mask[index])

    def with_first(self, first: KeyValue, mask: Tensor) -> KeyValue:
        """The same with token 0 replaced by that of `first` (M, H, 1, D / H), under another mask."""
        return KeyValue(
            torch.cat([first.key, self.key[:, :, 1:]], dim=2),
            torch.cat([first.value, self.value[:, :, 1:]], dim=2),
            mask,
        )


@dataclass
class Prefix:
    """What stands before every text: keys (S, H, P, d) of S beginnings, and which of them text t continues, (T,) by
    packed place.
    """

    keys: KeyValue
    of_text: Tensor


@dataclass
class Meeting:
    """Which image each query row meets: `blocks` where the host knows it, else the image of every text of a uniform
    packing, each of which has rows_per_text rows.
    """

    blocks: tuple[ImageBlock, ...] | None = None
    image_of_text: Tensor | None = None
    rows_per_text: int = 0


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    """Attention of (n, H, Q, d) on (n, H, K, d): (n, H, Q, d); mask broadcasts to (n, H, Q, K), True = real key.

    Training on a CPU takes the plain form: at caption lengths the fused kernel's backward is the slower one there.
    """
    if query.device.type != "cpu" or not torch.is_grad_enabled():
        return F.scaled_dot_product_attention(query, key, value, mask, dropout)
    with torch.autocast("cpu", enabled=False):
        # Single precision throughout: in bf16 every new shape of these small products would be compiled first.
        scores = (query.float() * query.shape[-1] ** -0.5) @ key.float().transpose(-1, -2)
        if mask is not None:
            scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
        return (F.dropout(scores.softmax(dim=-1), dropout) @ value.float()).to(value.dtype)


class SelfAttention(nn.Module):
    """Self-attention within each text of a packed matrix, with residual and norm."""

    def __init__(self, config: LayerConfig) -> None:
        super().__init__()
        self.is_causal = config.is_causal
        self.num_heads, self.dropout = config.num_heads, config.attention_dropout
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.output = nn.Linear(config.width, config.width)
        self.norm = nn.LayerNorm(config.width, eps=config.layer_norm_eps)
        self.residual_dropout = nn.Dropout(config.dropout)

    def project(self, x: Tensor) -> KeyValue:
        """Keys and values of rows x (S, D) that stand before others, for a `Prefix` of one row."""
        width = x.shape[1]
        both = F.linear(x, self.qkv.weight[width:], self.qkv.bias[width:])  # (S, 2D)
        key, value = both.view(len(x), 2, self.num_heads, 1, -1).unbind(1)  # each (S, H, 1, d)
        return KeyValue(key, value)

    def forward(
        self, x: Tensor, packing: Packing, reading: Reading | None = None, prefix: Prefix | None = None
    ) -> Tensor:
        """x (R, D) -> (R, D), or (Q, D) for the rows of `reading`, which a causal layer does not take."""
        width = x.shape[1]
        if self.is_causal and reading is not None:
            raise ValueError("a causal layer computes all rows")
        if reading is None:
            qkv = self.qkv(x)  # (R, 3D)
            query_rows, residual = None, x
            key_value = qkv
        else:
            residual = x[reading.rows]
            query_rows = F.linear(residual, self.qkv.weight[:width], self.qkv.bias[:width])  # (Q, D)
            key_value = F.linear(x, self.qkv.weight[width:], self.qkv.bias[width:])  # (R, 2D)
        pieces = []
        for number, (group, rows) in enumerate(zip(packing.groups, packing.split(key_value), strict=True)):
            block = rows.view(group.count, group.length, -1, self.num_heads, width // self.num_heads)
            *query, key, value = block.permute(2, 0, 3, 1, 4)  # each (n, H, L, d)
            query = query[0] if query else self._read_queries(query_rows, reading.slots[number])
            if prefix is not None:
                before = prefix.keys.select(prefix.of_text[group.first_text : group.first_text + group.count])
                key, value = torch.cat([before.key, key], dim=2), torch.cat([before.value, value], dim=2)
            mask = None if packing.key_mask is None else packing.key_mask[group.first_text :, None, None, :]
            if self.is_causal:  # padding stands behind all real rows, so they never see it
                mask = _causal_mask(group.length, key) if group.length > 1 else None
            attended = attend(query, key, value, mask, self.dropout if self.training else 0.0)
            attended = attended.transpose(1, 2).reshape(-1, width)
            if reading is not None and reading.kept[number] is not None:
                attended = attended[reading.kept[number]]
            pieces.append(attended)
        spare = len(residual) - sum(map(len, pieces))
        attended = torch.cat([*pieces, pieces[0].new_zeros(spare, width)])
        return self.norm(residual + self.residual_dropout(self.output(attended)))

    def _read_queries(self, rows: Tensor, slots: Tensor) -> Tensor:
        count, width = slots.shape
        per_head = rows.shape[1] // self.num_heads
        return rows[slots.flatten()].view(count, width, self.num_heads, per_head).transpose(1, 2)  # (n, H, Q, d)


def _causal_mask(num_queries: int, key: Tensor) -> Tensor:
    """Which of the keys (..., K, d) each of the last rows may see: (Q, K) bool."""
    num_keys = key.shape[-2]
    return torch.ones(num_queries, num_keys, dtype=torch.bool, device=key.device).tril(num_keys - num_queries)


class CrossAttention(nn.Module):
    """Attention of text rows on the image each of them meets, with residual and norm."""

    def __init__(self, config: LayerConfig) -> None:
        super().__init__()
        self.num_heads, self.dropout = config.num_heads, config.attention_dropout
        self.query = nn.Linear(config.width, config.width)
        self.key_value = nn.Linear(config.cross_width, 2 * config.width) if config.projects_keys else None
        self.output = nn.Linear(config.width, config.width)
        self.norm = nn.LayerNorm(config.width, eps=config.layer_norm_eps)
        self.residual_dropout = nn.Dropout(config.dropout)

    def project(self, tokens: Tensor, mask: Tensor | None = None) -> KeyValue:
        """Keys and values of image tokens (M, N, V); the one place where they are computed."""
        num_images, num_tokens, _ = tokens.shape
        both = self.key_value(tokens).view(num_images, num_tokens, 2, self.num_heads, -1)
        key, value = both.permute(2, 0, 3, 1, 4).unbind(0)  # each (M, H, N, d)
        return KeyValue(key, value, mask)

    def project_packed(self, x: Tensor, packing: Packing) -> KeyValue:
        """Keys and values of packed texts (R, V), projected at their real lengths and padded after: (T, H, L, d)."""
        num_texts, longest = packing.num_texts, max(packing.lengths)
        rows = self.key_value(x[: packing.num_rows])  # (R, 2D)
        both = rows.new_zeros(num_texts * longest, rows.shape[1]).index_put((token_rows(packing, longest),), rows)
        key, value = both.view(num_texts, longest, 2, self.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        mask = None if packing.is_uniform else torch.arange(longest, device=x.device)[None, :] < packing.length[:, None]
        return KeyValue(key, value, mask)

    def forward(self, x: Tensor, keys: KeyValue, meeting: Meeting) -> Tensor:
        """x (R, D) -> (R, D)."""
        query = self.query(x)
        attended = self._folded(query, keys, meeting.blocks) if meeting.blocks else self._gathered(query, keys, meeting)
        return self.norm(x + self.residual_dropout(self.output(attended)))

    def _folded(self, query: Tensor, keys: KeyValue, blocks: tuple[ImageBlock, ...]) -> Tensor:
        """Every image's keys are used once, for all query rows that meet it."""
        pieces = []
        for block in blocks:
            rows = (
                query[block.slots.flatten()].view(*block.slots.shape, self.num_heads, -1).transpose(1, 2)
            )  # (m, H, Q, d)
            attended = self._attend(rows, keys.select(block.images))
            pieces.append(attended.transpose(1, 2).reshape(-1, query.shape[1])[block.kept])
        rows = torch.cat([block.rows for block in blocks])
        place = rows.new_zeros(len(query)).scatter_(0, rows, torch.arange(len(rows), device=rows.device))
        return torch.cat(pieces)[place]

    def _gathered(self, query: Tensor, keys: KeyValue, meeting: Meeting) -> Tensor:
        """Each text of a uniform packing meets its image; keys are copied per text, the pairing never leaves the
        device.
        """
        num_texts, length = len(meeting.image_of_text), meeting.rows_per_text
        num_rows, spare = num_texts * length, len(query) - num_texts * length
        rows = query[:num_rows].view(num_texts, length, self.num_heads, -1).transpose(1, 2)  # (T, H, L, d)
        attended = self._attend(rows, keys.select(meeting.image_of_text)).transpose(1, 2).reshape(num_rows, -1)
        return F.pad(attended, (0, 0, 0, spare)) if spare else attended

    def _attend(self, query: Tensor, keys: KeyValue) -> Tensor:
        mask = None if keys.mask is None else keys.mask[:, None, None, :]
        return attend(query, keys.key, keys.value, mask, self.dropout if self.training else 0.0)


class FeedForward(nn.Module):
    """Two linear maps with an exact GELU between them, with residual and norm."""

    def __init__(self, config: LayerConfig) -> None:
        super().__init__()
        self.up = nn.Linear(config.width, config.mlp_width)
        self.down = nn.Linear(config.mlp_width, config.width)
        self.norm = nn.LayerNorm(config.width, eps=config.layer_norm_eps)
        self.residual_dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """x (R, D) -> (R, D)."""
        return self.norm(x + self.residual_dropout(self.down(F.gelu(self.up(x)))))


class Layer(nn.Module):
    """Self-attention, cross-attention if the config has a cross_width, feed-forward."""

    def __init__(self, config: LayerConfig) -> None:
        super().__init__()
        self.attention = SelfAttention(config)
        self.cross_attention = CrossAttention(config) if config.cross_width else None
        self.feed_forward = FeedForward(config)

    def sharded_units(self) -> list[nn.Module]:
        """The parts that FSDP2 gathers one by one: keys and values are projected before the layer itself runs."""
        cross = [self.cross_attention.key_value, self.cross_attention] if self.cross_attention else []
        return [part for part in (self.attention, *cross, self.feed_forward) if part is not None]

    def forward(
        self,
        x: Tensor,
        packing: Packing,
        *,
        reading: Reading | None = None,
        keys: KeyValue | None = None,
        meeting: Meeting | None = None,
        is_attended: bool = False,
    ) -> Tensor:
        """x (R, D) -> (R, D), or (Q, D) when only the rows of `reading` are wanted; without keys cross-attention is
        skipped.

        is_attended: x went through this layer's self-attention already.
        """
        if not is_attended:
            x = self.attention(x, packing, reading)
        elif reading is not None:
            x = x[reading.rows]
        if keys is not None:
            x = self.cross_attention(x, keys, meeting)
        return self.feed_forward(x)


def initialise(module: nn.Module, std: float = 0.02) -> None:
    """BERT's initialisation: normal weights, zero biases."""
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Embedding):
            nn.init.normal_(part.weight, std=std)
        if isinstance(part, nn.Linear) and part.bias is not None:
            nn.init.zeros_(part.bias)
