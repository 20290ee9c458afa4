"""How a generation goes, as the servers tell it. No I/O.

Progress belongs to whatever runs, is wrong at times and may stay busy for ever after an exception on SD.Next:
it is a sign of life, never a proof.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from worker.engines.base import ProgressReport


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


def progress_of(status: Any) -> dict[str, Any] | None:
    """What ``/progress`` would say, from the current SD.Next's ``/status``: the same numbers, without a preview."""
    if not isinstance(status, dict):
        return None
    word = status.get("status")
    return {
        "id": status.get("id"),
        "progress": _fraction(status.get("progress")),
        "eta_relative": _eta(status.get("eta")) or 0.0,
        "state": {
            "skipped": word == "skipped",
            "interrupted": word == "interrupted",
            "job": status.get("task"),
            "job_count": _whole(status.get("jobs")),
            "job_timestamp": status.get("timestamp") or "0",
            "job_no": _whole(status.get("job")),
            "sampling_step": _whole(status.get("step")),
            "sampling_steps": _whole(status.get("steps")),
        },
        "current_image": None,
        "textinfo": None,
    }


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
