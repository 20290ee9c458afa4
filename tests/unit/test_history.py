"""What became of a job before, where only the store can tell."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from tests.support.clock import START
from tests.support.fakes import FakeStorage, FakeStores
from tests.support.office import SharedStorage
from tests.support.queues import result_of
from worker.dependencies import Dependencies
from worker.errors import Fault
from worker.history import informed
from worker.job import Job, Limits, document_of, parse
from worker.patience import Patience
from worker.queues.base import Attempt, Delivery
from worker.result import AttemptResult, Result

BODY = b'{"id": "a", "params": {"prompt": "a cat"}}'
JOB = parse(document_of(BODY, max_body=1000), fallback_id="a", limits=Limits())
SECOND = timedelta(seconds=1)


def delivery(deliveries: int = 2, *, most: int | None = 3) -> Delivery:
    return Delivery(
        id="message-1",
        body=BODY,
        visibility=timedelta(minutes=2),
        queued_at=START,
        deliveries=deliveries,
        redelivered=deliveries > 1,
        attempts_most=most,
    )


def failure(code: str = "output_mismatch", fault: Fault = Fault.JOB, *earlier: AttemptResult) -> Result:
    failed = result_of("a", "failed", code=code, fault=fault)
    return failed.model_copy(update={"attempts": earlier, "job_sha256": JOB.sha256})


async def told(asked: Delivery, storage: FakeStorage, job: Job = JOB) -> Delivery:
    return await informed(asked, job, storage, Patience(FakeStores(storage), Dependencies()))


async def stored(result: Result | None) -> SharedStorage:
    storage = SharedStorage()
    if result is not None:
        await storage.put_failure(JOB, result, 1)
    return storage


async def test_a_queue_that_keeps_causes_is_believed() -> None:
    """Nothing is looked up for it."""
    storage = await stored(failure())
    asked = delivery(most=None)
    assert await told(asked, storage) is asked


async def test_the_latest_failure_tells_of_all_before_it() -> None:
    """Its own attempt comes last; only charged ones bring the end nearer."""
    earlier = (
        AttemptResult(worker="w2", ended=START, code="engine_lost"),
        AttemptResult(worker="w3", ended=START, code="job_timeout", charged=True),
    )
    found = await told(delivery(4), await stored(failure("output_mismatch", Fault.JOB, *earlier)))
    assert found.attempts == (
        Attempt("w2", START, "engine_lost", charged=False),
        Attempt("w3", START, "job_timeout", charged=True),
        Attempt("w1", START, "output_mismatch", charged=True),
    )
    assert found.last_attempt is True
    assert (await told(delivery(4, most=4), await stored(failure("x", Fault.JOB, *earlier)))).last_attempt is False


async def test_a_nodes_fault_is_not_the_jobs() -> None:
    """It is an attempt, and charged to nobody."""
    found = await told(delivery(), await stored(failure("engine_lost", Fault.NODE)))
    assert found.attempts == (Attempt("w1", START, "engine_lost", charged=False),)
    assert found.last_attempt is False


@pytest.mark.parametrize("most", [1, 2])
async def test_a_first_delivery_has_no_history(most: int) -> None:
    """Whatever stands under its id is of an earlier run."""
    found = await told(delivery(1, most=most), await stored(failure()))
    assert (found.attempts, found.last_attempt) == ((), most == 1)


async def test_failures_of_others_do_not_count() -> None:
    """Neither another document's under the same id nor those from before the job was put there anew."""
    other = failure().model_copy(update={"job_sha256": "0" * 64})
    assert (await told(delivery(), await stored(other))).attempts == ()
    anew = replace(delivery(), queued_at=START + SECOND)
    assert (await told(anew, await stored(failure()))).attempts == ()
    assert len((await told(replace(anew, queued_at=None), await stored(failure()))).attempts) == 1
    assert (await told(delivery(), await stored(None))).attempts == ()


async def test_without_documents_every_delivery_counts() -> None:
    """Where the store finds nothing again, a lost node is charged too: nobody can tell it from the job's doing."""
    found = [(await told(delivery(count), FakeStorage())).last_attempt for count in (1, 2, 3, 4)]
    assert found == [False, False, True, True]
