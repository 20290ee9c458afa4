"""What a node measured of itself, as moving averages. No I/O, and no clock: times are given, in seconds."""

from __future__ import annotations

import math
from dataclasses import dataclass

from worker.wire import Rates

WEIGHT = 0.3
"""Of a new measurement in its average: the last ten count for nearly everything."""

LEAST_BYTES = 1_000_000
"""Of smaller files the time tells how long asking takes, and nothing of bandwidth."""

GAP_S = 5.0
"""A transfer in which nothing came for longer stood still for others, or for its source: that is not its speed."""


class Moving:
    """One transfer's bytes and the time in which they came.

    What was there before the first reading (a resumed transfer) counts for nothing, and so does what began anew.
    """

    def __init__(self) -> None:
        self.bytes = 0
        self.seconds = 0.0
        self._last: tuple[int, float] | None = None

    def saw(self, done: int, now: float) -> None:
        """So many bytes are there now."""
        if self._last is not None:
            before, at = self._last
            self.bytes += max(0, done - before)
            self.seconds += min(max(0.0, now - at), GAP_S)
        self._last = (done, now)


@dataclass(slots=True)
class Speeds:
    """Moving averages of one node, as `worker.wire.Rates` means them; None until something was measured."""

    disk: float | None = None
    network: float | None = None
    load: float | None = None
    step: float | None = None

    def downloaded(self, transfer: Moving) -> None:
        """A transfer has brought its file."""
        self.network = averaged(self.network, speed(transfer.bytes, transfer.seconds))

    def read(self, size: int, seconds: float) -> None:
        """A file of this size was read from disk in this time."""
        self.disk = averaged(self.disk, speed(size, seconds))

    def loaded(self, seconds: float) -> None:
        """The server took so long from a job's submission to its first step, and had to load another checkpoint."""
        self.load = averaged(self.load, seconds)

    def generated(self, seconds: float, steps: int | None, pictures: int) -> None:
        """A verified generation took so long from its first step on; a step is that of one picture."""
        if steps:
            self.step = averaged(self.step, seconds / (steps * max(1, pictures)))

    def rates(self) -> Rates:
        """As they are reported; four digits are more than they are worth."""
        return Rates(
            disk=_rounded(self.disk),
            network=_rounded(self.network),
            load=_rounded(self.load),
            step=_rounded(self.step),
        )


def speed(size: int, seconds: float) -> float | None:
    """Bytes a second; None where too little came, or in no time, to tell."""
    return size / seconds if size >= LEAST_BYTES and seconds > 0 else None


def averaged(old: float | None, new: float | None) -> float | None:
    """The average with a new measurement; what is none, or no finite positive number, changes nothing."""
    if new is None or not math.isfinite(new) or new <= 0:
        return old
    return new if old is None else old + WEIGHT * (new - old)


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")
