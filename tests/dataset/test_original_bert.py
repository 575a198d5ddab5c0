"""The first BERT's tokenizer against its algorithm in plain Python."""

import json
import random
import unicodedata

import pytest

import rosetta
from dataset.original_bert import clean_chinese
from dataset.text import load_tokenizer

FOLDER = rosetta.ROOT / "assets/tokenizers"
VOCAB = {word.strip() for word in (FOLDER / "chinese-roberta/vocab.txt").read_text(encoding="utf-8").split("\n")}
IDEOGRAPHS = [(0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F), (0x2B740, 0x2B81F),
              (0x2B820, 0x2CEAF), (0xF900, 0xFAFF), (0x2F800, 0x2FA1F)]  # fmt: skip
# Where something special happens, one range each.
ALPHABETS = [range(32, 127), range(0x4E00, 0x5000), range(0xA0, 0x600), range(0x2000, 0x2100), range(0xE000, 0xE010),
             range(0xF900, 0xF950), range(0x1F300, 0x1F380), [0x3A3, 0x3C3, 0x391, 32, 0x200B, 46], range(32),
             range(0xAC00, 0xAC50), range(0x2B810, 0x2B830), range(0x3000, 0x3040),
             [0x1E9E, 0x130, 0x49, 0x307, 0xDF]]  # fmt: skip


def plain_pieces(text):
    words = []
    for word in clean(text).split():
        word = "".join(c for c in unicodedata.normalize("NFD", word.lower()) if unicodedata.category(c) != "Mn")
        words += "".join(f" {c} " if is_punctuation(c) else c for c in word).split()
    return [piece for word in words for piece in word_pieces(word)]


def clean(text):
    kept = []
    for c in text:
        if c in "\t\n\r" or unicodedata.category(c) == "Zs":
            kept.append(" ")
        elif ord(c) != 0xFFFD and unicodedata.category(c) not in ("Cc", "Cf"):
            is_ideograph = any(low <= ord(c) <= high for low, high in IDEOGRAPHS)
            kept.append(f" {c} " if is_ideograph else c)
    return "".join(kept)


def is_punctuation(c):
    is_ascii = ord(c) < 127 and not c.isalnum() and not c.isspace() and c.isprintable()
    return is_ascii or unicodedata.category(c).startswith("P")


def word_pieces(word):
    if len(word) > 200:
        return ["[UNK]"]
    pieces, start = [], 0
    while start < len(word):
        ends = (end for end in range(len(word), start, -1) if ("##" if start else "") + word[start:end] in VOCAB)
        end = next(ends, None)
        if end is None:
            return ["[UNK]"]
        pieces.append(("##" if start else "") + word[start:end])
        start = end
    return pieces


def test_pieces_agree_with_the_algorithm_in_plain_python():
    tokenizer, draw = load_tokenizer(FOLDER / "chinese-clip"), random.Random(0)
    for _ in range(1500):
        text = "".join(chr(draw.choice(draw.choice(ALPHABETS))) for _ in range(draw.randint(1, 30)))
        assert tokenizer.pieces(text) == plain_pieces(text), repr(text)


@pytest.mark.parametrize("length, is_known", [(200, True), (201, False)])
def test_words_may_have_two_hundred_characters(length, is_known):
    pieces = load_tokenizer(FOLDER / "chinese-clip").pieces("a" * length)
    assert (pieces == ["[UNK]"]) != is_known


def test_a_special_token_written_in_a_text_is_none():
    ids = load_tokenizer(FOLDER / "chinese-clip").encode_batch(["[MASK]"], 52)[0]
    assert 103 not in ids and len(ids) > 3


def test_data_sets_see_lower_case_and_straight_quotes():
    assert clean_chinese("A\u201cB\u201d") == 'a"b"'


def test_a_folder_with_no_more_than_the_settings_of_a_tokenizer_is_none(tmp_path):
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": True}))
    with pytest.raises(FileNotFoundError, match="holds no tokenizer"):
        load_tokenizer(tmp_path)
