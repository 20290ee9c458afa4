"""What a scheduling server sends when nobody waits for it any more. In virtual time."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta

from structlog.testing import capture_logs

from tests.support.queues import taken
from tests.support.receiver import Answer
from tests.support.scheduled import BODY, a_server, cancelled, events, facing, holding, status_of
from tests.support.scheduling import EXAMPLE_ANSWER, MinimalServer, a_node
from tests.support.virtual import elapse, virtual
from worker.node import Orders
from worker.wire import Evict


@virtual
async def test_a_late_answer_is_given_back() -> None:
    """A job that was leased to a receive that is gone waits again at once, and was never handed over."""
    server = a_server()
    async with facing(server) as (queue, way):
        server.let_go.clear()
        receiving = asyncio.create_task(queue.receive(), name="receiving")
        await server.queue.submit("a", BODY)
        await elapse(1)
        assert await status_of(server, "a") == "leased"
        await cancelled(receiving)
        server.let_go.set()
        await queue.settled()
        assert await status_of(server, "a") == "waiting"
        delivery = await taken(queue)
        assert (delivery.deliveries, delivery.redelivered, delivery.attempts) == (1, False, ())
        released = json.loads(next(r.body for r in server.requests if r.path == "/jobs/a/release"))
    assert (released["reason"], released["delay"], released["charged"]) == ("unreceived", 0.0, False)
    assert len(way.times("/availability")) == 2


@virtual
async def test_giving_back_is_tried_again() -> None:
    """An outage in that moment leaves nothing leased to nobody."""
    server = a_server()
    async with facing(server) as (queue, _):
        server.let_go.clear()
        server.faults["release"].extend([Answer(503), Answer(401)])
        receiving = asyncio.create_task(queue.receive(), name="receiving")
        await server.queue.submit("a", BODY)
        await elapse(1)
        await cancelled(receiving)
        server.let_go.set()
        await queue.settled()
        assert await status_of(server, "a") == "waiting"


@virtual
async def test_giving_back_ends() -> None:
    """What cannot be given back for a minute runs out by itself; the log says so."""
    server = a_server()
    async with facing(server) as (queue, _):
        server.let_go.clear()
        receiving = asyncio.create_task(queue.receive(), name="receiving")
        await server.queue.submit("a", BODY)
        await elapse(1)
        await cancelled(receiving)
        server.faults["release"].extend([Answer(503)] * 100)
        with capture_logs() as logs:
            server.let_go.set()
            await queue.settled()
    assert events(logs) == ["late_job_not_given_back"]


@virtual
async def test_the_next_receive_takes_over_what_the_last_one_asked() -> None:
    """One request is out at a time, whatever is cancelled; its job is handed over, not given back."""
    server = a_server()
    async with facing(server) as (queue, way):
        for _ in range(3):
            receiving = asyncio.create_task(queue.receive(), name="receiving")
            await elapse(1)
            await cancelled(receiving)
        receiving = asyncio.create_task(queue.receive(), name="receiving")
        await elapse(1)
        await server.queue.submit("a", BODY)
        delivery = (await receiving).delivery
        assert delivery is not None
        assert (delivery.id, delivery.deliveries) == ("a", 1)
        assert len(way.times("/availability")) == 1


@virtual
async def test_a_late_answer_that_cannot_be_given_back_waits_for_the_next_receive() -> None:
    """The only hand-over of a job of a minimal server is not thrown away."""
    server = MinimalServer(EXAMPLE_ANSWER)
    async with facing(server) as (queue, way):
        receiving = asyncio.create_task(queue.receive(), name="receiving")
        await elapse(way.latency_s / 2)
        await cancelled(receiving)
        await queue.settled()
        received = await queue.receive()
        assert received.delivery is not None
        assert received.orders is not None
        assert len(server.asked) == 1


@virtual
async def test_a_receive_that_is_cancelled_at_once_asks_nobody() -> None:
    """A request that has not left is not sent for a receive that is gone."""
    server, node = a_server(), a_node()
    node.takes_s = 2.0
    async with facing(server, node) as (queue, way):
        receiving = asyncio.create_task(queue.receive(), name="receiving")
        await elapse(1)
        await cancelled(receiving)
        await elapse(5)
        assert way.at == []


@virtual
async def test_an_outage_nobody_waits_for_is_no_error() -> None:
    """A request that was left and fails is forgotten."""
    server = a_server()
    async with facing(server) as (queue, _):
        server.lost["availability"].append(Answer(503))
        receiving = asyncio.create_task(queue.receive(), name="receiving")
        await elapse(1)
        await cancelled(receiving)
        await server.queue.submit("a", BODY)
        await queue.settled()
        assert "leases jobs" in await queue.check()


@virtual
async def test_orders_of_a_late_answer_are_not_lost() -> None:
    """The next receive brings them, before it asks."""
    server = a_server()
    async with facing(server, wait=timedelta(seconds=5)) as (queue, way):
        server.orders.append({"evict": [{"kind": "vae", "name": "v"}]})
        receiving = asyncio.create_task(queue.receive(), name="receiving")
        await elapse(1)
        await cancelled(receiving)
        await queue.settled()
        assert (await queue.receive()).orders == Orders(evict=(Evict(kind="vae", name="v"),))
        assert len(way.times("/availability")) == 1


@virtual
async def test_closing_tells_the_server() -> None:
    """A long poll that nobody waits for ends at once, and so does the driver."""
    server, loop = a_server(), asyncio.get_running_loop()
    async with facing(server) as (queue, way):
        assert "leases jobs" in await queue.check()
        receiving = asyncio.create_task(queue.receive(), name="receiving")
        await elapse(1)
        await cancelled(receiving)
        begun = loop.time()
        await queue.aclose()
        assert loop.time() - begun < 1
        assert server.beats[-1].away is True
        await server.queue.submit("a", BODY)
        await elapse(1)
    assert await status_of(server, "a") == "waiting"
    assert len(way.times("/availability")) == 1


@virtual
async def test_closing_gives_back_what_comes_late() -> None:
    """The answer that was on its way is waited for."""
    server = a_server()
    async with facing(server) as (queue, way):
        receiving = asyncio.create_task(queue.receive(), name="receiving")
        await elapse(1)
        await server.queue.submit("a", BODY)
        await elapse(way.latency_s / 2)
        await cancelled(receiving)
    assert await status_of(server, "a") == "waiting"


@virtual
async def test_closing_is_bounded() -> None:
    """A server that does not answer is cut off, whatever it was asked; nothing is left running."""
    server, loop = a_server(), asyncio.get_running_loop()
    with capture_logs() as logs:
        async with facing(server) as (queue, way):
            [delivery] = await holding(server, queue, "a")
            await queue.extend(delivery)
            receiving = asyncio.create_task(queue.receive(), name="receiving")
            await elapse(1)
            await cancelled(receiving)
            way.broken = True
            begun = loop.time()
        assert loop.time() - begun < 6
    assert events(logs) == ["queue_unavailable", "queue_cut_off"]


@virtual
async def test_closing_waits_for_a_heartbeat_no_longer_than_for_anything_else() -> None:
    """One that is never answered is cut off with the rest."""
    server, loop = a_server(), asyncio.get_running_loop()
    async with facing(server) as (queue, way):
        [delivery] = await holding(server, queue, "a")
        way.latency_s = 3600.0
        extending = asyncio.create_task(queue.extend(delivery), name="extending")
        await elapse(1)
        await cancelled(extending)
        begun = loop.time()
        await queue.aclose()
        assert loop.time() - begun < 6
