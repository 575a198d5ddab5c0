"""The loader's order, position and randomness, and what happens to records that cannot be used."""

import random

import numpy as np
import pytest
import torch

from dataset.batch import Skipped
from dataset.files import BadRecord, DataError
from dataset.loader import Loader


class Numbers:
    """Samples are (index, a random draw); some indices are broken."""

    languages: list[str] = []

    def __init__(self, size: int, broken: tuple[int, ...] = ()) -> None:
        self.size, self.broken = size, set(broken)

    def __len__(self):
        return self.size

    def where(self, index):
        return f"numbers:{index}"

    def sample(self, index, generator):
        if index in self.broken:
            raise BadRecord("broken", "on purpose")
        return index, float(generator.random())

    def collate(self, samples, skipped):
        return Rows(samples, skipped)


class Rows:
    def __init__(self, samples, skipped):
        self.samples, self.skipped = samples, skipped

    @property
    def indices(self):
        return [index for index, _ in self.samples]


def loader(size=20, broken=(), **settings):
    return Loader(Numbers(size, tuple(broken)), **{"batch_size": 6, "seed": 7, "max_bad_share": 1.0, **settings})


def test_order_depends_on_seed_and_epoch_only():
    first, second = loader(), loader()
    epochs = [[rows.samples for rows in first] for _ in range(2)]
    assert epochs == [[rows.samples for rows in second] for _ in range(2)]
    assert epochs[0] != epochs[1]
    assert loader(seed=8).order(0).tolist() != first.order(0).tolist()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_ranks_and_workers_do_not_change_the_samples(num_workers):
    whole = [rows.samples for rows in loader()]
    parts = [[rows.samples for rows in loader(rank=r, world_size=2, num_workers=num_workers)] for r in range(2)]
    assert [a + b for a, b in zip(*parts)] == whole


class Repeating(Numbers):
    """Has an order that takes every record three times in an epoch."""

    num_records = 18

    def __init__(self):
        super().__init__(6)

    def plan(self, batch_size, world_size, batches_per_draw):
        return self

    def order(self, seed, epoch):
        return np.tile(np.arange(6), 3)


def test_a_record_that_an_epoch_has_again_is_drawn_anew_and_alike_after_a_resume():
    whole = [rows.samples for rows in Loader(Repeating(), batch_size=4, seed=7)]
    draws = [sample for samples in whole for sample in samples]
    assert [index for index, _ in draws] == [*range(6)] * 2 + [*range(4)] and len({draw for _, draw in draws}) == 16
    assert draws[:6] == [rows.samples[0] for rows in Loader(Numbers(6), batch_size=1, seed=7, shuffle=False)]
    rest = Loader(Repeating(), batch_size=4, seed=7)
    rest.load_state_dict({"seed": 7, "epoch": 0, "consumed": 8})
    assert [rows.samples for rows in rest] == whole[2:]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_continues_after_what_was_handed_out(num_workers):
    plain = loader(num_workers=0)
    wanted = [rows.samples for _ in range(3) for rows in plain]
    seen, state = [], None
    for stop in (2, 1, 3, 3):  # stop in the midst of an epoch, at its end, and over it
        part = loader(num_workers=num_workers)
        if state:
            part.load_state_dict(state)
        for rows in part:
            seen.append(rows.samples)
            state = part.state_dict()
            stop -= 1
            if not stop:
                break
    assert seen == wanted[: len(seen)] and len(seen) == 9


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_abandoned_epoch_goes_on_where_it_was_left(num_workers):
    wanted = [rows.samples for rows in loader()]
    numbers = loader(num_workers=num_workers)
    first = next(iter(numbers)).samples
    assert [first, *(rows.samples for rows in numbers)] == wanted
    assert numbers.epoch == 1


def test_state_after_the_last_batch_is_the_next_epoch():
    numbers = loader()
    list(numbers)
    assert numbers.state_dict() == {"seed": 7, "epoch": 1, "consumed": 0}


@pytest.mark.parametrize("before, after", [(1, 3), (3, 2)])
def test_world_size_may_change_within_an_epoch(before, after):
    def step(world_size, state, count):
        ranks = [loader(size=24, rank=r, world_size=world_size) for r in range(world_size)]
        for rank in ranks:
            rank.load_state_dict(state)
        batches = [list(zip(range(count), rank)) for rank in ranks]
        return [i for rows in batches for _, r in rows for i in r.indices], ranks[0].state_dict()

    first, state = step(before, {"seed": 7, "epoch": 0, "consumed": 0}, 2)
    second, state = step(after, state, 2)
    assert sorted(first + second) == list(range(24))
    assert state == {"seed": 7, "epoch": 1, "consumed": 0}


@pytest.mark.parametrize("size, world_size", [(20, 2), (19, 2), (19, 3), (5, 3), (7, 3)])
def test_uneven_last_batch_leaves_no_rank_empty_and_loses_nothing(size, world_size):
    ranks = [loader(size=size, rank=r, world_size=world_size, drop_last=False) for r in range(world_size)]
    batches = [list(rank) for rank in ranks]
    assert {len(rank) for rank in batches} == {len(ranks[0])}
    assert all(rows.samples for rank in batches for rows in rank)
    assert sorted(i for rank in batches for rows in rank for i in rows.indices) == list(range(size))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_global_random_states_are_left_alone(num_workers):
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    numbers = loader(num_workers=num_workers)
    for _ in range(2):
        list(numbers)
    after = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    assert torch.equal(before[0], after[0]) and before[1:] == after[1:]


def test_broken_records_are_left_out_counted_and_named():
    numbers = loader(broken=[3, 4])
    batches = list(numbers)
    skipped = sorted((r.where, r.reason, r.detail) for rows in batches for r in rows.skipped)
    assert set(skipped) <= {("numbers:3", "broken", "on purpose"), ("numbers:4", "broken", "on purpose")}
    assert numbers.bad_records.by_reason["broken"] == len(skipped)
    assert not {3, 4} & {i for rows in batches for i in rows.indices}


def test_a_rank_whose_records_are_all_broken_borrows_one():
    numbers = loader(size=12, broken=range(11), batch_size=2, world_size=2)
    assert all(rows.indices == [11] for rows in numbers)


def test_nothing_readable_is_an_error():
    with pytest.raises(DataError, match="none of .* records could be used"):
        list(loader(broken=range(20), num_workers=1))


def test_too_many_broken_records_stop_the_run():
    numbers = loader(size=400, broken=range(0, 400, 10), max_bad_share=0.01)
    with pytest.raises(DataError, match=r"could not be used \(broken: \d+\).*data.max_bad_share") as error:
        list(numbers)
    assert numbers.bad_records.seen < 400 and "numbers:" in str(error.value)


def test_a_small_excess_is_found_at_the_end_of_the_epoch():
    with pytest.raises(DataError, match="3 of 198"):
        list(loader(size=198, broken=[0, 90, 180], max_bad_share=0.01))


def test_a_single_broken_record_does_not_stop_a_run():
    assert len(list(loader(broken=[int(loader().order(0)[0])], max_bad_share=0.0))) == 3


def test_positions_outside_the_data_are_refused():
    with pytest.raises(DataError, match="position 21 lies outside"):
        loader().load_state_dict({"seed": 7, "epoch": 0, "consumed": 21})


def test_batches_larger_than_the_data_are_refused():
    with pytest.raises(DataError, match="has 3 records"):
        loader(size=3)
    with pytest.raises(ValueError, match="batch_size is global"):
        loader(batch_size=1, world_size=2)


def test_skipped_records_read_as_one_line():
    assert str(Skipped("a.jsonl:3", "broken JSON", "no end")) == "a.jsonl:3: broken JSON; no end"
