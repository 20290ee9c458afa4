"""When a generation counts as stuck, scaled to what this node has shown for the model and size. No I/O.

Progress is a sign of life, never a proof: it may be wrong, or belong to somebody else's work.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import Any, Protocol

from worker.errors import EngineStalled

SLOW = 10
"""A generation counts as stalled only when it takes so many times what a step, or the decoding, took before."""

REMEMBERED = 256


class Stage(StrEnum):
    """What a generation is at: before its first step, between its steps, after the last."""

    LOADING = "loading"
    SAMPLING = "sampling"
    DECODING = "decoding"


class Sign(Protocol):
    """One reading of the progress; ``signature`` stays the same while nothing moves."""

    @property
    def busy(self) -> bool: ...
    @property
    def step(self) -> int: ...
    @property
    def steps(self) -> int: ...
    @property
    def signature(self) -> tuple[Any, ...]: ...


@dataclass(frozen=True, slots=True)
class Kind:
    """Generations that take alike: of one model, and of so many pixels in all images together."""

    model: str | None
    pixels: int


@dataclass(slots=True)
class Shown:
    """Seconds that the slowest step and the decoding of a kind of generation took on this node."""

    step_s: float = 0.0
    decode_s: float = 0.0


class Experience:
    """What this node has shown; of the kinds used last, so many as are worth remembering."""

    def __init__(self) -> None:
        self._kinds: OrderedDict[Kind, Shown] = OrderedDict()

    def of(self, kind: Kind) -> Shown:
        """The record of a kind, to be read and written."""
        shown = self._kinds.setdefault(kind, Shown())
        self._kinds.move_to_end(kind)
        while len(self._kinds) > REMEMBERED:
            self._kinds.popitem(last=False)
        return shown


class Watchdog:
    """Tells a slow generation from a stuck one. Times are of the event loop.

    Until the first step ``load`` counts from the submit; from then on ``stall`` from the last sign of movement,
    or `SLOW` times the slowest that a step (after the last one: the decoding) of this kind took, whichever is
    longer. A job that samples several times is back at `Stage.SAMPLING` when its steps begin anew.
    """

    def __init__(self, now: float, load: timedelta, stall: timedelta, shown: Shown | None = None) -> None:
        self._load, self._stall = load.total_seconds(), stall.total_seconds()
        self._shown = shown if shown is not None else Shown()
        self.submitted = now
        self.first_step: float | None = None
        self.stage = Stage.LOADING
        self._moved = now
        self._step = 0
        self._signature: tuple[Any, ...] | None = None

    def see(self, sign: Sign | None, now: float) -> None:
        """Take a reading, None where there was none. Raises `EngineStalled`."""
        if sign is not None and sign.busy:
            self._note(sign, now)
        still = now - self._moved
        if self.stage is Stage.LOADING:
            if now - self.submitted > self._load:
                raise EngineStalled(f"no first step within {self._load:g} s")
        elif still > self.patience_s:
            at = f"at step {self._step}" if self.stage is Stage.SAMPLING else "after the last step"
            raise EngineStalled(f"no progress for {still:.0f} s, {at}")

    @property
    def patience_s(self) -> float:
        """Seconds without movement that are borne in the present stage."""
        if self.stage is Stage.LOADING:
            return self._load
        known = self._shown.step_s if self.stage is Stage.SAMPLING else max(self._shown.decode_s, self._shown.step_s)
        return max(self._stall, SLOW * known)

    def ended(self, now: float) -> None:
        """The generation succeeded: remember how long its decoding took."""
        if self.stage is Stage.DECODING:
            self._shown.decode_s = max(self._shown.decode_s, now - self._moved)

    def _note(self, sign: Sign, now: float) -> None:
        if sign.signature == self._signature:
            return
        if sign.step > self._step > 0:
            self._shown.step_s = max(self._shown.step_s, (now - self._moved) / (sign.step - self._step))
        if self.first_step is None and sign.step > 0:
            self.first_step = now
        if self.first_step is not None:
            self.stage = Stage.DECODING if 0 < sign.steps <= sign.step else Stage.SAMPLING
        self._signature, self._step, self._moved = sign.signature, sign.step, now
