"""How fast bytes come, and how long those that are missing take yet. Pure: the time is told; seconds, bytes."""

from __future__ import annotations

import math

MEASURED_S = 5.0
"""Less than so many seconds tell nothing yet."""

MEMORY_S = 30.0
"""Of about so many seconds is the average."""


class Speed:
    """A running average over the time in which bytes came; a pause of more than ``pause_s`` is none of it."""

    def __init__(self, pause_s: float = math.inf) -> None:
        self._pause_s = pause_s
        self._seconds = 0.0
        self._bytes = 0.0
        self._last: float | None = None

    def saw(self, now: float, count: int) -> None:
        """So many bytes have come since the last call; those of the first call have come before."""
        passed = self._passed(now)
        if passed is not None:
            self._seconds += passed
            self._bytes += count
            if self._seconds > MEMORY_S:
                self._bytes *= MEMORY_S / self._seconds
                self._seconds = MEMORY_S
        self._last = now

    def rate(self, now: float) -> float | None:
        """Bytes a second, None until it was measured; it sinks while nothing comes, until that is a pause."""
        seconds = self._seconds + (self._passed(now) or 0.0)
        return self._bytes / seconds if seconds >= MEASURED_S and self._bytes else None

    def _passed(self, now: float) -> float | None:
        if self._last is None or now - self._last > self._pause_s:
            return None
        return now - self._last


def time_for(left: int, rate: float | None) -> float | None:
    """Seconds that so many bytes take; None where nobody can tell."""
    return None if rate is None else left / rate
