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
        run="run-1",
    )


def failure(
    code: str = "output_mismatch",
    fault: Fault = Fault.JOB,
    *earlier: AttemptResult,
    worker: str = "w1",
    is_end: bool = False,
    **more: object,
) -> Result:
    failed = result_of("a", "failed", code=code, fault=fault)
    assert failed.error is not None
    said = {
        "attempts": earlier,
        "job_sha256": JOB.sha256,
        "run": "run-1",
        "worker": failed.worker.model_copy(update={"id": worker}),
        "error": failed.error.model_copy(update={"retryable": not is_end}),
    }
    return failed.model_copy(update=said | more)


async def told(asked: Delivery, storage: FakeStorage, job: Job = JOB) -> Delivery:
    return (await informed(asked, job, storage, Patience(FakeStores(storage), Dependencies())))[0]


async def ended(asked: Delivery, *failures: Result) -> Result | None:
    storage = await stored(*failures)
    return (await informed(asked, JOB, storage, Patience(FakeStores(storage), Dependencies())))[1]


async def stored(*results: Result) -> SharedStorage:
    storage = SharedStorage()
    for number, result in enumerate(results, 1):
        await storage.put_failure(JOB, result, number)
    return storage


async def test_a_queue_that_keeps_causes_is_believed() -> None:
    """Nothing is looked up for it."""
    storage = await stored(failure(is_end=True))
    asked = delivery(most=None)
    assert await informed(asked, JOB, storage, Patience(FakeStores(storage), Dependencies())) == (asked, None)


async def test_each_failure_tells_of_all_before_it() -> None:
    """Its own attempt comes last; only charged ones bring the end nearer."""
    earlier = (
        AttemptResult(worker="w2", ended=START - 2 * SECOND, code="engine_lost"),
        AttemptResult(worker="w3", ended=START - SECOND, code="job_timeout", charged=True),
    )
    found = await told(delivery(4), await stored(failure("output_mismatch", Fault.JOB, *earlier)))
    assert found.attempts == (
        Attempt("w2", START - 2 * SECOND, "engine_lost", charged=False),
        Attempt("w3", START - SECOND, "job_timeout", charged=True),
        Attempt("w1", START, "output_mismatch", charged=True),
    )
    assert found.last_attempt is True
    assert (await told(delivery(4, most=4), await stored(failure("x", Fault.JOB, *earlier)))).last_attempt is False


async def test_two_workers_that_failed_at_once_both_count() -> None:
    """Neither knew of the other; what both tell of is told once."""
    first = AttemptResult(worker="w3", ended=START - SECOND, code="job_timeout", charged=True)
    both = [failure("output_empty", Fault.JOB, first, worker=name) for name in ("w1", "w2")]
    found = await told(delivery(4), await stored(*both))
    assert [(one.worker, one.code) for one in found.attempts] == [
        ("w3", "job_timeout"),
        ("w1", "output_empty"),
        ("w2", "output_empty"),
    ]


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
    """Neither another document's under the same id nor those of another run, whatever any clock says."""
    for other in (failure(job_sha256="0" * 64), failure(run="run-0", is_end=True), failure(run=None)):
        asked = replace(delivery(), queued_at=START - SECOND)
        assert (await told(asked, await stored(other))).attempts == ()
        assert await ended(asked, *[other] * 3) is None
    assert (await told(delivery(), await stored())).attempts == ()


async def test_a_run_that_begins_counts_from_the_beginning() -> None:
    """Documents of the run before stand under higher numbers than those of this one."""
    before = [failure(run="run-0")] * 2
    found = await told(delivery(3), await stored(failure("output_empty"), *before))
    assert [one.code for one in found.attempts] == ["output_empty"]
    assert found.last_attempt is False


async def test_an_end_that_was_not_told_stands() -> None:
    """The job is over as its last worker found, whom the queue has not heard."""
    once = await ended(delivery(), failure("generation_rejected", is_end=True))
    assert once is not None
    assert once.error is not None
    assert (once.error.code, once.error.retryable) == ("generation_rejected", False)
    assert await ended(delivery(), failure("job_timeout")) is None


async def test_attempts_that_are_used_up_are_an_end() -> None:
    """Also where a worker with a higher limit would have had it tried again; a node's fault is none."""
    charged = [failure(code, finished_at=START + number * SECOND) for number, code in enumerate(("x", "y", "z"))]
    lost = failure("engine_lost", Fault.NODE, finished_at=START + 9 * SECOND)
    assert await ended(delivery(4), *charged[:2], lost) is None
    over = await ended(delivery(5), *charged, lost)
    assert over is not None
    assert over.error is not None
    assert (over.error.code, over.error.retryable) == ("z", False)


async def test_without_documents_every_delivery_counts() -> None:
    """Where the store finds nothing again, a lost node is charged too: nobody can tell it from the job's doing."""
    found = [(await told(delivery(count), FakeStorage())).last_attempt for count in (1, 2, 3, 4)]
    assert found == [False, False, True, True]
