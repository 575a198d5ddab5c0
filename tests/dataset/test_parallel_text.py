"""Pairs of sentences: order, masks of one sentence or of both, and what is wrong with a record."""

import numpy as np
import pytest

from dataset.loader import Loader
from dataset.parallel_text import ParallelTexts
from dataset.text import PieceLookup, SkipgramMasker, train_bpe
from tests.dataset.toy import WordTokenizer, preprocessing, write_lines

PAIR = {"source_text": "a dog runs fast", "target_text": "ein Hund rennt"}
MASKER = SkipgramMasker(SkipgramMasker.Config(max_masks=3), 99, 100)


def open_dataset(tmp_path, records, *, masker=None, max_tokens=40, **config):
    path = write_lines(tmp_path / "pairs.data", records)
    settings = preprocessing(masker=masker, max_tokens=max_tokens)
    return ParallelTexts(ParallelTexts.Config(files=[path], **config), settings)


def words(text):
    return WordTokenizer().encode_batch([text], 40)[0]


def test_the_order_of_a_pair_is_drawn(tmp_path):
    dataset = open_dataset(tmp_path, [PAIR])
    firsts = [dataset.sample(0, np.random.default_rng(seed)).first for seed in range(200)]
    share = sum(first == words("a dog runs fast") for first in firsts) / 200
    assert 0.4 < share < 0.6 and all(first in (words("a dog runs fast"), words("ein hund rennt")) for first in firsts)


def test_the_first_sentence_is_masked(tmp_path):
    dataset = open_dataset(tmp_path, [PAIR] * 4, masker=MASKER)
    batch = next(iter(Loader(dataset, batch_size=4)))
    used = batch.masked.targets >= 0
    rows, places = used.nonzero(as_tuple=True)
    assert batch.masked_lengths is None and used.any(dim=1).all()
    assert (batch.first.ids[rows, batch.masked.positions[rows, places]] == batch.masked.targets[used]).all()


def test_translation_modelling_masks_both_sentences_as_one_text(tmp_path):
    dataset = open_dataset(tmp_path, [PAIR] * 3, masker=MASKER, swap_prob=0.0, is_translation_modelling=True)
    batch = next(iter(Loader(dataset, batch_size=3)))
    joined = [*words("a dog runs fast"), *words("ein hund rennt")[1:]]
    assert batch.masked_lengths == [len(joined)] * 3
    restored = batch.masked.ids.clone()
    used = batch.masked.targets >= 0
    rows, places = used.nonzero(as_tuple=True)
    restored[rows, batch.masked.positions[rows, places]] = batch.masked.targets[used]
    assert restored.tolist() == [joined] * 3


def test_a_joined_pair_is_at_most_twice_as_long_as_a_text(tmp_path):
    long = {"source_text": "a b c d e f g h", "target_text": "i j k l m n o p"}
    dataset = open_dataset(tmp_path, [long], max_tokens=5)
    joined = dataset.join(long["source_text"], long["target_text"])
    a, i = words(long["source_text"]), words(long["target_text"])
    assert joined == [0, *a[1:5], 2, *i[1:4], 2] and len(joined) == 10


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"source_text": "a dog"}, "missing text; field 'target_text' is missing; found: source_text"),
        ({"source_text": "a dog", "target_text": ""}, "empty caption; field 'target_text': found ''"),
        ({"source_text": "...", "target_text": "ein"}, "empty caption; field 'source_text': found '...'"),
        ({"source_text": 3, "target_text": "ein"}, "caption is not a string; field 'source_text': found int"),
        ("{", "broken JSON"),
    ],
)
def test_an_unusable_record_is_named_with_its_line(tmp_path, record, message):
    batch = next(iter(Loader(open_dataset(tmp_path, [PAIR, record]), batch_size=2, shuffle=False)))
    assert [str(skipped)[: len(f"{tmp_path}/pairs.data:2: {message}")] for skipped in batch.skipped] == [
        f"{tmp_path}/pairs.data:2: {message}"
    ]


def test_other_field_names_can_be_configured(tmp_path):
    dataset = open_dataset(tmp_path, [{"en": "a dog", "de": "ein Hund"}], source_key="en", target_key="de")
    pair = dataset.sample(0, np.random.default_rng(0))
    assert sorted([pair.first, pair.second]) == sorted([words("a dog"), words("ein hund")])


def test_pieces_are_looked_up_as_they_are():
    tokenizer = train_bpe(["a red dog", "a red cat"] * 5, 60)
    [encoding] = tokenizer.tokenizer.encode_batch(["a red dog"], add_special_tokens=False)
    lookup = PieceLookup(tokenizer)
    assert lookup.encode_batch([" ".join(encoding.tokens)], 40) == tokenizer.encode_batch(["a red dog"], 40)
    assert lookup.encode_pieces(["nosuchpiece"]) == [[tokenizer.unknown_id]]
