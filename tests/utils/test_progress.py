"""What a long piece of work says of itself."""

import logging

from utils import progress
from utils.progress import Progress


def test_rate_and_time_left_count_from_the_beginning_of_this_start(monkeypatch):
    clock = iter([100.0, 110.0, 110.0, 110.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    work = Progress(1000, "captions", is_shown=False, done=400)
    work.advance(200)
    assert work.line() == "600 of 1,000 captions, 20.0/s, 20 s left"


def test_without_a_terminal_a_line_comes_now_and_then(monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    for is_shown in (True, False):
        with Progress(4, "records", is_shown=is_shown) as work:
            work.advance(1)
    assert [record.message.split(",")[0] for record in caplog.records] == ["1 of 4 records"]
