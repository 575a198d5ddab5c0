"""The tokenizer of BERT's first release, as Chinese-CLIP still has it, from the parts of the `tokenizers` library.

It differs from the library's own BERT in what no vocabulary shows: a special token written in a text is split like any
other word, words may have 200 characters instead of 100, private-use characters stay, and a final sigma is lower-cased
as a final sigma.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from dataset.text import TextTokenizer

LONGEST_WORD = 200
SIGMA = "\u03a3"
IDEOGRAPHS = (
    r"[\x{4E00}-\x{9FFF}\x{3400}-\x{4DBF}\x{20000}-\x{2A6DF}\x{2A700}-\x{2B73F}\x{2B740}-\x{2B81F}\x{2B820}-\x{2CEAF}"
    r"\x{F900}-\x{FAFF}\x{2F800}-\x{2FA1F}]"
)


def clean_chinese(text: str) -> str:
    """The text as Chinese-CLIP's data sets and prompts see it: lower case, curly double quotes made straight."""
    return text.lower().replace("\u201c", '"').replace("\u201d", '"')


class OriginalBertTokenizer(TextTokenizer):
    """Token ids of texts as the first BERT gives them."""

    def __init__(self, tokenizer: Tokenizer, where: str = "tokenizer") -> None:
        super().__init__(tokenizer, where)
        self._cleaner = _cleaner()

    def encode_pieces(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of the pieces of every text, without begin and end."""
        return super().encode_pieces([self._with_final_sigma(text) for text in texts])

    def pieces(self, text: str) -> list[str]:
        """The pieces of a text, as they stand in the vocabulary."""
        return super().pieces(self._with_final_sigma(text))

    def _with_final_sigma(self, text: str) -> str:
        """The library lower-cases character by character; only Python knows where a word ends."""
        return self._cleaner.normalize_str(text).lower() if SIGMA in text else text


def load_original_bert(vocabulary: Path) -> OriginalBertTokenizer:
    """The tokenizer of a vocabulary file, one piece a line; blanks around a piece do not count."""
    words = vocabulary.read_text(encoding="utf-8").split("\n")
    words = [word.strip() for word in (words[:-1] if words and not words[-1] else words)]
    vocab = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]", max_input_chars_per_word=LONGEST_WORD))
    tokenizer.normalizer = normalizers.Sequence(
        [
            _cleaner(),
            normalizers.Lowercase(),
            normalizers.BertNormalizer(
                clean_text=False, handle_chinese_chars=False, strip_accents=True, lowercase=False
            ),
        ]
    )
    ideograph = pre_tokenizers.Split(Regex(IDEOGRAPHS), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([ideograph, pre_tokenizers.BertPreTokenizer()])
    tokenizer.decoder = decoders.WordPiece()
    return OriginalBertTokenizer(tokenizer, str(vocabulary))


def _cleaner() -> normalizers.Sequence:
    """Tabs and line ends as blanks; no other control or format characters, no replacement character."""
    return normalizers.Sequence(
        [
            normalizers.Replace(Regex(r"[\t\n\r]"), " "),
            normalizers.Replace(Regex(r"[\x{FFFD}\p{Cc}\p{Cf}]"), ""),
        ]
    )
