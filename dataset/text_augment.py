"""ZeroVL's noise on captions: some word pieces masked, replaced or left out, and the rest joined to words again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from dataset.text import TextTokenizer

MASK, CONTINUES = "[MASK]", "##"
# Of the changed pieces: up to here masked, up to there replaced by any piece of the vocabulary, the rest left out.
MASKED_BELOW, REPLACED_BELOW = 0.5, 0.6


class WordNoise:
    """Changes captions by the generator of their sample; `share` 0 changes nothing."""

    @dataclass
    class Config:
        share: float = 0.0  # of the pieces that are changed; the original has 0.2

        def __post_init__(self) -> None:
            if not 0 <= self.share <= 1:
                raise ValueError(f"share must be in [0, 1], found {self.share}")

    def __init__(self, config: Config, tokenizer: TextTokenizer) -> None:
        self.config, self.tokenizer = config, tokenizer
        self.mask = tokenizer.tokenizer.id_to_token(tokenizer.mask_id)

    def __call__(self, text: str, generator: np.random.Generator) -> str:
        """The caption with its noise."""
        if not self.config.share:
            return text
        pieces = self.tokenizer.pieces(text)
        uniforms = generator.random(len(pieces)).tolist()
        return join_pieces(
            change_pieces(pieces, uniforms, self.config.share, lambda: self._random_piece(generator), self.mask),
            self.mask,
        )

    def _random_piece(self, generator: np.random.Generator) -> str:
        return self.tokenizer.tokenizer.id_to_token(int(generator.integers(self.tokenizer.vocab_size)))


def change_pieces(
    pieces: Sequence[str], uniforms: Sequence[float], share: float, draw: Callable[[], str], mask: str = MASK
) -> list[str]:
    """The pieces after one draw each: kept from `share` on, else masked, replaced by `draw` or left out."""
    changed = []
    for piece, uniform in zip(pieces, uniforms, strict=True):
        if uniform >= share:
            changed.append(piece)
        elif uniform / share < MASKED_BELOW:
            changed.append(mask)
        elif uniform / share < REPLACED_BELOW:
            changed.append(draw())
    return changed


def join_pieces(pieces: Sequence[str], mask: str = MASK) -> str:
    """Words joined by blanks. A piece takes up to two that continue it; further ones, and those that continue a mask or
    nothing, are dropped, as in the original.
    """
    words: list[str] = []
    num_taken = None  # pieces that the last word has taken; None: nothing can be taken
    for piece in pieces:
        if not piece.startswith(CONTINUES):
            words.append(piece)
            num_taken = None if piece == mask else 0
        elif num_taken is not None and num_taken < 2:
            words[-1] += piece.removeprefix(CONTINUES)
            num_taken += 1
    return " ".join(words)
