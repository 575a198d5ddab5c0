"""Decoder that writes an answer word by word, the fused question in sight (CCLM's VQA, after X-VLM).

Letters: S questions, A answers, R packed rows of answers, L tokens, H heads, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from models.cross_encoder import meetings_of
from models.heads import MaskedLanguageHead
from models.packing import Packing, pack, token_rows
from models.text_encoder import TextEncoder, TextState
from models.transformer import KeyValue, Layer, Prefix, initialise


@dataclass
class DecodedRows:
    """Rows (R, D) of some answers, ready for the vocabulary, and how they are packed."""

    tokens: Tensor
    packing: Packing

    def place_in(self, padded_width: int) -> Tensor:
        """For each row, its place in a flattened (A, padded_width) matrix of ids: (R,)."""
        return token_rows(self.packing, padded_width)


@dataclass
class Beginning:
    """The first row of every question's answers (S, D), ready for the vocabulary, and what later rows see of it."""

    tokens: Tensor
    keys: list[KeyValue]


class AnswerDecoder(nn.Module):
    """Causal layers with cross-attention to the question, with embeddings and a vocabulary of their own."""

    @dataclass
    class Config:
        num_layers: int = 6

        def __post_init__(self) -> None:
            if self.num_layers < 1:
                raise ValueError(f"num_layers {self.num_layers} is too small; a decoder needs at least 1")

    def __init__(self, config: Config, text: TextEncoder.Config) -> None:
        super().__init__()
        self.embedding = TextEncoder(replace(text, num_layers=0))  # a tower without layers is its embeddings
        layer = replace(text.layer(cross_width=text.width), is_causal=True)
        self.layers = nn.ModuleList(Layer(layer) for _ in range(config.num_layers))
        initialise(self.layers)
        self.head = MaskedLanguageHead(text.width, text.vocab_size, text.layer_norm_eps)

    @property
    def word_weight(self) -> Tensor:
        """The vocabulary (V, D) that the rows are multiplied by; the embeddings share it."""
        return self.embedding.word.weight

    def project(self, questions: TextState) -> list[KeyValue]:
        """Keys and values of every question for every layer; however many answers a question has, computed once."""
        return [layer.cross_attention.project_packed(questions.tokens, questions.packing) for layer in self.layers]

    def forward(
        self,
        ids: Tensor,
        lengths: Sequence[int],
        keys: list[KeyValue],
        question_of_answer: Tensor,
        beginning: Beginning | None = None,
    ) -> DecodedRows:
        """Every row of answers ids (A, L), of which lengths (A) are real; question_of_answer (A,) on the host.

        With a beginning the ids go on after its row, which all answers of a question share.
        """
        packing = pack(lengths, ids.device)
        meeting = meetings_of(packing, keys[0], question_of_answer)(None)
        question_by_place = question_of_answer[packing.order.cpu()].to(ids.device)  # (A,)
        x = self.embedding.embed(ids, packing, first_position=0 if beginning is None else 1)
        for number, layer in enumerate(self.layers):
            prefix = None
            if beginning is not None:
                prefix = Prefix(beginning.keys[number], question_by_place)
            x = layer.attention(x, packing, prefix=prefix)
            x = layer(x, packing, keys=keys[number], meeting=meeting, is_attended=True)
        return DecodedRows(self.head(x[: packing.num_rows]), packing)

    def begin(self, first_id: Tensor, keys: list[KeyValue]) -> Beginning:
        """The row of the mark first_id () that every answer begins with, once per question."""
        num_questions = len(keys[0].key)
        ids = first_id.expand(num_questions, 1)
        packing = pack([1] * num_questions, ids.device)
        meeting = meetings_of(packing, keys[0], torch.arange(num_questions))(None)
        x, own_keys = self.embedding.embed(ids, packing), []
        for layer, question in zip(self.layers, keys, strict=True):
            own_keys.append(layer.attention.project(x[:num_questions]))
            x = layer(x, packing, keys=question, meeting=meeting)
        return Beginning(self.head(x[:num_questions]), own_keys)
