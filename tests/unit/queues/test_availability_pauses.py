"""When a scheduling server is asked again. In virtual time."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from itertools import pairwise

import pytest

from tests.support.queues import taken
from tests.support.receiver import Answer
from tests.support.scheduled import BODY, a_server, facing
from tests.support.scheduling import EXAMPLE_ANSWER, MinimalServer
from tests.support.virtual import elapse, virtual
from worker.errors import QueueUnavailable


@virtual
async def test_pauses_grow_while_a_server_has_nothing() -> None:
    """From a second to half a minute, jittered, however short the bounded waits are; a job makes them short again."""
    server, loop = MinimalServer(), asyncio.get_running_loop()
    async with facing(server, wait=timedelta(seconds=4)) as (queue, way):
        while loop.time() < 600:
            begun = loop.time()
            assert (await queue.receive()).delivery is None
            assert loop.time() - begun <= 4.1
        pauses = [later - earlier for earlier, later in pairwise(way.times("/availability"))]
        assert 0.5 <= pauses[0] <= 1
        assert all(15 <= pause <= 30.1 for pause in pauses[6:])
        assert len(set(pauses)) == len(pauses)
        server.answers.append(EXAMPLE_ANSWER)
        await taken(queue, tries=20)
        asked = loop.time()
        assert (await queue.receive()).delivery is None
        assert min(at for at in way.times("/availability") if at >= asked) - asked < 0.1


@virtual
async def test_a_server_that_holds_its_answers_is_asked_again_at_once() -> None:
    """A long poll is the pause itself; what comes meanwhile comes at once."""
    server, loop = a_server(), asyncio.get_running_loop()
    async with facing(server) as (queue, way):
        for _ in range(3):
            assert (await queue.receive()).delivery is None
        assert len(way.times("/availability")) == 3
        assert 59 < loop.time() < 61
        receiving = asyncio.create_task(queue.receive(), name="receiving")
        await elapse(5)
        await server.queue.submit("a", BODY)
        assert (await receiving).delivery is not None
        assert loop.time() < 67


@pytest.mark.parametrize("by", ["answer", "header"])
@virtual
async def test_a_server_says_when_to_come_again(by: str) -> None:
    """Not earlier, and a little later; by the answer, or by ``Retry-After`` of a refusal."""
    server, loop = a_server(), asyncio.get_running_loop()
    async with facing(server, wait=timedelta(seconds=10)) as (queue, way):
        if by == "answer":
            server.retry_after = 50.0
            server.faults["availability"].append(Answer(200, body=b'{"retry_after": 50}'))
        else:
            server.faults["availability"].append(Answer(503, {"retry-after": "50"}))
            with pytest.raises(QueueUnavailable):
                await queue.receive()
        await server.queue.submit("a", BODY)
        while (await queue.receive()).delivery is None:
            assert loop.time() < 70
        first, second = way.times("/availability")
        assert 50 <= second - first <= 55.5


@virtual
async def test_orders_alone_do_not_make_it_ask_faster() -> None:
    """A minimal server that repeats its orders is left alone as one that has nothing."""
    order = '{"download": {"checkpoints": ["http://host/x"]}}'
    server, loop = MinimalServer(*[order] * 100), asyncio.get_running_loop()
    async with facing(server) as (queue, way):
        for _ in range(6):
            received = await queue.receive()
            while received.orders is None:
                received = await queue.receive()
        assert loop.time() > 12
        assert len(way.times("/availability")) == 6


@virtual
async def test_a_server_that_never_answers_is_given_up() -> None:
    """Some seconds after the time that we offered to wait."""
    server, loop = a_server(), asyncio.get_running_loop()
    server.faults["availability"].append(Answer(200, body=b'{"generation": 7}'))
    async with facing(server) as (queue, _):
        with pytest.raises(QueueUnavailable, match="not understood"):
            await queue.receive()
        server.let_go.clear()
        begun = loop.time()
        with pytest.raises(QueueUnavailable, match="no answer in time"):
            await queue.receive()
        assert 30 < loop.time() - begun < 40
        server.let_go.set()
        server.faults["availability"].append(Answer(404))
        with pytest.raises(QueueUnavailable, match="answered 404"):
            await queue.receive()
