"""Batches of one set each: shares, exact resume, equal on all ranks, and sets that are too small."""

import numpy as np
import pytest

from dataset.batch import ImageTextBatch
from dataset.files import DataError
from dataset.loader import Loader
from dataset.mixture import DebiasedPlan, Mixture, SequentialPlan
from dataset.samples import Preprocessing
from dataset.text import load_tokenizer
from dataset.transforms import Resize
from tests.toy_ccrk import TOKENIZER, write_toy_data

SIZES = (37, 11, 20)


def set_of(rows: np.ndarray) -> set[int]:
    return set(np.searchsorted(np.cumsum(SIZES), rows, side="right").tolist())


def test_every_draw_is_of_one_set_and_a_pass_repeats_no_row():
    plan = DebiasedPlan(SIZES, draw_size=8, world_size=1)
    batches = plan.order(seed=1, epoch=0).reshape(-1, 8)
    assert len(batches) == 4 + 1 + 2
    assert all(len(set_of(batch)) == 1 for batch in batches)
    of_first = [batch for batch in batches if set_of(batch) == {0}][:4]
    assert len(np.unique(np.concatenate(of_first))) == 8 * len(of_first)


def test_orders_differ_between_epochs_passes_and_seeds():
    plan = DebiasedPlan((16, 160), draw_size=16, world_size=1)
    orders = {plan.order(seed, epoch).tobytes() for seed in range(2) for epoch in range(3)}
    assert len(orders) == 6
    batches = np.concatenate([plan.order(0, epoch).reshape(-1, 16) for epoch in range(30)])
    small = [batch.tolist() for batch in batches if batch[0] < 16]
    assert len(small) > 5 and len({tuple(batch) for batch in small}) == len(small)


def test_batches_of_a_draw_stay_with_one_set():
    order = DebiasedPlan((64, 64), draw_size=16, world_size=1).order(0, 0)
    assert all(len({row // 64 for row in draw}) == 1 for draw in order.reshape(-1, 16))


def test_sequential_takes_one_set_after_the_other():
    order = SequentialPlan(SIZES, 8, 1).order(0, 0)
    assert [next(iter(set_of(batch))) for batch in order.reshape(-1, 8)] == [0] * 4 + [1] + [2] * 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("mixture")
    write_toy_data(path)
    return path


def open_mixture(folder, order="debias", **changes) -> Mixture:
    sets = {
        "lines": {"files": [str(folder / "pretrain")], "languages": ["en"]},
        "pairs": {"files": {"de": str(folder / "train.de.json")}},
    }
    from dataset.pretrain import CaptionedImages
    from dataset.retrieval import ImageTextPairs

    root = str(folder / "images")
    configs = {
        "lines": CaptionedImages.Config(image_root=root, **sets["lines"]),
        "pairs": ImageTextPairs.Config(image_root=root, **sets["pairs"]),
    }
    preprocessing = Preprocessing(load_tokenizer(TOKENIZER), Resize(Resize.Config(), 16), max_tokens=20)
    return Mixture(Mixture.Config(sets=configs, order=order), preprocessing)


def test_sets_of_different_layouts_share_a_loader_and_its_resume(folder):
    loader = Loader(open_mixture(folder), batch_size=4, seed=3)
    whole = [next_batch for _ in range(2) for next_batch in loader]
    languages = [set(batch.language_of_text.tolist()) for batch in whole]
    assert {frozenset(each) for each in languages} == {frozenset({0}), frozenset({1})}
    first = Loader(open_mixture(folder), batch_size=4, seed=3)
    batches = iter(first)
    head = [next(batches) for _ in range(5)]
    rest = Loader(open_mixture(folder), batch_size=4, seed=3)
    rest.load_state_dict(first.state_dict())
    joined = head + [batch for _ in range(2) for batch in rest]
    assert all(equal(a, b) for a, b in zip(whole, joined, strict=True))


def equal(a: ImageTextBatch, b: ImageTextBatch) -> bool:
    return a.image_id.tolist() == b.image_id.tolist() and a.texts.ids.tolist() == b.texts.ids.tolist()


def test_too_small_a_set_is_named(folder):
    with pytest.raises(
        DataError, match="set 'lines' has 24 records, but every batch is of one set; needed: at least 32"
    ):
        Loader(open_mixture(folder), batch_size=16, batches_per_draw=2)
    assert len(Loader(open_mixture(folder, "shuffle"), batch_size=16)) == 3


def test_records_of_all_sets_are_described_in_their_order(folder):
    mixture = open_mixture(folder)
    parts = list(mixture.sets.values())
    described = [(mixture.where_record(k), mixture.describe(k).captions) for k in range(mixture.num_records)]
    own = [(part.where_record(k), part.describe(k).captions) for part in parts for k in range(part.num_records)]
    assert len(parts) > 1 and described == own


def test_every_order_fills_up_a_set_whose_rows_do_not_divide_by_the_ranks():
    """As the original's sampler: 15 rows are 8 a rank of two, so 4 batches of 4; no batch names a row twice."""
    order = SequentialPlan((15, 5), 4, 2).order(0, 0)
    assert len(order) == 16 + 4 and set(order[:16]) == set(range(15)) and set(order[16:]) < set(range(15, 20))
    assert all(len(set(order[k : k + 4])) == 4 for k in range(0, 20, 4))
