from __future__ import annotations

from typing import Any

import pytest

from worker.engines.sdapi.progress import Pulse, from_progress, from_status

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
