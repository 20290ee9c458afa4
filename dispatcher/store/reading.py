"""How our clock stands to the database's, as far as one question can tell. No I/O."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from worker.clock import CorrectedClock

SHARP = timedelta(seconds=1)
"""A question that took longer tells that a clock is wrong, but not by how much."""


@dataclass(frozen=True, slots=True)
class Reading:
    """The server's time, and ours right before and after it was asked: a process may be held up in between."""

    before: datetime
    server: datetime
    after: datetime

    @property
    def agrees(self) -> bool:
        """Whether the server may have had that time at a moment in between, by our clock."""
        return self.before - CorrectedClock.NOISE <= self.server <= self.after + CorrectedClock.NOISE

    @property
    def is_sharp(self) -> bool:
        return self.after - self.before <= SHARP
