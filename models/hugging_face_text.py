"""Any encoder of the transformers library as a text tower of a dual encoder; BERT's family has a faster one of ours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PretrainedConfig

from models.packing import Packing, pack, token_rows, with_spare_rows
from models.text_encoder import TextState, pool_texts


class HuggingFaceText(nn.Module):
    """The library's model with its own names of weights; texts run padded to the longest of a batch."""

    @dataclass
    class Config:
        architecture: dict[str, Any] = field(default_factory=dict)  # what the model's config.json says
        name: str = "hugging_face"
        pooling: Literal["first", "mean"] = "first"
        is_frozen: bool = False

        def __post_init__(self) -> None:
            kind = self.architecture.get("model_type")
            if kind is None:
                found = ", ".join(self.architecture) or "nothing"
                raise ValueError(f"architecture needs model_type, as a config.json has it; found {found}")
            found = self.built  # raises ValueError for a model_type that the library does not know
            if found.is_encoder_decoder or getattr(found, "hidden_size", None) is None or found.pad_token_id is None:
                raise ValueError(f"architecture: {kind} is no text encoder with hidden_size and pad_token_id")

        @cached_property
        def built(self) -> PretrainedConfig:
            """The library's own settings."""
            return AutoConfig.for_model(**self.architecture)

        @property
        def vocab_size(self) -> int:
            return self.built.vocab_size

        @property
        def pad_id(self) -> int:
            return self.built.pad_token_id

        @property
        def max_positions(self) -> int:
            return getattr(self.built, "max_position_embeddings", 0) or 1 << 20  # without a table there is no limit

        @property
        def position_offset(self) -> int:
            """RoBERTa and its kin count positions from pad_id + 1."""
            return self.pad_id + 1 if "roberta" in self.built.model_type or self.built.model_type == "mpnet" else 0

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config, self.width, self.longest = config, config.built.hidden_size, config.max_positions
        self.longest -= config.position_offset
        self.backbone = AutoModel.from_config(config.built)
        if getattr(self.backbone, "pooler", None) is not None:
            self.backbone.pooler = None  # nothing reads it, and DDP wants a gradient for every parameter

    def forward(self, ids: Tensor, lengths: Sequence[int]) -> TextState:
        """ids (T, L) padded on the right, lengths: real tokens of each text, on the host."""
        return self.encode_packed(ids, pack(lengths, ids.device))

    def encode_packed(self, ids: Tensor, packing: Packing) -> TextState:
        """ids (T, L) of the texts of an existing packing."""
        longest = max(packing.lengths)
        if longest > self.longest:
            raise ValueError(f"a text has {longest} tokens; this encoder has positions for {self.longest}")
        ids = ids[:, :longest]
        mask = torch.arange(ids.shape[1], device=ids.device)[None, :] < packing.length[:, None]  # (T, L)
        tokens = self.backbone(input_ids=ids, attention_mask=mask.long()).last_hidden_state  # (T, L, D)
        rows = with_spare_rows(token_rows(packing, ids.shape[1]))
        return TextState(tokens.flatten(0, 1)[rows], packing)  # (R, D)

    def encode_pooled(self, ids: Tensor, packing: Packing) -> Tensor:
        """`pool` of the texts ids (T, L): (T, D)."""
        return self.pool(self.encode_packed(ids, packing))

    def pool(self, state: TextState) -> Tensor:
        """One vector per text: (T, D), the first token or the mean of the real ones."""
        return pool_texts(state, self.config.pooling)
