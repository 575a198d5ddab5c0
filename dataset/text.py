"""Captions to token ids: cleaning, fast tokenizers from any of the usual files, and the masking of words.

Letters: T texts, L text tokens, P masked positions.
"""

from __future__ import annotations

import gzip
import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from dataset.batch import IGNORED_TARGET

PUNCTUATION = re.compile(r"[,.'!?\"()*#:;~/-]")
WHITE_SPACE = re.compile(r"\s{2,}")
LONE_SURROGATE = re.compile("[\ud800-\udfff]")  # JSON may hold half a character, which no tokenizer takes

# The same five roles under the names that the BERT and the RoBERTa families give them.
ROLES = {
    "pad": ("<pad>", "[PAD]"),
    "bos": ("<s>", "[CLS]"),
    "eos": ("</s>", "[SEP]"),
    "mask": ("<mask>", "[MASK]"),
}

UNKNOWN = ("<unk>", "[UNK]")
ALLOWED = "folder, *.json[.gz], *.txt, *.model"
TOKENIZER_CONFIG = "tokenizer_config.json"


def clean_caption(text: str, max_words: int) -> str:
    """The caption as CCLM and CCRK see it: lower case, no ASCII punctuation, at most max_words blank-separated words.

    max_words 0 leaves it as it was written, for tokenizers that clean by themselves (R2D2). Raises ValueError when
    nothing is left.
    """
    text = LONE_SURROGATE.sub("", text)
    if max_words == 0:
        if not text.strip():
            raise ValueError("caption is empty")
        return text
    text = PUNCTUATION.sub(" ", text.lower()).replace("<person>", "person")
    text = WHITE_SPACE.sub(" ", text).rstrip("\n").strip(" ")
    text = " ".join(text.split(" ")[:max_words])
    if not text:
        raise ValueError("caption is empty after cleaning")
    return text


def clean_question(text: str, max_words: int) -> str:
    """The question as CCLM sees it: as a caption, but blanks stay as they are and nothing may be left."""
    text = PUNCTUATION.sub(" ", LONE_SURROGATE.sub("", text).lower()).rstrip(" ")
    return " ".join(text.split(" ")[:max_words])


class TextTokenizer:
    """Token ids of texts, with begin and end marks, never longer than asked; wraps a tokenizer written in Rust."""

    unknown_id: int | None = None  # none where every text has pieces, as with bytes

    def __init__(self, tokenizer: Tokenizer, where: str = "tokenizer") -> None:
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self.tokenizer = tokenizer
        self.vocab_size = tokenizer.get_vocab_size(with_added_tokens=True)
        ids = {role: _special_id(tokenizer, names) for role, names in ROLES.items()}
        missing = [f"{role} ({' or '.join(ROLES[role])})" for role, token in ids.items() if token is None]
        if missing:
            raise ValueError(f"{where}: the vocabulary has no {', '.join(missing)} token")
        self.pad_id, self.bos_id, self.eos_id, self.mask_id = (ids[role] for role in ("pad", "bos", "eos", "mask"))
        self.unknown_id = _special_id(tokenizer, UNKNOWN)

    def encode_pieces(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of the pieces of every text, without begin and end."""
        encoded = self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encoded]

    def pieces(self, text: str) -> list[str]:
        """The pieces of a text, as they stand in the vocabulary."""
        return self.tokenizer.encode(text, add_special_tokens=False).tokens

    def encode_batch(self, texts: Sequence[str], max_tokens: int) -> list[list[int]]:
        """Ids with begin and end marks; a longer text loses pieces at its end, the end mark stays."""
        kept = max(max_tokens - 2, 0)
        return [[self.bos_id, *pieces[:kept], self.eos_id] for pieces in self.encode_pieces(texts)]

    def save(self, folder: str | os.PathLike) -> None:
        """Write `tokenizer.json`, from which `load_tokenizer` makes an equal one."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        place = Path(folder) / "tokenizer.json"
        temporary = place.with_suffix(".tmp")
        temporary.write_text(self.tokenizer.to_str(), encoding="utf-8")
        os.replace(temporary, place)


class PieceLookup(TextTokenizer):
    """Ids of texts that are written as pieces of a tokenizer, joined by blanks."""

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self.__dict__.update(tokenizer.__dict__)

    def encode_pieces(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of the pieces; an unknown piece gets the id for unknown ones."""
        find = self.tokenizer.token_to_id
        unknown = self.mask_id if self.unknown_id is None else self.unknown_id
        found = ([find(piece) for piece in text.split()] for text in texts)
        return [[unknown if token is None else token for token in tokens] for tokens in found]


def _special_id(tokenizer: Tokenizer, names: Iterable[str]) -> int | None:
    found = (tokenizer.token_to_id(name) for name in names)
    return next((token for token in found if token is not None), None)


def load_tokenizer(path: str | os.PathLike) -> TextTokenizer:
    """A tokenizer from a Hugging Face folder, a tokenizer.json (also gzipped), a vocab.txt or a sentencepiece model."""
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such tokenizer; allowed: {ALLOWED}")
    file = _find_tokenizer_file(path) if path.is_dir() else path
    if file.name == TOKENIZER_CONFIG:
        return _original_bert(file)
    try:
        tokenizer = _read_tokenizer(file)
    except Exception as error:  # the Rust side raises plain Exception for a broken file
        raise ValueError(f"{file}: not a tokenizer; {type(error).__name__}: {str(error)[:200]}") from error
    return TextTokenizer(tokenizer, str(file))


def _read_tokenizer(file: Path) -> Tokenizer:
    if file.name.endswith((".json", ".json.gz")):
        content = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
        return Tokenizer.from_buffer(content)
    if file.suffix == ".txt":
        return _wordpiece(file)
    if file.suffix != ".model":
        raise ValueError(f"the ending {file.suffix or 'is missing'} is not known; allowed: {ALLOWED}")
    return _sentencepiece(file.parent)


def _find_tokenizer_file(folder: Path) -> Path:
    names = ("tokenizer.json", "tokenizer.json.gz", "vocab.txt", "sentencepiece.bpe.model", "spiece.model")
    for name in (*names, TOKENIZER_CONFIG):
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(f"{folder}: holds no tokenizer; allowed: {', '.join(names)}")


def _original_bert(file: Path) -> TextTokenizer:
    """The tokenizer of a folder that names another one's vocabulary, to be read as BERT's first release did."""
    from dataset.original_bert import load_original_bert

    settings = json.loads(file.read_text(encoding="utf-8"))
    if not settings.get("original_bert"):
        raise FileNotFoundError(f"{file.parent}: holds no tokenizer, only its {TOKENIZER_CONFIG}")
    return load_original_bert(file.parent / settings["vocab_file"])


def _wordpiece(file: Path) -> Tokenizer:
    """BERT's tokenizer from its vocabulary; `do_lower_case` of a tokenizer_config.json beside it is respected."""
    words = [line.rstrip("\r\n") for line in file.read_text(encoding="utf-8").split("\n")]
    if words and not words[-1]:
        words.pop()
    place = file.with_name(TOKENIZER_CONFIG)
    settings = json.loads(place.read_text(encoding="utf-8")) if place.is_file() else {}
    vocab = {word: i for i, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=settings.get("do_lower_case", True))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    present = [token for token in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]") if token in vocab]
    tokenizer.add_special_tokens(present)
    return tokenizer


def _sentencepiece(folder: Path) -> Tokenizer:
    from transformers import AutoTokenizer  # slow to import, and only this old file form needs it

    return AutoTokenizer.from_pretrained(str(folder), use_fast=True).backend_tokenizer


def train_bpe(texts: Iterable[str], vocab_size: int) -> TextTokenizer:
    """A byte-pair tokenizer learnt from texts of any languages; the same texts give the same tokenizer."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]  # the order of XLM-R, with the mask put here
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return TextTokenizer(tokenizer)


@dataclass(frozen=True)
class MaskedIds:
    """One text with masks: ids as long as the text; positions and targets (P,), padded with 0 and IGNORED_TARGET."""

    ids: np.ndarray
    positions: np.ndarray
    targets: np.ndarray


def apply_masks(ids: Sequence[int], positions: Sequence[int], replacements: Sequence[int], max_masks: int) -> MaskedIds:
    """The text with the given replacements at the given positions, and what a model has to guess there."""
    masked = np.array(ids, np.int64)
    all_positions = np.zeros(max_masks, np.int64)
    targets = np.full(max_masks, IGNORED_TARGET, np.int64)
    all_positions[: len(positions)] = positions
    targets[: len(positions)] = masked[list(positions)]
    masked[list(positions)] = replacements
    return MaskedIds(masked, all_positions, targets)


class SkipgramMasker:
    """Chooses what a masked language model must guess: single tokens and short spans, about mask_prob of a text."""

    @dataclass
    class Config:
        name: str = "skipgram"
        mask_prob: float = 0.4
        max_masks: int = 12
        skipgram_prob: float = 0.2
        skipgram_size: int = 3

        def __post_init__(self) -> None:
            if not 0 < self.mask_prob <= 1 or not 0 <= self.skipgram_prob <= 1:
                raise ValueError(
                    f"mask_prob must be in (0, 1] and skipgram_prob in [0, 1]; "
                    f"found {self.mask_prob} and {self.skipgram_prob}"
                )
            if self.max_masks < 1 or self.skipgram_size < 1:
                raise ValueError(
                    f"max_masks and skipgram_size must be at least 1; found {self.max_masks} and {self.skipgram_size}"
                )

    def __init__(self, config: Config, mask_id: int, vocab_size: int) -> None:
        self.config, self.mask_id, self.vocab_size = config, mask_id, vocab_size

    @classmethod
    def of(cls, config: Config, tokenizer: TextTokenizer) -> SkipgramMasker:
        """The masker for texts of a tokenizer."""
        return cls(config, tokenizer.mask_id, tokenizer.vocab_size)

    def num_masked(self, num_tokens: int) -> int:
        """How many tokens of a text are hidden; begin and end marks count as tokens, the first one stays."""
        return min(self.config.max_masks, max(1, round(num_tokens * self.config.mask_prob)), num_tokens - 1)

    def choose_positions(self, num_tokens: int, generator: np.random.Generator) -> list[int]:
        """The positions to hide, never the first one; all others, the end mark too, are candidates."""
        wanted = self.num_masked(num_tokens)
        chosen: dict[int, None] = {}  # a set that remembers its order, so that runs repeat exactly
        for start in (generator.permutation(num_tokens - 1) + 1).tolist():
            if len(chosen) >= wanted:
                break
            if start in chosen:
                continue
            stop = min(start + self._span(generator), num_tokens)
            chosen.update(dict.fromkeys(range(start, stop)))
        positions = list(chosen)
        if len(positions) > wanted:  # the last span was too long: any of the chosen may go
            positions = [positions[k] for k in generator.permutation(len(positions))[:wanted].tolist()]
        return positions

    def replace(self, ids: Sequence[int], positions: Sequence[int], generator: np.random.Generator) -> MaskedIds:
        """80 % of the positions become the mask, 10 % any word of the vocabulary, 10 % stay as they are."""
        draws, words = generator.random(len(positions)), generator.integers(self.vocab_size, size=len(positions))
        replacements = [
            self.mask_id if draw < 0.8 else int(word) if draw < 0.9 else ids[position]
            for draw, word, position in zip(draws, words, positions)
        ]
        return apply_masks(ids, positions, replacements, self.config.max_masks)

    def mask(self, ids: Sequence[int], generator: np.random.Generator) -> MaskedIds:
        """The text with tokens hidden; the same generator state gives the same masks."""
        return self.replace(ids, self.choose_positions(len(ids), generator), generator)

    def _span(self, generator: np.random.Generator) -> int:
        size = self.config.skipgram_size
        if size >= 2 and generator.random() < self.config.skipgram_prob:
            return int(generator.integers(2, size + 1))
        return 1
