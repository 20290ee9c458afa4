from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from worker.engines.sdapi.progress import Pulse, from_progress, from_status
from worker.engines.watchdog import Watchdog
from worker.errors import EngineStalled

STATUS = {
    "status": "running", "task": "Inference", "timestamp": "20261121000007", "current": "", "id": "b7d", "job": 0,
    "jobs": 1, "total": 311, "step": 56, "steps": 200, "queued": 0, "elapsed": 2.06, "eta": 5.3, "progress": 0.28,
}  # fmt: skip
PROGRESS = {
    "progress": 0.28,
    "eta_relative": 5.28,
    "state": {
        "skipped": False, "interrupted": False, "job": "Inference", "job_count": 1, "job_timestamp": "2026",
        "job_no": 0, "sampling_step": 56, "sampling_steps": 200,
    },
    "current_image": None,
}  # fmt: skip


def state(**changes: Any) -> dict[str, Any]:
    return {**PROGRESS, "state": {**PROGRESS["state"], **changes}}  # type: ignore[dict-item]


@pytest.mark.parametrize("pulse", [from_status(STATUS), from_progress(PROGRESS)])
def test_a_running_job_is_read(pulse: Pulse | None) -> None:
    """Both ways of telling give the same report."""
    assert pulse is not None
    assert pulse.busy
    report = pulse.report
    assert (report.fraction, report.step, report.steps, report.sampling) == (0.28, 56, 200, True)
    assert report.eta_s == pytest.approx(5.3, abs=0.1)


def test_loading_counts_as_busy() -> None:
    """Automatic1111 says job_count -1 while it loads; no step has been made."""
    pulse = from_progress(state(job_count=-1, sampling_step=0, sampling_steps=0))
    assert pulse is not None
    assert pulse.busy
    assert not pulse.report.sampling


@pytest.mark.parametrize(
    ("word", "task", "busy", "interrupted"),
    [
        ("idle", "", False, False),
        ("paused", "Inference", True, False),
        ("interrupted", "", False, True),
        ("interrupted", "Inference", True, True),
        ("skipped", "", False, True),
    ],
)
def test_interrupted_is_told_from_running(word: str, task: str, busy: bool, interrupted: bool) -> None:
    """SD.Next says "interrupted" while such a job ends and after it, with its last step; only the first is busy."""
    pulse = from_status({**STATUS, "status": word, "task": task, "jobs": 1 if task else 0, "step": 2})
    assert pulse is not None
    assert (pulse.busy, pulse.interrupted) == (busy, interrupted)


@pytest.mark.parametrize("body", [None, [], "x", {}, {"state": 3}, {"status": 4}])
def test_other_answers_are_no_reading(body: Any) -> None:
    """What holds no state is ignored."""
    assert from_status(body) is None
    assert from_progress(body) is None


def test_wild_values_are_tamed() -> None:
    """Progress is known to be wrong at times: it stays within its bounds."""
    pulse = from_progress({**state(sampling_step="x", job_count=1e30), "progress": 7, "eta_relative": -3})
    assert pulse is not None
    assert (pulse.fraction, pulse.step, pulse.eta_s, pulse.busy) == (1.0, 0, None, False)
    assert from_progress({**state(), "progress": float("nan")}).fraction == 0.0  # type: ignore[union-attr]


def pulse_at(step: int) -> Pulse:
    found = from_progress(state(sampling_step=step))
    assert found is not None
    return found


def watchdog(load: float = 100, stall: float = 10) -> Watchdog:
    return Watchdog(0.0, timedelta(seconds=load), timedelta(seconds=stall))


def test_no_first_step_in_time_is_a_stall() -> None:
    """Loading has its own, longer limit."""
    dog = watchdog()
    dog.see(pulse_at(0), 99)
    with pytest.raises(EngineStalled, match="first step"):
        dog.see(None, 101)


def test_no_movement_is_a_stall() -> None:
    """Once sampling began, the same reading for too long is a stall, also when there is no reading at all."""
    dog = watchdog()
    dog.see(pulse_at(1), 50)
    assert dog.first_step == 50
    dog.see(pulse_at(1), 60)
    with pytest.raises(EngineStalled, match="at step 1"):
        dog.see(None, 60.5)


def test_slow_steps_stretch_the_limit() -> None:
    """A GPU that takes 30 s a step is slow, not stuck."""
    dog = watchdog(stall=60)
    dog.see(pulse_at(2), 8)
    dog.see(pulse_at(4), 68)
    dog.see(pulse_at(4), 68 + 299)
    with pytest.raises(EngineStalled):
        dog.see(pulse_at(4), 68 + 301)
