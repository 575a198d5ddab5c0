"""Masks that fall on every token alike (R2D2); those of CCLM and CCRK lie in dataset/text.py."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from dataset.text import MaskedIds, TextTokenizer, apply_masks


class TokenMasker:
    """Hides every token with the same probability, each on its own, always behind the mask; padding, begin and end
    marks stay. A text may come out whole.
    """

    @dataclass
    class Config:
        name: str = "tokens"
        mask_prob: float = 0.15

        def __post_init__(self) -> None:
            if not 0 < self.mask_prob <= 1:
                raise ValueError(f"mask_prob must be in (0, 1], found {self.mask_prob}")

    def __init__(self, config: Config, mask_id: int, kept_ids: Collection[int]) -> None:
        self.config, self.mask_id = config, mask_id
        self.kept_ids = np.array(sorted(kept_ids), np.int64)

    @classmethod
    def of(cls, config: Config, tokenizer: TextTokenizer) -> TokenMasker:
        """The masker for texts of a tokenizer."""
        return cls(config, tokenizer.mask_id, {tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id})

    def mask(self, ids: Sequence[int], generator: np.random.Generator) -> MaskedIds:
        """The text with tokens hidden; positions and targets are as many as were chosen, one empty one at least."""
        chosen = (generator.random(len(ids)) < self.config.mask_prob) & ~np.isin(ids, self.kept_ids)
        positions = np.flatnonzero(chosen).tolist()
        return apply_masks(ids, positions, [self.mask_id] * len(positions), max(1, len(positions)))
