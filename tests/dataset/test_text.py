"""Caption cleaning, tokenizers from every kind of file, and masking."""

import gzip
import json

import numpy as np
import pytest

from dataset.text import SkipgramMasker, apply_masks, clean_caption, load_tokenizer, train_bpe
from tests.conftest import ROOT

TOKENIZERS = ROOT / "assets" / "tokenizers"


@pytest.mark.parametrize(
    "text, wanted",
    [
        ("Two dogs/cats (brown & white) run; it's 5:30~ #fun", "two dogs cats brown & white run it s 5 30 fun"),
        ("<person> AND  <PERSON>\n", "person and person"),
        ("一个人(坐在)长椅上。", "一个人 坐在 长椅上。"),
        ("half \ud83d a character", "half a character"),
    ],
)
def test_captions_are_cleaned(text, wanted):
    assert clean_caption(text, 40) == wanted


@pytest.mark.parametrize("text", ["", " ", "...", "\n", "\udc00"])
def test_empty_captions_are_errors(text):
    with pytest.raises(ValueError, match="empty"):
        clean_caption(text, 40)


@pytest.mark.parametrize(
    "place, text, ids",
    [
        ("xlm-roberta", "Hello World!", [0, 35378, 6661, 38, 2]),
        ("chinese-roberta", "你好世界", [101, 872, 1962, 686, 4518, 102]),
        ("bert-base-uncased/vocab.txt", "hello world", [101, 7592, 2088, 102]),
    ],
)
def test_bundled_tokenizers_give_the_public_ids(place, text, ids):
    tokenizer = load_tokenizer(TOKENIZERS / place)
    assert tokenizer.encode_batch([text], 40) == [ids]
    assert tokenizer.encode_batch([text], 4) == [ids[:3] + ids[-1:]]


def test_learnt_tokenizer_is_saved_and_loaded(tmp_path):
    texts = [f"{colour} {thing}" for colour in ("red", "rot", "红色的") for thing in ("bus", "Haus", "猫")]
    tokenizer = train_bpe(texts, 60)
    assert train_bpe(texts, 60).tokenizer.to_str() == tokenizer.tokenizer.to_str()
    tokenizer.save(tmp_path)
    again = load_tokenizer(tmp_path)
    assert again.encode_batch(texts, 9) == tokenizer.encode_batch(texts, 9)
    assert (again.bos_id, again.pad_id, again.eos_id, again.mask_id) == (0, 1, 2, 4)
    (tmp_path / "tokenizer.json.gz").write_bytes(gzip.compress((tmp_path / "tokenizer.json").read_bytes()))
    assert load_tokenizer(tmp_path / "tokenizer.json.gz").vocab_size == again.vocab_size


def test_wrong_tokenizers_are_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such tokenizer"):
        load_tokenizer(tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match="holds no tokenizer"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": 3}))
    with pytest.raises(ValueError, match="not a tokenizer"):
        load_tokenizer(tmp_path)
    (tmp_path / "vocab.txt").write_text("[UNK]\na\n")
    with pytest.raises(ValueError, match=r"has no pad \(<pad> or \[PAD\]\)"):
        load_tokenizer(tmp_path / "vocab.txt")
    (tmp_path / "train.jsonl").write_text("{}\n")
    with pytest.raises(ValueError, match=r"the ending .jsonl is not known; allowed: folder, \*.json"):
        load_tokenizer(tmp_path / "train.jsonl")


def test_masks_hide_what_they_say():
    masked = apply_masks([0, 11, 12, 13, 2], [3, 1], [99, 7], max_masks=3)
    assert masked.ids.tolist() == [0, 7, 12, 99, 2]
    assert masked.positions.tolist() == [3, 1, 0] and masked.targets.tolist() == [13, 11, -100]


@pytest.mark.parametrize("mask_prob", [0.4, 0.9])
@pytest.mark.parametrize("num_tokens", [2, 3, 7, 40])
def test_masks_never_touch_the_first_token_nor_exceed_their_number(num_tokens, mask_prob):
    masker = SkipgramMasker(SkipgramMasker.Config(mask_prob=mask_prob, max_masks=6), mask_id=99, vocab_size=100)
    for seed in range(50):
        positions = masker.choose_positions(num_tokens, np.random.default_rng(seed))
        assert len(positions) == len(set(positions)) == masker.num_masked(num_tokens)
        assert 1 <= min(positions) and max(positions) < num_tokens


def test_masking_settings_are_checked():
    with pytest.raises(ValueError, match="mask_prob"):
        SkipgramMasker.Config(mask_prob=1.4)
    with pytest.raises(ValueError, match="max_masks"):
        SkipgramMasker.Config(max_masks=0)
