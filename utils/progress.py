"""How far a long piece of work is: a bar on a terminal, elsewhere a log line now and then."""

from __future__ import annotations

import logging
import sys
import time

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 30.0

log = logging.getLogger(__name__)


class Progress:
    """Counts pieces of work done and tells rate and time left; silent where it is not shown."""

    def __init__(self, total: int, unit: str, *, is_shown: bool, done: int = 0) -> None:
        self.total, self.unit, self.first, self.done = total, unit, done, done
        self.is_shown, self.started = is_shown, time.monotonic()
        self._bar = tqdm(
            total=total,
            initial=done,
            unit=f" {unit}",
            disable=not (is_shown and sys.stderr.isatty()),
            dynamic_ncols=True,
            smoothing=0.05,
        )
        self._next_line = self.started + SECONDS_BETWEEN_LINES

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    @property
    def rate(self) -> float:
        """Pieces per second since the beginning; what was done before does not count."""
        return (self.done - self.first) / max(time.monotonic() - self.started, 1e-9)

    def advance(self, number: int) -> None:
        """That many more are done."""
        self.done += number
        self._bar.update(number)
        if self._bar.disable and self.is_shown and time.monotonic() >= self._next_line:
            log.info("%s", self.line())
            self._next_line = time.monotonic() + SECONDS_BETWEEN_LINES

    def line(self) -> str:
        """`120 of 4,000 records, 35.2/s, 110 s left`."""
        left = f", {(self.total - self.done) / self.rate:,.0f} s left" if self.rate else ""
        return f"{self.done:,} of {self.total:,} {self.unit}, {self.rate:,.1f}/s{left}"
