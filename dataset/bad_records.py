"""The account of records that were left out, and the end of a run that leaves out too many."""

from __future__ import annotations

import logging
from collections import Counter

from dataset.batch import Skipped
from dataset.files import DataError

log = logging.getLogger(__name__)

LISTED_PER_REASON = 20
MIN_SEEN = 100


class BadRecords:
    """Counts and lists records that were left out; raises DataError when their share of an epoch grows too large."""

    def __init__(self, max_bad_share: float) -> None:
        if not 0 <= max_bad_share <= 1:
            raise ValueError(f"max_bad_share must be in [0, 1], found {max_bad_share}")
        self.max_bad_share = max_bad_share
        self.by_reason: Counter[str] = Counter()
        self.seen, self.bad = 0, 0
        self._last: list[Skipped] = []

    def start_epoch(self) -> None:
        self.seen, self.bad = 0, 0

    def add(self, num_seen: int, skipped: list[Skipped]) -> None:
        """Count records that were read and those of them that were left out."""
        self.seen += num_seen
        self.bad += len(skipped)
        for record in skipped:
            self.by_reason[record.reason] += 1
            self._last = [*self._last[-4:], record]
            if self.by_reason[record.reason] <= LISTED_PER_REASON:
                log.warning("skipped %s", record)
            if self.by_reason[record.reason] == LISTED_PER_REASON:
                log.warning("further records with '%s' are counted but not listed", record.reason)
        # A margin of three standard deviations: few bad records that come early by chance must not stop a run.
        expected = self.max_bad_share * self.seen
        if skipped and self.seen >= MIN_SEEN and self.bad > expected + 3 * expected**0.5 + 1:
            self._stop()

    def end_epoch(self) -> None:
        """The exact check over an epoch; a single bad record never stops a run."""
        if self.bad > max(self.max_bad_share * self.seen, 1):
            self._stop()

    def _stop(self) -> None:
        reasons = ", ".join(f"{reason}: {count}" for reason, count in self.by_reason.most_common())
        raise DataError(
            f"{self.bad} of {self.seen} records could not be used ({reasons}); "
            f"allowed: a share of {self.max_bad_share:g} (data.max_bad_share); the last ones:\n  "
            + "\n  ".join(map(str, self._last))
        )
