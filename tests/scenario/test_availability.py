"""A whole worker before a scheduling server, in virtual time."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import cast

from tests.support.receiver import ScriptedServer
from tests.support.scheduled import InProcess, facing
from tests.support.scheduling import EXAMPLE_ANSWER, FullServer, MinimalServer
from tests.support.virtual import VirtualClock, elapse, virtual
from tests.support.world import VISIBILITY, World
from worker.live import Hop
from worker.queues.memory import MemoryQueue
from worker.queues.policy import Policy
from worker.status import Phase

POLICY = Policy(visibility=VISIBILITY)


def a_server() -> FullServer:
    return FullServer(VirtualClock(), POLICY)


@asynccontextmanager
async def taking(world: World, server: ScriptedServer) -> AsyncIterator[InProcess]:
    """The worker takes its jobs from there; whoever submits does so at the server's own queue."""
    async with facing(server, policy=POLICY) as (queue, way):
        world.link.queue = cast("MemoryQueue", queue)
        async with world.running():
            yield way


@virtual
async def test_jobs_are_done_once_each() -> None:
    """Twelve jobs: one generation, one result and one webhook each, and one hand-over."""
    server = a_server()
    world = World(queue=server.queue)
    jobs = [f"job-{number}" for number in range(12)]
    async with taking(world, server):
        await world.submit(*jobs)
        await world.ended(*jobs)
    assert sorted(world.engine.generated) == sorted(world.receiver.ids("succeeded")) == sorted(jobs)
    assert set(world.storage.results()) == set(jobs)
    assert [(state.status, len(state.attempts)) for state in await server.queue.jobs()] == [("done", 1)] * len(jobs)


@virtual
async def test_the_published_answer_is_worked_on() -> None:
    """A minimal server's job becomes a picture and a webhook; the worker asks on, though nothing else is known."""
    server = MinimalServer(EXAMPLE_ANSWER)
    world = World()
    async with taking(world, server):
        await world.until(lambda: bool(world.receiver.ids("succeeded")))
        asked = len(server.asked)
        await world.until(lambda: len(server.asked) > asked)
        [result] = world.storage.results().values()
    assert (result.status, len(result.images)) == ("succeeded", 1)
    assert world.engine.generated == [result.id]


@virtual
async def test_a_job_that_is_cancelled_at_the_server_is_interrupted() -> None:
    """Its holder hears of it with the next heartbeat, and settles it as cancelled."""
    server = a_server()
    world = World(queue=server.queue)
    world.engine.delays[Hop.GENERATE, "a"] = 600
    async with taking(world, server):
        await world.submit("a")
        await world.at(Hop.GENERATE, "a")
        await server.queue.cancel("a")
        await world.ended("a")
    assert await world.code("a") == "cancelled"
    assert world.storage.results() == {}


@virtual
async def test_a_worker_that_was_cut_off_changes_nothing() -> None:
    """Its lease ran out and another did the job: nothing is uploaded, told or settled by the one that comes back."""
    server = a_server()
    cut_off = World(queue=server.queue)
    other = World(queue=server.queue.beside("w2"), storage=cut_off.storage, worker="w2")
    cut_off.engine.delays[Hop.GENERATE, "a"] = 60
    async with taking(cut_off, server) as way:
        await cut_off.submit("a")
        await cut_off.at(Hop.GENERATE, "a")
        way.broken = True
        async with other.running():
            await other.ended("a")
            standing, calls = dict(cut_off.storage.objects), list(cut_off.storage.calls)
            way.broken = False
            await cut_off.until(lambda: len(cut_off.live) == 0)
    assert (cut_off.storage.objects, cut_off.storage.calls) == (standing, calls)
    assert cut_off.receiver.tries.total() == 0
    assert other.receiver.ids("succeeded") == ["a"]


@virtual
async def test_an_outage_of_the_server_costs_no_work() -> None:
    """The generation goes on while nothing can be renewed; its effects wait for the server to come back."""
    server = a_server()
    world = World(queue=server.queue)
    world.engine.delays[Hop.GENERATE, "a"] = 30
    async with taking(world, server) as way:
        await world.submit("a")
        await world.at(Hop.GENERATE, "a")
        way.broken = True
        await elapse(VISIBILITY.total_seconds() * 3)
        assert world.storage.objects == {}
        way.broken = False
        await world.ended("a")
    assert world.engine.generated == ["a"]
    assert await world.status_of("a") == "done"


@virtual
async def test_a_refused_token_pauses_the_worker_until_it_is_mended() -> None:
    """At the first refusal, with the operator's code; the probe finds that it is right again."""
    server = a_server()
    world = World(queue=server.queue)
    async with taking(world, server):
        await world.until(lambda: world.status.phase is Phase.READY)
        server.node_token = "rotated"
        await world.until(lambda: world.status.phase is Phase.PAUSED)
        assert world.dependencies.paused == {"queue": "auth_failed"}
        server.node_token = None
        await world.until(lambda: world.status.phase is Phase.READY)
        await world.submit("a")
        await world.ended("a")
    assert await world.status_of("a") == "done"


@virtual
async def test_a_drain_leaves_no_long_poll_behind() -> None:
    """An idle worker stops at once: the server is told, and what comes after that goes to others."""
    server = a_server()
    world = World(queue=server.queue)
    async with taking(world, server) as way:
        await world.submit("a")
        await world.ended("a")
        await elapse(5)
        begun = len(way.times("/availability"))
    assert server.beats[-1].away is True
    await world.submit("b")
    await elapse(timedelta(minutes=1).total_seconds())
    assert await world.status_of("b") == "waiting"
    assert len(way.times("/availability")) == begun
