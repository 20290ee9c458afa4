"""What tests of queues share: deliveries taken in one word, and results to settle them with."""

from __future__ import annotations

from typing import Literal

from tests.support.clock import START
from worker.errors import Fault
from worker.queues.base import Delivery, Queue
from worker.result import ErrorResult, Result, WorkerResult


async def taken(queue: Queue) -> Delivery:
    """The delivery that one receive brings; there has to be one."""
    delivery = (await queue.receive()).delivery
    assert delivery is not None, "the queue had nothing to hand over"
    return delivery


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
