"""How a generation goes, as the servers tell it, and when it counts as stuck. No I/O.

Progress belongs to whatever runs, is wrong at times and may stay busy for ever after an exception on SD.Next:
it is a sign of life, never a proof.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from worker.engines.base import ProgressReport
from worker.errors import EngineStalled

SLOW_STEPS = 10
"""A generation counts as stalled only when it takes so many times its own time per step."""


@dataclass(frozen=True, slots=True)
class Pulse:
    """One reading. ``signature`` stays the same while nothing moves; ``interrupted``: the last job was cut short."""

    busy: bool
    interrupted: bool
    step: int
    steps: int
    fraction: float
    eta_s: float | None
    signature: tuple[Any, ...]

    @property
    def report(self) -> ProgressReport:
        return ProgressReport(
            fraction=self.fraction,
            step=self.step or None,
            steps=self.steps or None,
            eta_s=self.eta_s,
            sampling=self.step > 0,
        )


def _whole(value: Any) -> int:
    return int(value) if isinstance(value, (int, float)) and abs(value) < 1e9 else 0


def _fraction(value: Any) -> float:
    return min(max(float(value), 0.0), 1.0) if isinstance(value, (int, float)) and value == value else 0.0


def _eta(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and 0 < value < 1e6 else None


def from_status(body: Any) -> Pulse | None:
    """The current SD.Next's ``/status``; it says ``interrupted`` while such a job ends, and until the next one.

    Only ``task`` tells the two apart: the step at which a job was cut short stays in sight after it.
    """
    if not isinstance(body, dict) or not isinstance(body.get("status"), str):
        return None
    status = body["status"]
    return Pulse(
        busy=status == "running" or (bool(body.get("task")) and status in ("paused", "interrupted", "skipped")),
        interrupted=status in ("interrupted", "skipped"),
        step=_whole(body.get("step")),
        steps=_whole(body.get("steps")),
        fraction=_fraction(body.get("progress")),
        eta_s=_eta(body.get("eta")),
        signature=tuple(body.get(k) for k in ("id", "task", "timestamp", "job", "step", "current")),
    )


def from_progress(body: Any) -> Pulse | None:
    """``/progress`` of the others; ``job_count`` is -1 while queued work loads a model."""
    state = body.get("state") if isinstance(body, dict) else None
    if not isinstance(state, dict):
        return None
    return Pulse(
        busy=_whole(state.get("job_count")) != 0,
        interrupted=state.get("interrupted") is True or state.get("skipped") is True,
        step=_whole(state.get("sampling_step")),
        steps=_whole(state.get("sampling_steps")),
        fraction=_fraction(body.get("progress")),
        eta_s=_eta(body.get("eta_relative")),
        signature=tuple(state.get(k) for k in ("job", "job_count", "job_no", "job_timestamp", "sampling_step")),
    )


class Watchdog:
    """Tells a slow generation from a stuck one. Times are of the event loop.

    Until the first step ``load`` counts from the submit; from then on ``stall`` from the last sign of movement,
    or `SLOW_STEPS` times the slowest step seen, whichever is longer.
    """

    def __init__(self, now: float, load: timedelta, stall: timedelta) -> None:
        self._load, self._stall = load.total_seconds(), stall.total_seconds()
        self.submitted = now
        self.first_step: float | None = None
        self._moved = now
        self._step = 0
        self._step_s = 0.0
        self._signature: tuple[Any, ...] | None = None

    def see(self, pulse: Pulse | None, now: float) -> None:
        """Take a reading, None where there was none. Raises `EngineStalled`."""
        if pulse is not None and pulse.busy:
            self._note(pulse, now)
        if self.first_step is None:
            if now - self.submitted > self._load:
                raise EngineStalled(f"no first step within {self._load:g} s")
        elif now - self._moved > max(self._stall, SLOW_STEPS * self._step_s):
            raise EngineStalled(f"no progress for {now - self._moved:.0f} s, at step {self._step}")

    def _note(self, pulse: Pulse, now: float) -> None:
        if pulse.signature == self._signature:
            return
        if pulse.step > self._step > 0:
            self._step_s = max(self._step_s, (now - self._moved) / (pulse.step - self._step))
        if self.first_step is None and pulse.step > 0:
            self.first_step = now
        self._signature, self._step, self._moved = pulse.signature, pulse.step, now
