"""Pairs of sentences that say the same in two languages, for text-text objectives (CCLM)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dataset.batch import Skipped, TextPairBatch, pad_texts
from dataset.files import BadRecord
from dataset.records import RecordDataset
from dataset.samples import Contents, Preprocessing, collate_masks
from dataset.text import MaskedIds


@dataclass
class TextPair:
    """Token ids of two sentences; `masked` is the first one, or the concatenated pair, with words hidden."""

    first: list[int]
    second: list[int]
    masked: MaskedIds | None = None


class ParallelTexts(RecordDataset):
    """Records {source_text, target_text}; which one comes first is drawn."""

    @dataclass
    class Config:
        name: str = "parallel_text"
        files: list[str] = field(default_factory=list)  # files and folders, of JSON lines or JSON lists
        source_key: str = "source_text"
        target_key: str = "target_text"
        tokenized: bool = False  # texts are pieces of the tokenizer already, joined by blanks
        swap_prob: float = 0.5
        # Translation language modelling: words are hidden in both sentences, which are read as one text.
        is_translation_modelling: bool = False

        def __post_init__(self) -> None:
            if not self.files:
                raise ValueError("files is empty; name at least one file or folder of JSON lines")
            if not 0 <= self.swap_prob <= 1:
                raise ValueError(f"swap_prob must be in [0, 1], found {self.swap_prob}")

    def __init__(self, config: Config, preprocessing: Preprocessing) -> None:
        super().__init__(config, preprocessing.for_pieces() if config.tokenized else preprocessing)
        self.languages: list[str] = []

    def sample(self, index: int, generator: np.random.Generator) -> TextPair:
        """The pair of a record in a drawn order."""
        record = self.records.read(index)
        texts = [self._text(record, key) for key in (self.config.source_key, self.config.target_key)]
        if generator.random() < self.config.swap_prob:
            texts.reverse()
        first, second = self.preprocessing.encode(texts)
        masker = self.preprocessing.masker
        if masker is None:
            return TextPair(first, second)
        hidden = self.join(*texts) if self.config.is_translation_modelling else first
        return TextPair(first, second, masker.mask(hidden, generator))

    def join(self, first: str, second: str) -> list[int]:
        """Begin, first sentence, end, second sentence, end: at most twice max_tokens ids."""
        tokenizer, longest = self.preprocessing.tokenizer, self.preprocessing.max_tokens
        pieces = [found[: longest - 1] for found in tokenizer.encode_pieces([first, second])]
        ids = [tokenizer.bos_id, *pieces[0], tokenizer.eos_id, *pieces[1]]
        return [*ids[: 2 * longest - 1], tokenizer.eos_id]

    def collate(self, samples: list[TextPair], skipped: list[Skipped]) -> TextPairBatch:
        pad_id = self.preprocessing.tokenizer.pad_id
        first = pad_texts([sample.first for sample in samples], pad_id)
        masked = [sample.masked for sample in samples if sample.masked is not None]
        hidden = pad_texts([pair.ids for pair in masked], pad_id) if self.config.is_translation_modelling else first
        return TextPairBatch(
            first=first,
            second=pad_texts([sample.second for sample in samples], pad_id),
            masked=collate_masks(masked, hidden.ids),
            masked_lengths=hidden.lengths if masked and self.config.is_translation_modelling else None,
            skipped=skipped,
        )

    def describe(self, number: int) -> Contents:
        """Both sentences of a record."""
        record = self.records.read(number)
        keys = (self.config.source_key, self.config.target_key)
        return Contents(captions=[(key, record.get(key)) for key in keys], needed="all", clean=self.preprocessing.clean)

    def _text(self, record: dict[str, Any], key: str) -> str:
        if key not in record:
            raise BadRecord("missing text", f"field '{key}' is missing; found: {', '.join(map(str, record)) or 'none'}")
        try:
            return self.preprocessing.clean(record[key], self.preprocessing.max_words)
        except BadRecord as error:
            raise BadRecord(error.reason, f"field '{key}': {error.detail}") from error
