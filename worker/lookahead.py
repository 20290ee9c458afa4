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


@dataclass(frozen=True, slots=True)
class Held:
    """The deliveries held that still need the engine: ``ready`` to generate or getting so, ``running`` if one is.

    ``parked`` are those that wait for their models, however many of them stand beside the window.
    ``running_left_s`` is what the running generation takes yet, None when that is unknown.
    """

    ready: int = 0
    parked: int = 0
    running: bool = False
    running_left_s: float | None = None

    @property
    def engaged(self) -> int:
        """Those that keep the engine busy, now or soon."""
        return self.ready + self.running


def when(held: Held, *, window: int, places: int, pace: Pace) -> float:
    """Seconds from now until the next delivery should be received; infinity: not before something changes.

    At most ``window`` deliveries are generating or ready to. As many as ``places`` of the parked ones stand beside it;
    one that is parked with all places taken keeps its slot in the window, and never counts as work for the engine.
    """
    if held.engaged + max(0, held.parked - places) >= window:
        return math.inf
    if held.engaged == 0:
        return 0.0
    if pace.generate_s is None or pace.prepare_s is None:
        return 0.0 if held.engaged < 2 else math.inf
    busy_s = (held.running_left_s or 0.0) + held.ready * pace.generate_s
    wait_s = busy_s - 1.5 * pace.prepare_s - SLACK_S
    return wait_s if wait_s >= GRAIN_S else 0.0
