"""When to take the next delivery, as a pure decision: as late as keeps the engine busy."""

from __future__ import annotations

import math
from dataclasses import dataclass

SLACK_S = 0.25
"""Held in reserve for what no average tells."""

GRAIN_S = 0.001
"""A shorter wait is none: what is left of one by rounding may never end."""


@dataclass(slots=True)
class Pace:
    """Running averages of this node, in seconds; None until something was measured."""

    prepare_s: float | None = None
    generate_s: float | None = None
    settle_s: float | None = None

    def observe(
        self, *, prepare: float | None = None, generate: float | None = None, settle: float | None = None
    ) -> None:
        self.prepare_s = _average(self.prepare_s, prepare)
        self.generate_s = _average(self.generate_s, generate)
        self.settle_s = _average(self.settle_s, settle)


def _average(old: float | None, new: float | None) -> float | None:
    if new is None:
        return old
    return new if old is None else old + 0.3 * (new - old)


def when(*, held: int, running_left_s: float | None, waiting: int, window: int, pace: Pace) -> float:
    """Seconds from now until the next delivery should be received; infinity: not before something changes.

    ``held`` counts deliveries that still need the engine, ``waiting`` those of them that are not running, and
    ``running_left_s`` is what the running generation takes yet, None when that is unknown or none runs.
    """
    if held == 0:
        return 0.0
    if held >= window:
        return math.inf
    if pace.generate_s is None or pace.prepare_s is None:
        return 0.0 if held < 2 else math.inf
    busy_s = (running_left_s or 0.0) + waiting * pace.generate_s
    wait_s = busy_s - 1.5 * pace.prepare_s - SLACK_S
    return wait_s if wait_s >= GRAIN_S else 0.0
