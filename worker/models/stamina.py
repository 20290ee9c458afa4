"""When a connection is too slow, and when a transfer has failed too often."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import timedelta

from worker.errors import DownloadFailed
from worker.models.base import Tempo
from worker.retry import Policy

LONGEST_WAIT = timedelta(minutes=2)
"""A server that asks for more while nothing else goes on has failed."""


class Quiet:
    """Tells a connection that brings too little. Only time that was spent waiting for it counts."""

    def __init__(self, tempo: Tempo) -> None:
        self.least = tempo.stall_bytes
        self.within_s = tempo.stall.total_seconds()
        self._bytes = 0
        self._waited_s = 0.0

    def saw(self, count: int, waited_s: float) -> bool:
        """Count what came in this time; True when it was too little for too long."""
        self._bytes += count
        self._waited_s += waited_s
        if self._bytes >= self.least:
            self._bytes, self._waited_s = 0, 0.0
        return self._waited_s >= self.within_s


class Stamina:
    """How often one connection of a transfer may fail yet.

    ``reached`` is the most bytes that the whole transfer ever had: while that grows by `Tempo.stall_bytes` from
    failure to failure the tries never end; a source that always breaks off at the same byte has `Tempo.attempts`.
    """

    def __init__(self, tempo: Tempo, rng: random.Random, reached: Callable[[], int]) -> None:
        self._tempo = tempo
        self._policy = Policy(attempts=tempo.attempts, first=tempo.first, most=tempo.most)
        self._rng = rng
        self._reached = reached
        self._mark = reached()
        self._failures = 0
        self._in_a_row = 0

    def well(self) -> None:
        """A request was answered in full: the next wait is the shortest again."""
        self._in_a_row = 0

    def after(self, error: DownloadFailed) -> timedelta:
        """How long to wait before the next try; raises the error when it was the last."""
        reached = self._reached()
        if reached - self._mark >= self._tempo.stall_bytes:
            self._failures = 0
            self._mark = reached
        self._failures += 1
        self._in_a_row += 1
        if self._failures >= self._tempo.attempts:
            raise error
        return self._policy.wait(self._in_a_row, self._rng, at_least=error.retry_after)
