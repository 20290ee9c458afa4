"""The right to act for a delivery: proven by a renewal, kept by more, gone when the queue says so."""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress
from datetime import timedelta

import pytest
from structlog.testing import capture_logs

from tests.support.virtual import elapse, virtual
from worker import failpoints
from worker.errors import JobCancelled, LeaseLost, QueueUnavailable, WorkerError
from worker.failpoints import Effect
from worker.lease import ANSWERS, Lease
from worker.live import Live, LiveJob
from worker.node import Orders
from worker.queues.base import Delivery
from worker.tasks import cancel_all, run_guarded


class Renewals:
    """A queue of which only `extend` is asked; ``answers`` are given in turn, then the last for ever."""

    capacity: int | None = None
    can_delay: bool = True

    def __init__(self, *answers: WorkerError | Orders | None, seconds: float = 0.0) -> None:
        self.answers = list(answers)
        self.seconds = seconds
        self.at: list[float] = []

    async def extend(self, delivery: Delivery) -> Orders | None:
        self.at.append(asyncio.get_running_loop().time())
        await elapse(self.seconds)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, WorkerError):
            raise answer
        return answer


def held(live: Live) -> LiveJob:
    with live.holding("a") as job:
        return job


def lease_of(queue: Renewals, orders: list[Orders] | None = None, job: LiveJob | None = None) -> Lease:
    delivery = Delivery("a", b"", timedelta(seconds=40))
    job = job or held(Live())
    heard = orders if orders is not None else []
    return Lease(queue, delivery, job, rng=random.Random(1), on_orders=heard.append)  # type: ignore[arg-type]


@virtual
async def test_nothing_is_allowed_before_the_first_renewal() -> None:
    """It is sent at once; what the delivery says of itself proves nothing."""
    queue = Renewals(None, seconds=3)
    lease = lease_of(queue)
    keeping = asyncio.create_task(lease.keep(), name="keep")
    await lease.before_effect()
    assert asyncio.get_running_loop().time() == 3
    assert queue.at == [0]
    await cancel_all({keeping})


@virtual
async def test_a_lease_is_renewed_at_a_quarter_of_its_visibility() -> None:
    """For as long as the job lasts."""
    queue = Renewals(None)
    await run_guarded(elapse(35), lease_of(queue).keep())
    assert queue.at == [0, 10, 20, 30]


@virtual
async def test_effects_wait_for_a_renewal_once_the_lease_is_doubtful() -> None:
    """It is counted from when the last good renewal was sent, less a margin; work goes on meanwhile."""
    queue = Renewals(None, *[QueueUnavailable()] * 40, None)
    lease = lease_of(queue)
    keeping = asyncio.create_task(lease.keep(), name="keep")
    await elapse(35)
    await lease.before_effect()
    assert asyncio.get_running_loop().time() == 35
    await elapse(1.5)
    await lease.before_effect()
    back_at = asyncio.get_running_loop().time()
    assert len(queue.at) == 42
    assert back_at == queue.at[-1]
    await cancel_all({keeping})


@virtual
async def test_a_doubtful_lease_is_renewed_at_once_when_an_effect_asks() -> None:
    """A process that slept past its lease does not wait for the next quarter."""
    queue = Renewals(None)
    lease = lease_of(queue)
    keeping = asyncio.create_task(lease.keep(), name="keep")
    await elapse(1)
    lease._valid_until = 0.5
    await lease.before_effect()
    assert queue.at == [0, 1]
    await cancel_all({keeping})


@virtual
async def test_a_lease_is_lost_only_when_the_queue_says_so() -> None:
    """An unavailable queue is no such word."""
    with pytest.raises(LeaseLost):
        await run_guarded(elapse(1000), lease_of(Renewals(None, QueueUnavailable(), LeaseLost())).keep())
    assert 10 < asyncio.get_running_loop().time() < 15


@virtual
async def test_an_outage_is_told_once_and_so_is_its_end() -> None:
    """However often renewing is tried meanwhile, each outage has two lines in the log."""
    lease = lease_of(Renewals(None, *[QueueUnavailable()] * 40, None, QueueUnavailable(), None))
    with capture_logs() as lines:
        await run_guarded(elapse(100), lease.keep())
    told = [(one["event"], one.get("tries")) for one in lines if one["log_level"] != "debug"]
    began = ("lease_not_renewed", None)
    assert told == [began, ("lease_renewed", 41), began, ("lease_renewed", 2)]


@virtual
async def test_a_cancellation_at_the_queue_reaches_the_job_and_keeps_the_lease() -> None:
    """The cancelled job still has to be answered for."""
    job = held(Live())
    lease = lease_of(Renewals(JobCancelled()), job=job)
    keeping = asyncio.create_task(lease.keep(), name="keep")
    await lease.before_effect()
    with pytest.raises(JobCancelled):
        await job.cancelled()
    await cancel_all({keeping})


@virtual
async def test_orders_that_come_with_a_renewal_are_passed_on() -> None:
    """A busy node does not poll."""
    orders: list[Orders] = []
    await run_guarded(elapse(15), lease_of(Renewals(Orders(cancel=("b",)), None), orders).keep())
    assert orders == [Orders(cancel=("b",))]


@virtual
async def test_an_effect_has_a_failpoint_on_each_side() -> None:
    """Behind the lease, and not after an effect that failed."""
    lease = lease_of(Renewals(None))
    seen: list[str] = []
    keeping = asyncio.create_task(lease.keep(), name="keep")
    failpoints.install(seen.append)
    try:
        async with lease.effect(Effect.ACK):
            assert seen == ["before_ack"]
        with pytest.raises(KeyError):
            async with lease.effect(Effect.NACK):
                raise KeyError
    finally:
        failpoints.install(None)
        await cancel_all({keeping})
    assert seen == ["before_ack", "after_ack", "before_nack"]


@virtual
@pytest.mark.parametrize("effect", ANSWERS)
async def test_a_renewal_that_an_answer_overtook(effect: Effect) -> None:
    """The queue knows the delivery no more because we ended it: it was not lost."""
    lease = lease_of(Renewals(None, LeaseLost()))

    async def settled() -> str:
        await lease.before_effect()
        await elapse(5)
        async with lease.effect(effect):
            await elapse(10)
        await elapse(1)
        return "settled"

    assert await run_guarded(settled(), lease.keep()) == "settled"


@virtual
@pytest.mark.parametrize("end", [QueueUnavailable(), LeaseLost()])
async def test_a_renewal_that_was_refused_while_an_answer_failed(end: WorkerError) -> None:
    """What did not come through has ended nothing: the delivery is another's."""
    lease = lease_of(Renewals(None, LeaseLost()))

    async def unsettled() -> None:
        await lease.before_effect()
        await elapse(5)
        with suppress(QueueUnavailable):
            async with lease.effect(Effect.ACK):
                await elapse(10)
                raise end
        await elapse(100)

    with pytest.raises(LeaseLost):
        await run_guarded(unsettled(), lease.keep())
    assert asyncio.get_running_loop().time() == 15
