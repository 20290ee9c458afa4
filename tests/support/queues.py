"""What tests of queues share: deliveries taken in one word, and results to settle them with."""

from __future__ import annotations

from typing import Literal

from tests.support.clock import START
from worker.errors import Fault
from worker.queues.base import Delivery, Queue
from worker.result import ErrorResult, Result, WorkerResult


async def taken(queue: Queue, tries: int = 5) -> Delivery:
    """The next delivery; there has to be one, though a busy machine may take a few bounded waits to have it there."""
    for _ in range(tries):
        delivery = (await queue.receive()).delivery
        if delivery is not None:
            return delivery
    raise AssertionError("the queue had nothing to hand over")


def result_of(
    job_id: str,
    status: Literal["succeeded", "failed", "cancelled"] = "succeeded",
    *,
    code: str | None = None,
    fault: Fault = Fault.JOB,
) -> Result:
    return Result(
        id=job_id,
        status=status,
        error=None if code is None else ErrorResult(code=code, message="why", retryable=False, fault=fault),
        worker=WorkerResult(id="w1", version="test"),
        created_at=START,
        finished_at=START,
    )
