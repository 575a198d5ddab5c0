"""BERT-family text tower (BERT, RoBERTa, XLM-R and their cut-down forms) that runs every text at its real length."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models.packing import (
    Packing,
    join_packings,
    pack,
    pack_stacked,
    positions_in_text,
    read_first,
    select_texts,
    stacked_rows,
    token_rows,
    with_spare_rows,
)
from models.transformer import Layer, LayerConfig, initialise


@dataclass
class TextState:
    """Texts after the tower: packed tokens (R, D), how they are packed, and unit embeddings (T, E) once projected."""

    tokens: Tensor
    packing: Packing
    embed: Tensor | None = None

    def select(self, index: Tensor) -> TextState:
        """The texts `index` (n,), repeats allowed; gradients flow back to the originals."""
        packing, rows = select_texts(self.packing, index)
        return TextState(
            self.tokens[with_spare_rows(rows)],
            packing,
            None if self.embed is None else self.embed[index.to(self.embed.device)],
        )

    def stacked(self, index: Tensor) -> Tensor:
        """Tokens (R', D) of the texts `index` (n,), one text below the other in this order; index on the host."""
        if not len(index):
            return self.tokens[:0]
        first = self.packing.first_row[index.to(self.tokens.device)]
        return self.tokens[stacked_rows(first, [self.packing.lengths[text] for text in index.tolist()])]

    def extended(self, tokens: Tensor, lengths: Sequence[int]) -> TextState:
        """These texts and, behind them, others: tokens (R', D) one text below the other, not yet packed."""
        if not len(lengths):
            return self
        packing, rows = pack_stacked(lengths, tokens.device)
        both, rows_of_both = join_packings([self.packing, packing])
        return TextState(torch.cat([self.tokens[: self.packing.num_rows], tokens[rows]])[rows_of_both], both)

    def padded(self, length: int | None = None) -> Tensor:
        """Tokens in the callers' order and padded with zeros: (T, L, D). For people and tests: no fast path needs
        it.
        """
        length, num_texts = length or max(self.packing.lengths), self.packing.num_texts
        flat = self.tokens.new_zeros(num_texts * length, self.tokens.shape[1])
        real = self.tokens[: self.packing.num_rows]
        return flat.index_put((token_rows(self.packing, length),), real).view(num_texts, length, -1)


def join_texts(states: Sequence[TextState]) -> TextState:
    """All texts of several states, one after the other."""
    packing, rows = join_packings([state.packing for state in states])
    tokens = torch.cat([state.tokens[: state.packing.num_rows] for state in states])
    return TextState(tokens[rows], packing, torch.cat([state.embed for state in states]))


def pool_texts(state: TextState, pooling: Literal["first", "mean"]) -> Tensor:
    """One vector per text: (T, D), the first token or the mean of the real ones."""
    if pooling == "first":
        return state.tokens[state.packing.first_row]
    packing, means = state.packing, []
    for group, rows in zip(packing.groups, packing.split(state.tokens), strict=True):
        block = rows.view(group.count, group.length, -1)  # (n, L, D)
        if packing.key_mask is None:
            means.append(block.mean(dim=1))
            continue
        real = packing.key_mask[group.first_text : group.first_text + group.count, :, None]
        means.append((block * real).sum(dim=1) / real.sum(dim=1))
    place = torch.empty_like(packing.order)
    place[packing.order] = torch.arange(len(place), device=place.device)
    return torch.cat(means)[place]


class TextEncoder(nn.Module):
    """Embeddings and post-norm layers; the width of a text is `pooling` of its last hidden states."""

    @dataclass
    class Config:
        name: str = "bert"
        vocab_size: int = 250002
        width: int = 1024
        num_layers: int = 6
        num_heads: int = 16
        mlp_width: int = 4096
        max_positions: int = 514
        # Positions count from here: 0 in CCLM, CCRK and BERT; RoBERTa and XLM-R themselves start at pad_id + 1.
        position_offset: int = 0
        num_token_types: int = 1
        layer_norm_eps: float = 1e-5
        dropout: float = 0.1
        attention_dropout: float = 0.1
        pad_id: int = 1
        pooling: Literal["first", "mean"] = "first"
        is_frozen: bool = False
        recomputes_layers: bool = False  # in backward, instead of keeping what they computed

        def __post_init__(self) -> None:
            self.layer()
            if not 0 <= self.pad_id < self.vocab_size:
                raise ValueError(f"pad_id {self.pad_id} is not in the vocabulary of {self.vocab_size}")

        def layer(self, cross_width: int | None = None, *, projects_keys: bool = True) -> LayerConfig:
            """Sizes of a layer of this tower, or of a fusion stack on top of it."""
            sizes = (
                self.width,
                self.num_heads,
                self.mlp_width,
                self.layer_norm_eps,
                self.dropout,
                self.attention_dropout,
            )
            return LayerConfig(*sizes, cross_width, projects_keys)

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.word = nn.Embedding(config.vocab_size, config.width, padding_idx=config.pad_id)
        self.position = nn.Embedding(config.max_positions, config.width)
        self.token_type = nn.Embedding(config.num_token_types, config.width)
        self.norm = nn.LayerNorm(config.width, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(Layer(config.layer()) for _ in range(config.num_layers))
        initialise(self)
        with torch.no_grad():
            self.word.weight[config.pad_id].zero_()

    @property
    def width(self) -> int:
        return self.config.width

    @property
    def longest(self) -> int:
        """The most tokens that a text may have."""
        return self.config.max_positions - self.config.position_offset

    def forward(self, ids: Tensor, lengths: Sequence[int]) -> TextState:
        """ids (T, L) padded on the right, lengths: real tokens of each text, on the host."""
        return self.encode_packed(ids, pack(lengths, ids.device))

    def encode_all(self, texts: Sequence[tuple[Tensor, Sequence[int]]]) -> list[TextState]:
        """Several sets of texts, ids (T, L) and lengths each, in one pass: every weight is read, and its gradient
        written, once.
        """
        widest = max(ids.shape[1] for ids, _ in texts)
        ids = torch.cat([F.pad(ids, (0, widest - ids.shape[1]), value=self.config.pad_id) for ids, _ in texts])
        all_texts = self(ids, [length for _, lengths in texts for length in lengths])
        return [all_texts.select(rows) for rows in torch.arange(len(ids)).split([len(ids) for ids, _ in texts])]

    def encode_packed(self, ids: Tensor, packing: Packing) -> TextState:
        """ids (T, L) of the texts of an existing packing."""
        return TextState(self._run(self.layers, ids, packing), packing)

    def _run(self, layers: Iterable[Layer], ids: Tensor, packing: Packing) -> Tensor:
        """Rows (R, D) after these layers, the first of all."""
        x = self.embed(ids, packing)
        for layer in layers:
            if self.config.recomputes_layers and self.training and torch.is_grad_enabled():
                x = checkpoint(layer, x, packing, use_reentrant=False)
            else:
                x = layer(x, packing)
        return x

    def encode_pooled(self, ids: Tensor, packing: Packing) -> Tensor:
        """`pool` of the texts ids (T, L), for those who read nothing else: (T, D); the last layer computes only what
        is pooled.
        """
        if self.config.pooling != "first":
            return self.pool(self.encode_packed(ids, packing))
        x = self._run(self.layers[:-1], ids, packing)
        rows = self.layers[-1](x, packing, reading=read_first(packing))  # by packed place
        return torch.zeros_like(rows).index_copy(0, packing.order, rows)

    def embed(self, ids: Tensor, packing: Packing, first_position: int = 0) -> Tensor:
        """What the first layer reads (R, D); the texts begin at first_position."""
        longest = first_position + max(packing.lengths)
        if longest > self.longest:
            raise ValueError(f"a text has {longest} tokens; this encoder has positions for {self.longest}")
        packed_ids = ids.flatten()[with_spare_rows(token_rows(packing, ids.shape[1]))]  # (R,)
        position = positions_in_text(packing, ids.device) + self.config.position_offset + first_position
        position = F.pad(position, (0, len(packed_ids) - len(position)))
        x = self.word(packed_ids) + self.token_type.weight[0] + self.position(position)
        return self.dropout(self.norm(x))

    def pool(self, state: TextState) -> Tensor:
        """One vector per text: (T, D), the first token or the mean of the real ones."""
        return pool_texts(state, self.config.pooling)
