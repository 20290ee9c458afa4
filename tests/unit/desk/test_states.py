"""What a caller is told of a job."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from tests.support.queues import result_of
from worker.desk import states
from worker.desk.elsewhere import Elsewhere
from worker.desk.states import State
from worker.errors import Fault
from worker.queues.base import JobState
from worker.result import ErrorResult, ImageResult, Result


def known(status: str, code: str | None = None, result: Result | None = None) -> JobState:
    return JobState("a", status, 1, (), code, result)


@pytest.mark.parametrize(
    ("found", "status"),
    [
        (known("waiting"), "waiting"),
        (known("delayed"), "waiting"),
        (known("leased"), "running"),
        (known("leased", result=result_of("a")), "running"),
        (known("done"), "succeeded"),
        (known("done", "cancelled"), "cancelled"),
        (known("dead", "internal"), "failed"),
        (known("done", result=result_of("a", "cancelled")), "cancelled"),
        (known("dead", "webhook_undelivered", result_of("a")), "succeeded"),
        (known("dead", "invalid_job", result_of("a", "failed", code="invalid_job")), "failed"),
    ],
)
def test_a_queues_words_become_a_state(found: JobState, status: str) -> None:
    """A result is believed where there is one; a dead letter for its webhook alone is a success."""
    state = states.queued(found)
    assert (state.id, state.status, state.is_over) == ("a", status, status not in ("waiting", "running"))


@pytest.mark.parametrize(
    ("retryable", "code", "minutes", "status"),
    [
        (False, "invalid_job", 0, "failed"),
        (True, "output_empty", 1, "waiting"),
        (True, "output_empty", 16, "failed"),
        (True, "draining", 0, "failed"),
    ],
)
def test_a_stored_failure_is_the_end_unless_it_may_be_tried_again(
    retryable: bool, code: str, minutes: int, status: str
) -> None:
    """For a while: then whoever tried it is gone. What a drain dropped was told to its owner."""
    error = ErrorResult(code=code, message="m", retryable=retryable, fault=Fault.NODE)
    result = result_of("a", "failed").model_copy(update={"error": error})
    state = states.stored("a", result, result.finished_at + timedelta(minutes=minutes))
    assert (state.status, state.result is None) == (status, status == "waiting")


def test_a_state_without_images_still_names_them() -> None:
    """Events hold no base64, and only what holds much is written beside the loop."""
    image = ImageResult(index=0, base64="x" * 1_000_001, format="png", width=1, height=1, bytes=1, sha256="")
    whole = states.ended(result_of("a").model_copy(update={"images": (image,)}))
    bare = whole.without_images()
    assert whole.is_large
    assert not bare.is_large
    assert bare.result is not None
    assert bare.result.images[0].index == 0
    waiting = State(id="a", status="waiting")
    assert waiting.without_images() is waiting
    assert waiting.to_json() == b'{"id":"a","status":"waiting"}'


@pytest.mark.parametrize(("change", "same"), [({"eta_s": 1.0}, True), ({"progress": 0.5}, False), ({}, True)])
def test_a_running_estimate_is_no_news(change: dict[str, Any], same: bool) -> None:
    """Else a listener would hear of the time that goes by."""
    state = State(id="a", status="running", eta_s=3.0, progress=0.25)
    assert state.says_the_same_as(state.model_copy(update=change)) is same


async def test_without_queue_and_stores_nothing_is_elsewhere() -> None:
    """Nothing is known, nothing can be cancelled, and submitting is a mistake of ours."""
    nowhere = Elsewhere()
    assert (nowhere.takes_jobs, await nowhere.queued("a"), await nowhere.stored("a")) == (False, None, None)
    assert not await nowhere.cancel("a")
    with pytest.raises(ValueError, match="no queue"):
        await nowhere.submit("a", b"", priority=0)
