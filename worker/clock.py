"""Wall-clock time, always aware UTC, and the offset by which the node's clock is known to be wrong.

Durations and deadlines inside the process use the event loop's time instead.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Protocol


class Clock(Protocol):
    def now(self) -> datetime:
        """The time as the node's clock has it, in UTC."""
        ...


class SystemClock:
    def now(self) -> datetime:
        return datetime.fromtimestamp(time.time(), UTC)


class CorrectedClock:
    """Another clock, corrected by the offset seen in the ``Date`` headers of servers.

    Signatures (webhooks, SigV4) are made with its time, since a node whose clock is an hour off would
    have every one of them refused. ``Date`` has a resolution of one second: smaller offsets are noise.
    """

    NOISE = timedelta(seconds=2)

    def __init__(self, base: Clock) -> None:
        self._base = base
        self.offset = timedelta(0)

    def now(self) -> datetime:
        return self._base.now() + self.offset

    def observe(self, server_time: datetime) -> None:
        offset = server_time - self._base.now()
        self.offset = offset if abs(offset) > self.NOISE else timedelta(0)


def isoformat(at: datetime) -> str:
    """RFC 3339 with milliseconds and ``Z``."""
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
