"""The redis driver on a server that lost what it was told."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

from tests.support.clock import FakeClock
from tests.support.queues import result_of, taken
from tests.support.redis import RedisServer
from worker.errors import LeaseLost
from worker.queues.redis import RedisQueue

pytest_plugins = ("tests.support.redis_fixtures",)

BRIEF = timedelta(milliseconds=20)
HOUR = timedelta(hours=1)
NOW = timedelta(0)


@pytest.fixture(name="queue")
async def open_queue(own_redis: RedisServer) -> AsyncIterator[RedisQueue]:
    queue = RedisQueue(own_redis.place(), worker="w1", wait=BRIEF)
    yield queue
    await queue.aclose()


async def test_stream_that_was_deleted(queue: RedisQueue, own_redis: RedisServer) -> None:
    """What is in hand is settled, what waited is a dead letter that says so, and what comes next is done."""
    for job_id in ("held", "waiting"):
        await queue.submit(job_id, b"{}")
    held = await taken(queue)
    own_redis.ask("DEL", queue._place.stream)
    assert await queue.extend(held) is None
    await queue.ack(held, result_of("held"))
    assert (await queue.receive()).delivery is None
    await queue.submit("next", b"{}")
    assert (await taken(queue)).id == "next"
    assert {one.id: (one.status, one.code) for one in await queue.jobs()} == {
        "held": ("done", None),
        "waiting": ("dead", "document_lost"),
        "next": ("leased", None),
    }


async def test_stream_that_was_deleted_under_a_job_that_goes_back(queue: RedisQueue, own_redis: RedisServer) -> None:
    """Given back without its document it is a dead letter, and not handed over empty."""
    await queue.submit("a", b"{}")
    held = await taken(queue)
    own_redis.ask("DEL", queue._place.stream)
    await queue.nack(held, NOW, "internal", charged=True)
    assert (await queue.receive()).delivery is None
    [dead] = await queue.jobs("dead")
    assert (dead.code, [(one.code, one.charged) for one in dead.attempts]) == ("document_lost", [("internal", True)])


async def test_successor_whose_clock_is_behind(own_redis: RedisServer) -> None:
    """A server that took over with another time takes no lease from anybody, and hands nothing over twice."""
    clock, place = FakeClock(), own_redis.place()
    first, second = (RedisQueue(place, worker=name, wait=BRIEF, clock=clock) for name in ("w1", "w2"))
    for job_id in ("a", "b"):
        await first.submit(job_id, b"{}")
    held = await taken(first)
    clock.advance(-HOUR)
    other = await taken(second)
    assert (held.id, other.id) == ("a", "b")
    assert other.receipt > held.receipt
    for queue, delivery in ((first, held), (second, other)):
        assert await queue.extend(delivery) is None
    clock.advance(timedelta(minutes=3))
    again = await taken(second)
    assert (again.id, again.deliveries) == ("a", 2)
    with pytest.raises(LeaseLost):
        await first.ack(held, result_of("a"))
    for queue in (first, second):
        await queue.aclose()
