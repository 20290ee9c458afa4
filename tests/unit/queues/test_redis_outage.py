"""The redis driver through restarts, frozen servers, cut connections, lost answers and lost data."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from functools import partial
from typing import Any

import pytest

from tests.support.network import Network
from tests.support.queues import result_of, taken
from tests.support.redis import RedisServer
from tests.support.redis_relay import Relay, relaying
from tests.support.waiting import wait_until
from worker.errors import LeaseLost, QueueUnavailable
from worker.queues.base import Delivery
from worker.queues.policy import Policy
from worker.queues.redis import RedisPlace, RedisQueue

pytest_plugins = ("tests.support.redis_fixtures",)

BRIEF = timedelta(milliseconds=20)
LONG = timedelta(seconds=60)
NOW = timedelta(0)
IMPATIENT = timedelta(seconds=1)
Ends = Callable[[RedisQueue, Delivery], Awaitable[None]]
ENDS: dict[str, Ends] = {
    "ack": lambda queue, delivery: queue.ack(delivery, result_of(delivery.id)),
    "reject": lambda queue, delivery: queue.reject(delivery, result_of(delivery.id, "failed", code="invalid_job")),
    "nack": lambda queue, delivery: queue.nack(delivery, NOW, "internal", charged=True),
}


@pytest.fixture(name="queue")
async def open_redis(own_redis: RedisServer) -> AsyncIterator[RedisQueue]:
    queue = RedisQueue(own_redis.place(), worker="w1", wait=BRIEF, patience=IMPATIENT)
    yield queue
    await queue.aclose()


@pytest.fixture(name="relay")
async def open_relay(redis_server: RedisServer) -> AsyncIterator[Relay]:
    async with relaying(redis_server.port) as relay:
        yield relay


@pytest.fixture(name="near")
async def open_near(redis_server: RedisServer) -> AsyncIterator[RedisQueue]:
    """A driver that nothing stands between and the server."""
    queue = RedisQueue(redis_server.place(), worker="w2", wait=BRIEF)
    yield queue
    await queue.aclose()


@pytest.fixture(name="far")
async def open_far(near: RedisQueue, relay: Relay) -> AsyncIterator[RedisQueue]:
    """A driver on the same stream, behind the relay."""
    place = RedisPlace(relay.url(), near._place.stream, near._place.group)
    queue = RedisQueue(place, worker="w1", wait=BRIEF)
    yield queue
    relay.silent = False
    await queue.aclose()


async def waits_for_work(server: RedisServer) -> None:
    await wait_until(lambda: b"blocked_clients:0" not in server.ask("INFO", "clients"))


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM])
async def test_restart(queue: RedisQueue, own_redis: RedisServer, sent: signal.Signals) -> None:
    """Away it is unavailable; back again, with what it had written, leases and tokens are as they were."""
    await queue.submit("a", b"{}")
    await queue.submit("b", b"{}")
    delivery = await taken(queue)
    own_redis.ask("CONFIG", "SET", "appendfsync", "always")
    own_redis.stop(sent)
    for asked in (queue.receive(), queue.extend(delivery), queue.submit("c", b"{}"), queue.state("a"), queue.check()):
        with pytest.raises(QueueUnavailable, match=r"127\.0\.0\.1:\d+: "):
            await asked
    own_redis.start()
    assert await queue.extend(delivery) is None
    await queue.ack(delivery, result_of("a"))
    assert (await taken(queue)).id == "b"
    assert {one.id: one.status for one in await queue.jobs()} == {"a": "done", "b": "leased"}


async def test_restart_while_waiting(own_redis: RedisServer) -> None:
    """A receive that waits hears that the server went."""
    queue = RedisQueue(own_redis.place(), worker="w1", wait=LONG)
    receiving = asyncio.create_task(queue.receive(), name="receiving")
    await waits_for_work(own_redis)
    own_redis.stop()
    with pytest.raises(QueueUnavailable):
        await receiving
    await queue.aclose()


async def test_frozen_server(queue: RedisQueue, own_redis: RedisServer) -> None:
    """It is given up in time; what it then does of what it was asked meanwhile leaves nothing leased."""
    await queue.submit("a", b"{}")
    held = await taken(queue)
    await queue.submit("b", b"{}")
    with own_redis.frozen():
        for asked in (queue.receive(), queue.extend(held)):
            with pytest.raises(QueueUnavailable, match="no answer within 1 s"):
                await asked
    await wait_until(lambda: own_redis.ask("PING"))
    assert await queue.extend(held) is None
    delivery = await taken(queue)
    assert (delivery.id, delivery.deliveries, delivery.redelivered, delivery.attempts) == ("b", 1, False, ())


async def test_cancelled_before_a_frozen_server(queue: RedisQueue, own_redis: RedisServer) -> None:
    """A receive that was cancelled while the server stood still leaves nothing leased once it goes on."""
    await queue.submit("a", b"{}")
    with own_redis.frozen():
        receiving = asyncio.create_task(queue.receive(), name="receiving")
        await wait_until(lambda: queue._client._used)
        receiving.cancel()
        await asyncio.gather(receiving, return_exceptions=True)
        await queue._settled()
        assert queue._unheard
    delivery = await taken(queue)
    assert (delivery.deliveries, delivery.redelivered) == (1, False)


async def test_closed_before_a_frozen_server(own_redis: RedisServer) -> None:
    """Closing waits no longer than for one answer."""
    queue = RedisQueue(own_redis.place(), worker="w1", wait=BRIEF, patience=IMPATIENT)
    await queue.submit("a", b"{}")
    with own_redis.frozen():
        receiving = asyncio.create_task(queue.receive(), name="receiving")
        await wait_until(lambda: queue._client._used)
        receiving.cancel()
        await asyncio.gather(receiving, return_exceptions=True)
        await queue.aclose()
    for asked in (queue.receive(), queue.submit("b", b"{}")):
        with pytest.raises(QueueUnavailable):
            await asked


async def test_lost_answer_to_a_claim(far: RedisQueue, near: RedisQueue, relay: Relay) -> None:
    """A job that was handed over to nobody's knowledge waits at the next receive, and that hand-over never was."""
    await far.check()
    await near.submit("a", b"{}")
    relay.silent = True
    with pytest.raises(QueueUnavailable):
        await far.receive()
    [state] = await near.jobs()
    assert state.status == "leased"
    relay.silent = False
    delivery = await taken(far)
    assert (delivery.deliveries, delivery.redelivered) == (1, False)


async def test_lost_answer_with_news(
    far: RedisQueue, near: RedisQueue, relay: Relay, redis_server: RedisServer
) -> None:
    """What others put into the stream, read with an answer that was lost, is not lost with it."""
    await far.check()
    for _ in range(2):
        redis_server.ask("XADD", near._place.stream, "*", "job", b"{}")
    relay.silent = True
    with pytest.raises(QueueUnavailable):
        await far.receive()
    relay.silent = False
    assert [(await taken(far)).deliveries for _ in range(2)] == [1, 1]


@pytest.mark.parametrize("end", ENDS)
async def test_lost_answer_to_an_end(far: RedisQueue, near: RedisQueue, relay: Relay, end: str) -> None:
    """Told again, an end that came through is as good as done, and counted once."""
    await near.submit("a", b"{}")
    delivery = await taken(far)
    relay.silent = True
    for _ in range(2):
        with pytest.raises(QueueUnavailable):
            await ENDS[end](far, delivery)
    relay.silent = False
    state = await near.state("a")
    assert state is not None
    assert len(state.attempts) == 1
    await ENDS[end](far, delivery)
    assert await near.state("a") == state
    with pytest.raises(LeaseLost):
        await ENDS[end](far, delivery)


async def test_lost_answer_and_another_end(far: RedisQueue, near: RedisQueue, relay: Relay) -> None:
    """What ended one way cannot end another way afterwards."""
    await near.submit("a", b"{}")
    delivery = await taken(far)
    relay.silent = True
    with pytest.raises(QueueUnavailable):
        await far.ack(delivery, result_of("a"))
    relay.silent = False
    with pytest.raises(LeaseLost):
        await far.nack(delivery, NOW, "draining", charged=False)


async def test_idle_connections_that_were_cut(far: RedisQueue, near: RedisQueue, relay: Relay) -> None:
    """A proxy that closes what is idle is not noticed, whatever comes next, and nothing happens twice."""
    await near.submit("a", b"{}")

    async def cut() -> None:
        relay.cut()
        await wait_until(lambda: not relay.open)

    delivery = await taken(far)
    await cut()
    assert await far.extend(delivery) is None
    await cut()
    await far.nack(delivery, NOW, "internal", charged=True)
    await cut()
    delivery = await taken(far)
    assert (delivery.deliveries, len(delivery.attempts)) == (2, 1)
    await cut()
    await far.reject(delivery, result_of("a", "failed", code="invalid_job"))
    await cut()
    assert await far.requeue("a")
    await cut()
    assert await far.cancel("a")
    await cut()
    assert await far.submit("b", b"{}")
    await cut()
    assert [one.id for one in await far.jobs("waiting")] == ["b"]


async def test_cut_while_waiting(near: RedisQueue, relay: Relay, redis_server: RedisServer) -> None:
    """A wait on a connection that is used again and then cut is begun anew."""
    place = RedisPlace(relay.url(), near._place.stream, near._place.group)
    queue = RedisQueue(place, worker="w1", wait=LONG)
    await queue.check()
    receiving = asyncio.create_task(queue.receive(), name="receiving")
    await waits_for_work(redis_server)
    before = relay.connections
    relay.cut()
    await wait_until(lambda: relay.connections > before)
    await near.submit("a", b"{}")
    async with asyncio.timeout(4):
        assert (await receiving).delivery is not None
    await queue.aclose()


async def test_no_more_connections_than_needed(far: RedisQueue, near: RedisQueue, relay: Relay) -> None:
    """One after the other shares a connection; of many at once only a few are kept."""
    for number in range(5):
        await far.submit(f"a{number}", b"{}")
    assert relay.connections == 1
    await asyncio.gather(*(far.submit(f"b{number}", b"{}") for number in range(20)))
    await wait_until(lambda: relay.open <= 4)


async def test_scripts_that_were_forgotten(queue: RedisQueue, own_redis: RedisServer) -> None:
    """A server that does not know the ledger's script is told it again."""
    await queue.submit("a", b"{}")
    own_redis.ask("SCRIPT", "FLUSH")
    assert (await taken(queue)).id == "a"


async def test_flushed_server(queue: RedisQueue, own_redis: RedisServer) -> None:
    """Who held a job of a server that lost everything has lost it; new ones come as ever."""
    await queue.submit("a", b"{}")
    delivery = await taken(queue)
    own_redis.ask("FLUSHALL")
    for asked in (queue.extend(delivery), queue.ack(delivery, result_of("a"))):
        with pytest.raises(LeaseLost):
            await asked
    assert await queue.state("a") is None
    assert await queue.submit("a", b"{}")
    assert (await taken(queue)).deliveries == 1


async def test_flushed_while_waiting(own_redis: RedisServer) -> None:
    """A receive that waits on what was flushed comes back in its time, and the next one is on new ground."""
    queue = RedisQueue(own_redis.place(), worker="w1", wait=timedelta(milliseconds=150))
    receiving = asyncio.create_task(queue.receive(), name="receiving")
    await waits_for_work(own_redis)
    own_redis.ask("FLUSHALL")
    own_redis.ask("XADD", queue._place.stream, "*", "job", b"{}")
    delivery = (await receiving).delivery or await taken(queue)
    assert delivery.deliveries == 1
    await queue.aclose()


async def test_groups_that_were_destroyed(queue: RedisQueue, own_redis: RedisServer) -> None:
    """Groups are made anew, and what was held before stays held."""
    await queue.submit("a", b"{}")
    delivery = await taken(queue)
    for group in ("workers", "workers:bell"):
        own_redis.ask("XGROUP", "DESTROY", queue._place.stream, group)
    assert (await queue.receive()).delivery is None
    await queue.extend(delivery)
    own_redis.ask("XGROUP", "DESTROY", queue._place.stream, "workers:bell")
    assert (await queue.receive()).delivery is None
    await queue.submit("b", b"{}")
    assert (await taken(queue)).id == "b"


async def test_names_that_do_not_resolve(redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the DNS fails the queue is unavailable; each new connection asks it anew."""
    network = Network()
    network.patch(monkeypatch)
    place = redis_server.place()
    away = RedisPlace(f"redis://queue.example:{redis_server.port}", place.stream, place.group)
    queue = RedisQueue(away, worker="w1", wait=BRIEF)
    with pytest.raises(QueueUnavailable, match=r"queue\.example"):
        await queue.receive()
    network.usual.add(redis_server.port)
    network.names["queue.example"] = [["127.0.0.1"]]
    await queue.submit("a", b"{}")
    assert (await taken(queue)).id == "a"
    await queue.aclose()


@pytest.mark.parametrize("skew_s", [-3600, 3600])
async def test_clock_that_is_wrong(near: RedisQueue, monkeypatch: pytest.MonkeyPatch, skew_s: int) -> None:
    """A node whose clock is off by an hour takes no lease from anybody and delays nothing: the server's counts."""
    wrong = RedisQueue(near._place, worker="w1", wait=BRIEF)
    await near.submit("a", b"{}")
    true_time = time.time
    monkeypatch.setattr(time, "time", lambda: true_time() + skew_s)
    held = await taken(wrong)
    assert (await near.receive()).delivery is None
    await wrong.nack(held, NOW, "draining", charged=False)
    held = await taken(near)
    assert (await wrong.receive()).delivery is None
    state = await near.state("a")
    assert state is not None
    assert held.queued_at is not None
    assert state.attempts[0].ended is not None
    assert held.queued_at <= state.attempts[0].ended < held.queued_at + timedelta(minutes=30)
    await wrong.aclose()


class Crew:
    """Workers behind a relay that settle what they get, whatever stands in the way."""

    def __init__(self, server: RedisServer, relay: Relay, place: RedisPlace, rng: random.Random) -> None:
        self.server, self.relay, self.rng = server, relay, rng
        self.done: list[str] = []
        far = RedisPlace(relay.url(), place.stream, place.group)
        policy = Policy(visibility=timedelta(seconds=1), max_deliveries=1000)
        self.workers = [RedisQueue(far, worker=f"w{number}", wait=BRIEF, policy=policy) for number in range(3)]

    async def insist(self, verb: Callable[[], Awaitable[Any]]) -> Any:
        while True:
            try:
                return await verb()
            except QueueUnavailable:
                await wait_until(lambda: self.server.is_up)

    async def work(self, queue: RedisQueue, jobs: int) -> None:
        while len(self.done) < jobs:
            delivery = (await self.insist(queue.receive)).delivery
            if delivery is None:
                continue
            if self.rng.random() < 0.3:
                self.relay.cut()
            try:
                await self.insist(partial(queue.ack, delivery, result_of(delivery.id)))
            except LeaseLost:
                continue
            self.done.append(delivery.id)


@pytest.mark.parametrize("seed", range(2))
async def test_ledger_balances(own_redis: RedisServer, seed: int) -> None:
    """Three workers, cut connections, a restarted server: each job is done once, and nothing is left."""
    place = own_redis.place()
    own_redis.ask("CONFIG", "SET", "appendfsync", "always")
    near = RedisQueue(place, worker="near", wait=BRIEF)
    jobs = [f"j{number}" for number in range(60)]
    for job_id in jobs:
        await near.submit(job_id, b"{}")
    async with relaying(own_redis.port) as relay:
        crew = Crew(own_redis, relay, place, random.Random(seed))
        working = asyncio.gather(*(crew.work(one, len(jobs)) for one in crew.workers))
        await wait_until(lambda: len(crew.done) > 20)
        await asyncio.to_thread(own_redis.stop)
        await asyncio.to_thread(own_redis.start)
        await working
        for queue in crew.workers:
            await queue.aclose()
    states = await near.jobs(limit=100)
    assert sorted(crew.done) == sorted(jobs)
    assert {one.id: one.status for one in states} == dict.fromkeys(jobs, "done")
    assert {[attempt.code for attempt in one.attempts][-1] for one in states} == {"succeeded"}
    assert own_redis.ask("XLEN", place.stream) == 0
    await near.aclose()
