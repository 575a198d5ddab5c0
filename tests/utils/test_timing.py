"""What a table of times holds."""

from __future__ import annotations

from utils.timing import spread, time_calls


def test_the_spread_of_known_numbers():
    found = spread([float(number) for number in range(1, 102)])
    assert (found["mean"], found["median"], found["min"], found["max"]) == (51, 51, 1, 101)
    assert (found["p95"], found["p99"]) == (96, 100)


def test_first_runs_do_not_count():
    calls = []
    assert time_calls(lambda: calls.append(1), 3, 2)["min"] >= 0
    assert len(calls) == 5
