"""What every queue of ours does for the worker that takes from it, driver by driver."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest

from tests.contract.queue_harness import (
    NOW,
    POLICY,
    SOON,
    VISIBILITY,
    Can,
    Harness,
    body,
    is_empty,
    needs,
    open_harness,
    put,
)
from tests.support.clock import START
from tests.support.queues import result_of, taken
from worker.errors import UNCOUNTED_CODES, UNRECEIVED, Fault, LeaseLost
from worker.queues.base import Attempt, Delivery, Queue

pytest_plugins = ("tests.support.redis_fixtures", "tests.support.sqs_fixtures")
__all__ = ["open_harness"]

Verb = Callable[[Queue, Delivery], Awaitable[Any]]
VERBS: dict[str, Verb] = {
    "extend": lambda queue, delivery: queue.extend(delivery),
    "ack": lambda queue, delivery: queue.ack(delivery, result_of(delivery.id)),
    "reject": lambda queue, delivery: queue.reject(delivery, result_of(delivery.id, "failed", code="invalid_job")),
    "nack": lambda queue, delivery: queue.nack(delivery, NOW, "internal", charged=True),
}
ENDS = {name: verb for name, verb in VERBS.items() if name != "extend"}


@needs(Can.COUNT)
async def test_first_delivery(harness: Harness) -> None:
    """A job is handed over as it was submitted, with its counts at their beginning."""
    queue = harness.driver()
    await queue.submit("a", body())
    harness.advance(SOON)
    delivery = await taken(queue)
    assert (delivery.id, delivery.queued_at) == ("a", START)
    assert harness.document(delivery.body) == harness.document(body())
    assert delivery.visibility == VISIBILITY
    assert (delivery.deliveries, delivery.attempts) == (1, ())
    assert delivery.redelivered is (False if Can.KEEP_CAUSES in harness.can else None)
    assert (delivery.last_delivery, delivery.over_limit) == (False, False)
    counted = (False, None) if Can.KEEP_CAUSES in harness.can else (None, POLICY.max_attempts)
    assert (delivery.last_attempt, delivery.attempts_most) == counted


async def test_empty_receive_ends(harness: Harness) -> None:
    """A receive that finds nothing comes back with nothing."""
    received = await harness.driver().receive()
    assert (received.delivery, received.orders) == (None, None)


async def test_submit_wakes_receiver(harness: Harness) -> None:
    """A pending receive gets a job that is submitted meanwhile through the same driver."""
    queue = harness.driver(wait=timedelta(seconds=60))
    assert await queue.check()
    receiving = asyncio.create_task(queue.receive(), name="receiving")
    await queue.submit("a", body())
    delivery = (await receiving).delivery
    assert delivery is not None
    assert delivery.id == "a"


async def test_nack_wakes_receiver(harness: Harness) -> None:
    """A pending receive gets a job that is given back meanwhile."""
    queue = harness.driver(wait=timedelta(seconds=60))
    await put(queue, "a")
    delivery = await taken(queue)
    receiving = asyncio.create_task(queue.receive(), name="receiving")
    await queue.nack(delivery, NOW, "draining", charged=False)
    assert (await receiving).delivery is not None


async def test_lease_hides(harness: Harness) -> None:
    """A leased job is handed to nobody else until its visibility is over."""
    queue, other = harness.driver(), harness.driver("w2")
    await put(queue, "a")
    await taken(queue)
    harness.advance(VISIBILITY - SOON)
    assert await is_empty(other)
    harness.advance(SOON)
    assert (await taken(other)).id == "a"


@needs(Can.KEEP_CAUSES)
async def test_vanished_holder(harness: Harness) -> None:
    """A lease that ran out is recorded at the next hand-over as an uncharged end without a code."""
    queue, other = harness.driver(), harness.driver("w2")
    await put(queue, "a")
    await taken(queue)
    harness.advance(VISIBILITY + SOON)
    delivery = await taken(other)
    assert delivery.attempts == (Attempt("w1", START + VISIBILITY, None, charged=False),)
    assert (delivery.deliveries, delivery.redelivered, delivery.last_attempt) == (2, True, False)


@needs(Can.FENCE)
async def test_fencing_tokens_grow(harness: Harness) -> None:
    """A later hand-over has a greater token, so that whoever sees two knows which of them counts."""
    queue, other = harness.driver(), harness.driver("w2")
    await put(queue, "a")
    stale = await taken(queue)
    harness.advance(VISIBILITY)
    assert (await taken(other)).receipt > stale.receipt


@needs(Can.COUNT)
async def test_extend_renews(harness: Harness) -> None:
    """Each extend keeps the job for another visibility."""
    queue = harness.driver()
    await put(queue, "a")
    delivery = await taken(queue)
    for _ in range(3):
        harness.advance(VISIBILITY - SOON)
        assert await queue.extend(delivery) is None
    assert await is_empty(queue)
    harness.advance(VISIBILITY)
    assert (await taken(queue)).deliveries == 2


@pytest.mark.parametrize("verb", VERBS)
async def test_stale_holder(harness: Harness, verb: str) -> None:
    """Who lost the job to another claim can do nothing to it, and is told so."""
    queue, other = harness.driver(), harness.driver("w2")
    await put(queue, "a")
    stale = await taken(queue)
    harness.advance(VISIBILITY)
    fresh = await taken(other)
    before = await harness.look(other, "a")
    with pytest.raises(LeaseLost):
        await VERBS[verb](queue, stale)
    assert await harness.look(other, "a") == before
    assert await other.extend(fresh) is None


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("end", ENDS)
async def test_holder_of_ended_delivery(harness: Harness, verb: str, end: str) -> None:
    """A delivery that was settled or given back is over: nothing more can be done with it."""
    queue = harness.driver()
    await put(queue, "a")
    delivery = await taken(queue)
    await ENDS[end](queue, delivery)
    before = await harness.look(queue, "a")
    with pytest.raises(LeaseLost):
        await VERBS[verb](queue, delivery)
    assert await harness.look(queue, "a") == before


@needs(Can.FENCE, Can.TELL_STATES)
@pytest.mark.parametrize("verb", VERBS)
async def test_late_but_unrivalled(harness: Harness, verb: str) -> None:
    """A lease that ran out is still its holder's as long as nobody else took the job."""
    queue, other = harness.driver(), harness.driver("w2")
    await put(queue, "a", "b")
    delivery = await taken(queue)
    harness.advance(VISIBILITY * 2)
    state = await queue.state("a")
    assert state is not None
    assert state.status == "waiting"
    await VERBS[verb](queue, delivery)
    left = {(await taken(other)).id} | {d.id for d in [(await other.receive()).delivery] if d is not None}
    assert left == ({"a", "b"} if verb == "nack" else {"b"})


@needs(Can.FENCE)
async def test_late_after_another_claim(harness: Harness) -> None:
    """A claim of another job meanwhile does not take an expired lease from its holder."""
    queue, other = harness.driver(), harness.driver("w2")
    await put(queue, "a")
    delivery = await taken(queue)
    harness.advance(VISIBILITY)
    await other.submit("b", body(), priority=1)
    assert (await taken(other)).id == "b"
    await queue.extend(delivery)
    assert await is_empty(other)


@needs(Can.KEEP_ORDER)
async def test_order(harness: Harness) -> None:
    """The highest priority first, among equals the one that was submitted first."""
    queue = harness.driver()
    for job_id, priority in (("low", -1), ("first", 0), ("second", 0), ("high", 5)):
        await queue.submit(job_id, body(), priority=priority)
        harness.advance(timedelta(seconds=1))
    assert [(await taken(queue)).id for _ in range(4)] == ["high", "first", "second", "low"]


@needs(Can.KEEP_ORDER)
async def test_released_job_keeps_its_place(harness: Harness) -> None:
    """A job that was given back is handed over before those that came after it."""
    queue = harness.driver()
    await put(queue, "a", "b")
    await queue.nack(await taken(queue), NOW, "draining", charged=False)
    assert (await taken(queue)).id == "a"


@needs(Can.KEEP_CAUSES, Can.TELL_STATES)
async def test_delay(harness: Harness) -> None:
    """A job given back with a delay waits that long."""
    queue = harness.driver()
    await put(queue, "a")
    await queue.nack(await taken(queue), SOON, "disk_full", charged=False)
    state = await queue.state("a")
    assert state is not None
    assert state.status == "delayed"
    assert await is_empty(queue)
    harness.advance(SOON)
    delivery = await taken(queue)
    assert delivery.attempts == (Attempt("w1", START, "disk_full", charged=False),)


@needs(Can.KEEP_CAUSES)
async def test_charged_attempts(harness: Harness) -> None:
    """Only charged ends bring the last attempt nearer, and each end is recorded."""
    queue = harness.driver()
    await put(queue, "a")
    await queue.nack(await taken(queue), NOW, "internal", charged=True)
    await queue.nack(await taken(queue), NOW, "engine_lost", charged=False)
    delivery = await taken(queue)
    assert (delivery.last_attempt, delivery.deliveries) == (False, 3)
    await queue.nack(delivery, NOW, "job_timeout", charged=True)
    delivery = await taken(queue)
    assert delivery.last_attempt is True
    assert [(one.code, one.charged) for one in delivery.attempts] == [
        ("internal", True),
        ("engine_lost", False),
        ("job_timeout", True),
    ]


@needs(Can.KEEP_CAUSES)
@pytest.mark.parametrize("code", sorted(UNCOUNTED_CODES - {UNRECEIVED}))
async def test_uncounted_ends(harness: Harness, code: str) -> None:
    """A hand-over that ended by a release does not count, but it was one: the job is a redelivery."""
    queue = harness.driver()
    await put(queue, "a")
    for _ in range(6):
        await queue.nack(await taken(queue), NOW, code, charged=False)
    delivery = await taken(queue)
    assert (delivery.deliveries, delivery.redelivered, len(delivery.attempts)) == (1, True, 6)
    assert (delivery.last_delivery, delivery.over_limit) == (False, False)


@needs(Can.COUNT)
async def test_delivery_limit(harness: Harness) -> None:
    """The last allowed hand-over says so, and every one after it that it is too many."""
    queue = harness.driver()
    await put(queue, "a")
    seen = []
    for _ in range(6):
        delivery = await taken(queue)
        seen.append((delivery.last_delivery, delivery.over_limit))
        harness.advance(VISIBILITY)
    assert seen == [(False, False)] * 3 + [(True, False)] + [(True, True)] * 2


@needs(Can.TELL_STATES)
async def test_ack(harness: Harness) -> None:
    """A job that succeeded is done, its result can be read, and it is never handed over again."""
    queue = harness.driver()
    await put(queue, "a")
    result = result_of("a")
    await queue.ack(await taken(queue), result)
    state = await queue.state("a")
    assert state is not None
    assert (state.status, state.code, state.deliveries, state.result) == ("done", None, 1, result)
    assert [one.code for one in state.attempts] == ["succeeded"]
    harness.advance(VISIBILITY * 2)
    assert await is_empty(queue)


@needs(Can.TELL_STATES)
async def test_ack_of_cancelled(harness: Harness) -> None:
    """A job whose holder cancelled it is done, under the code ``cancelled``."""
    queue = harness.driver()
    await put(queue, "a")
    await queue.ack(await taken(queue), result_of("a", "cancelled"))
    state = await queue.state("a")
    assert state is not None
    assert (state.status, state.code) == ("done", "cancelled")


@needs(Can.KEEP_CAUSES, Can.TELL_STATES)
@pytest.mark.parametrize(("fault", "charged"), [(Fault.JOB, True), (Fault.BUG, True), (Fault.NODE, False)])
async def test_reject(harness: Harness, fault: Fault, charged: bool) -> None:
    """A job that failed is a dead letter with its code and message, and is never handed over again."""
    queue = harness.driver()
    await put(queue, "a", "b")
    result = result_of("a", "failed", code="invalid_job", fault=fault)
    await queue.reject(await taken(queue), result)
    [dead] = await queue.jobs("dead")
    assert (dead.id, dead.code, dead.result) == ("a", "invalid_job", result)
    assert dead.attempts == (Attempt("w1", START, "invalid_job", charged=charged),)
    assert (await taken(queue)).id == "b"
    assert await is_empty(queue)


@needs(Can.HOLD_MANY)
async def test_concurrent_receivers(harness: Harness) -> None:
    """No job is handed to two receivers at once."""
    drivers = [harness.driver(f"w{number}") for number in range(4)]
    await put(drivers[0], *(f"j{number}" for number in range(60)))

    async def drain(queue: Queue) -> list[str]:
        found = []
        while (delivery := (await queue.receive()).delivery) is not None:
            found.append(delivery.id)
        return found

    found = [job_id for ids in await asyncio.gather(*map(drain, drivers)) for job_id in ids]
    assert sorted(found) == sorted({f"j{number}" for number in range(60)})


@needs(Can.UNDO, Can.TELL_STATES)
@pytest.mark.parametrize("seed", range(3))
async def test_cancelled_receives(harness: Harness, seed: int) -> None:
    """Receives cancelled at any instant leave nothing leased and nothing counted."""
    queue, rng = harness.driver(), random.Random(seed)
    await put(queue, "a", "b", "c")
    loop = asyncio.get_running_loop()
    handed = dict.fromkeys("abc", 0)
    for _ in range(200):
        receiving = asyncio.create_task(queue.receive(), name="receiving")
        loop.call_later(rng.uniform(0, 0.0015), receiving.cancel)
        [outcome] = await asyncio.gather(receiving, return_exceptions=True)
        if isinstance(outcome, BaseException):
            assert isinstance(outcome, asyncio.CancelledError)
        elif outcome.delivery is not None:
            handed[outcome.delivery.id] += 1
            await queue.nack(outcome.delivery, NOW, "disk_full", charged=False)
    assert {state.status for state in await queue.jobs()} == {"waiting"}
    final = [await taken(queue) for _ in range(3)]
    assert {one.id: one.deliveries for one in final} == {job_id: count + 1 for job_id, count in handed.items()}
    assert {one.id: len(one.attempts) for one in final} == handed


@needs(Can.UNDO)
async def test_cancelled_while_waiting(harness: Harness) -> None:
    """A receive that was cancelled while it waited takes nothing that comes later."""
    queue = harness.driver(wait=timedelta(seconds=60))
    receives = [asyncio.create_task(queue.receive(), name="receiving") for _ in range(20)]
    assert await queue.check()
    for receiving in receives:
        receiving.cancel()
    await asyncio.gather(*receives, return_exceptions=True)
    await put(queue, "a")
    delivery = await taken(queue)
    assert (delivery.deliveries, delivery.redelivered) == (1, False)


@needs(Can.COUNT)
async def test_check(harness: Harness) -> None:
    """The check says in words what it found."""
    queue = harness.driver()
    assert await queue.check()
    await put(queue, "a")
    assert "1" in await queue.check()


async def test_close_twice(harness: Harness) -> None:
    """Closing a driver again does nothing."""
    queue = harness.driver()
    await put(queue, "a")
    await queue.aclose()
    await queue.aclose()
