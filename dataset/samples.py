"""What the data sets share: one picture with its encoded captions, how a record's image is found, and the collation."""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

import numpy as np
import torch

from dataset.batch import IGNORED_TARGET, ImageTextBatch, MaskedText, Skipped, pad_texts
from dataset.files import MAX_FILE_BYTES, BadRecord, Files, join_path
from dataset.text import MaskedIds, PieceLookup, TextTokenizer, clean_caption
from dataset.transforms import Transform

UNKNOWN_LANGUAGE = "und"  # of texts that are not told by language
MAX_PATH_LENGTH = 4096
MAX_CHARACTERS = 8192  # a book in place of a caption, without a blank, would keep a tokenizer busy for minutes
MAX_POSITIONS = 512  # what BERT-family text towers have; only captions that are not cut to max_tokens reach it
# How the base64 of JPEG, PNG, WebP, GIF, BMP and TIFF files begins.
BASE64_STARTS = ("/9j/", "_9j_", "iVBORw0KGgo", "UklGR", "R0lGOD", "Qk0", "SUkqA", "TU0AK")


class Masker(Protocol):
    """Hides tokens that a model has to guess; all chance comes from the generator."""

    def mask(self, ids: Sequence[int], generator: np.random.Generator) -> MaskedIds: ...


@dataclass
class Preprocessing:
    """The parts a data set is built from: how words and pictures become numbers, and where files are read."""

    tokenizer: TextTokenizer
    transform: Transform
    max_tokens: int = 40
    max_words: int = 40
    truncate: bool = True
    masker: Masker | None = None
    files: Files = field(default_factory=Files)
    cache_dir: str | None = None
    clean: Callable[[Any, int], str] = field(default_factory=lambda: clean)
    grid: int = 0  # the image encoder sees grid x grid tokens; 0: not known
    num_rows: int = 0  # texts of this process in a batch, for data sets that choose among them; 0: all

    def for_pieces(self) -> Preprocessing:
        """The same for texts that are pieces of the tokenizer already."""
        return replace(self, tokenizer=PieceLookup(self.tokenizer), clean=strip_pieces)

    @property
    def token_limit(self) -> int:
        """Tokens that a text may have, begin and end marks included."""
        return self.max_tokens if self.truncate else MAX_POSITIONS

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of cleaned captions."""
        return self.tokenizer.encode_batch(texts, self.token_limit)


@dataclass
class Sample:
    """One picture (3, S, S) with its captions, in the order of their languages."""

    image: np.ndarray
    image_id: int
    texts: list[list[int]]
    languages: list[int]
    masked: list[MaskedIds] | None = None


@dataclass
class Contents:
    """What one record of the files holds, as it stands there and before any chance: what `--task check_data` counts.

    `images`: (path or base64, root) of every picture; none in a record of texts alone. `captions`: (language, text)
    of every text that a model may see, uncleaned; None for one that should be there and is not. `image_id`: what
    records of the same picture share. `needed`: the record is one sample that needs `all` its captions or `any` of
    them, or `each` caption is a sample of its own; one without pictures and captions is left out on purpose.
    `clean` is what sampling does to a caption. `check_size` raises BadRecord where the record does not fit a picture of
    this height and width.
    """

    images: list[tuple[Any, str]] = field(default_factory=list)
    captions: list[tuple[str, Any]] = field(default_factory=list)
    image_id: str = ""
    needed: Literal["all", "any", "each"] = "each"
    clean: Callable[[Any, int], str] = field(default_factory=lambda: clean)
    check_size: Callable[[int, int], None] = lambda height, width: None


class DescribedDataset(Protocol):
    """What `--task check_data` needs of a data set beside `preprocessing`: every record once, the unusable ones too.

    `describe` decodes nothing and draws nothing; BadRecord (with its place or without) where a record cannot be read.
    """

    preprocessing: Preprocessing

    @property
    def num_records(self) -> int: ...
    def describe(self, number: int) -> Contents: ...
    def where_record(self, number: int) -> str: ...


class SampleDataset(Protocol):
    """What the loader needs: samples by number, made with the given generator only; BadRecord where one is unusable."""

    languages: list[str]

    def __len__(self) -> int: ...
    def sample(self, index: int, generator: np.random.Generator) -> Sample: ...
    def where(self, index: int) -> str: ...
    def collate(self, samples: list[Sample], skipped: list[Skipped]) -> ImageTextBatch: ...


def clean(text: Any, max_words: int) -> str:
    """The cleaned caption; BadRecord when it is none or nothing is left of it."""
    if not isinstance(text, str):
        raise BadRecord("caption is not a string", f"found {type(text).__name__}")
    try:
        return clean_caption(text[:MAX_CHARACTERS], max_words)
    except ValueError:
        raise BadRecord("empty caption", f"found {text[:40]!r}") from None


def strip_pieces(text: Any, max_words: int) -> str:
    """Pieces joined by blanks, as they are; BadRecord when there is none. The number of words is not limited."""
    if not isinstance(text, str):
        raise BadRecord("caption is not a string", f"found {type(text).__name__}")
    if not text.strip():
        raise BadRecord("empty caption", f"found {text[:40]!r}")
    return text.strip()


def is_base64(value: str) -> bool:
    """Whether a record's image value holds the picture itself; no path is as long or begins so."""
    return len(value) > MAX_PATH_LENGTH or value.startswith("data:") or value.startswith(BASE64_STARTS)


def read_image(value: Any, root: str, files: Files) -> bytes:
    """The encoded picture that a record holds, as bytes or base64, or names by a path (below root)."""
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str) or not value:
        raise BadRecord("missing image", f"found {type(value).__name__} {str(value)[:40]!r}; allowed: path or base64")
    if is_base64(value):
        return decode_base64(value)
    path = join_path(root, value)
    try:
        return files.read(path, limit=MAX_FILE_BYTES)
    except (OSError, ValueError) as error:
        if isinstance(error, BadRecord):
            raise
        if isinstance(error, FileNotFoundError):
            raise BadRecord("image file not found", path) from error
        raise BadRecord("unreadable image file", str(error)[:200]) from error


def decode_base64(text: str) -> bytes:
    """The bytes of standard or URL-safe base64, with or without line breaks, padding and a data-URI head."""
    if text.startswith("data:"):
        text = text.partition(",")[2]
    text = "".join(text.split()).translate({ord("-"): "+", ord("_"): "/"}).rstrip("=")
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadRecord("broken base64", f"{error}; {len(text)} characters beginning with {text[:12]!r}") from error


def stable_id(key: str) -> int:
    """A number below 2^63 that equal keys share on every machine."""
    digest = hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def image_key(value: str) -> str:
    """What tells pictures apart without opening them: a normalised path, or a number made from the base64."""
    return f"base64:{stable_id(value)}" if is_base64(value) else os.path.normpath(value)


def mask_texts(
    texts: Sequence[Sequence[int]], masker: Masker | None, generator: np.random.Generator
) -> list[MaskedIds] | None:
    """Every text with words hidden, or None without a masker."""
    return None if masker is None else [masker.mask(text, generator) for text in texts]


def collate_samples(samples: list[Sample], skipped: list[Skipped], pad_id: int) -> ImageTextBatch:
    """Samples as one batch, captions image-major."""
    texts = [text for sample in samples for text in sample.texts]
    counts = torch.tensor([len(sample.texts) for sample in samples], dtype=torch.int64)
    batch = pad_texts(texts, pad_id)
    return ImageTextBatch(
        images=torch.from_numpy(np.stack([sample.image for sample in samples])),  # (M, 3, S, S)
        image_id=torch.tensor([sample.image_id for sample in samples], dtype=torch.int64),
        texts=batch,
        image_of_text=torch.arange(len(samples)).repeat_interleave(counts),
        language_of_text=torch.tensor([language for s in samples for language in s.languages], dtype=torch.int64),
        masked=collate_masks([m for s in samples for m in s.masked or ()], batch.ids),
        skipped=skipped,
    )


def collate_masks(masked: Sequence[MaskedIds], ids: torch.Tensor) -> MaskedText | None:
    """Masked texts as one batch, given the padded ids (T, L) of the same texts; None if there are none."""
    if not masked:
        return None
    all_ids = ids.clone()  # (T, L), the padding is already right
    for row, text in enumerate(masked):
        all_ids[row, : len(text.ids)] = torch.from_numpy(text.ids)
    most = max(len(text.targets) for text in masked)
    targets = torch.from_numpy(_stack([text.targets for text in masked], most, IGNORED_TARGET))  # (T, P)
    positions = torch.from_numpy(_stack([text.positions for text in masked], most, 0))  # (T, P)
    assert bool((positions[targets == IGNORED_TARGET] == 0).all())
    return MaskedText(ids=all_ids, positions=positions, targets=targets)


def _stack(rows: Sequence[np.ndarray], length: int, filler: int) -> np.ndarray:
    """Rows of any lengths, filled up: (n, length)."""
    return np.stack([np.pad(row, (0, length - len(row)), constant_values=filler) for row in rows])
