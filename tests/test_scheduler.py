"""Schedules are functions of the step alone."""

import pytest

from scheduler import ScheduleConfig, count_warmup_steps, learning_rate_factor


def test_linear_rises_from_zero_and_falls_to_zero() -> None:
    factors = [learning_rate_factor(ScheduleConfig(warmup=2), step, 6) for step in range(7)]
    assert factors == [0, 0.5, 1, 0.75, 0.5, 0.25, 0]


def test_cosine_passes_the_middle_and_ends_at_its_floor() -> None:
    config = ScheduleConfig(name="cosine", warmup=0, floor=0.1)
    assert [learning_rate_factor(config, step, 8) for step in (0, 4, 8)] == pytest.approx([1, 0.55, 0.1])


def test_constant_stays() -> None:
    assert learning_rate_factor(ScheduleConfig(name="constant", warmup=1), 77, 100) == 1


def test_a_float_warmup_is_a_share_and_an_int_counts_steps() -> None:
    assert count_warmup_steps(0.03006253006253006, 2772 * 30) == 2500
    assert count_warmup_steps(1.0, 10) == 10 and count_warmup_steps(1, 10) == 1


def test_epoch_cosine_keeps_the_last_warm_up_value_to_the_end_of_an_epoch() -> None:
    config = ScheduleConfig(name="epoch_cosine", warmup=3, start=0.1)
    factors = [learning_rate_factor(config, step, 6, 2) for step in range(6)]
    assert factors == pytest.approx([0.1, 0.4, 0.7, 0.7, 0.25, 0.25])


def test_a_triangle_begins_again() -> None:
    config = ScheduleConfig(name="triangle", warmup=2, floor=0.5)
    assert [learning_rate_factor(config, step, 99) for step in range(6)] == [0.5, 0.75, 1, 0.75, 0.5, 0.75]


@pytest.mark.parametrize("settings", [{"warmup": -1}, {"warmup": 1.5}, {"floor": 2}, {"start": -1}])
def test_impossible_settings_are_refused(settings: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        ScheduleConfig(**settings)
