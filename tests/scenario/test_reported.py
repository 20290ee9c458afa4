"""What is reported while jobs run: nothing is in memory before its picture was verified, whatever was asked for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tests.support.cache import HOST, KB, content, kept
from tests.support.fakes import FakeEngine, flat_output
from tests.support.virtual import VirtualClock, elapse, virtual
from tests.support.world import VISIBILITY, World
from worker.engines.base import Output, Reach, Work
from worker.errors import EngineCrashed, ModelNotFound, OutputMismatch
from worker.live import Hop
from worker.mentions import Place
from worker.node import Orders
from worker.queues.base import Delivery, Received
from worker.queues.memory import MemoryQueue
from worker.queues.policy import Policy
from worker.report import Reporter
from worker.wire import Download, Evict

CAT, DOG = Place("checkpoint", "cat.safetensors"), Place("checkpoint", "dog.safetensors")


def memory(world: World) -> set[Place]:
    return {Place(one.kind, one.name) for one in world.tools.reporter.report().models if one.tier == "vram"}


@virtual
async def test_a_model_is_in_memory_once_a_picture_of_it_was_verified() -> None:
    """Not when the job comes, nor while it generates: until then the last verified one counts."""
    world = World()
    async with world.running():
        await world.submit("a", checkpoint=CAT.name)
        await world.at(Hop.GENERATE, "a")
        assert memory(world) == set()
        assert world.tools.reporter.report().jobs["a"][1] == "generate"
        await world.ended("a")
        assert memory(world) == {CAT}
        await world.submit("b", checkpoint=DOG.name)
        await world.at(Hop.GENERATE, "b")
        assert memory(world) == {CAT}
        await world.ended("b")
        assert memory(world) == {DOG}
    assert dict(world.tools.reporter.report().stats)["done"] == 2


@virtual
async def test_a_picture_that_is_not_what_was_asked_for_shows_nothing() -> None:
    """Neither one of the wrong model or count, twice, nor a flat one of a server that the canary finds broken."""
    world = World()
    async with world.running():
        await world.submit("a", checkpoint=CAT.name)
        await world.ended("a")
        world.engine.trouble("b", *[OutputMismatch("another model")] * 20)
        await world.submit("b", checkpoint=DOG.name)
        await world.ended("b")
        assert await world.code("b") == OutputMismatch.code
        assert DOG not in memory(world)
        world.engine.trouble("c", flat_output)
        world.engine.canary_troubles.append(flat_output)
        await world.submit("c", checkpoint=DOG.name)
        await world.until(lambda: world.engine.canaries > 3)
        assert DOG not in memory(world)
        await world.ended("c")
        assert memory(world) == {DOG}


@virtual
async def test_a_job_that_was_refused_shows_nothing() -> None:
    """A name that was only asked for is never told, on disk or in memory."""
    world = World()
    world.models.missing.add(DOG)
    async with world.running():
        await world.submit("a", checkpoint=DOG.name)
        await world.ended("a")
        assert await world.code("a") == ModelNotFound.code
        assert world.tools.reporter.report().models == ()


@virtual
async def test_after_a_crash_only_what_was_seen_since_counts() -> None:
    """The new process begins with nothing; its canary and its jobs show what it has."""
    world = World()

    def crash(engine: FakeEngine, work: Work) -> Output:
        engine.reach = Reach.PORT_CLOSED
        raise EngineCrashed("gone")

    async with world.running():
        await world.submit("a", checkpoint=CAT.name)
        await world.ended("a")
        world.engine.trouble("b", crash)
        await world.submit("b", checkpoint=CAT.name)
        await world.until(lambda: not world.gate.is_open)
        await elapse(5)
        world.engine.reach = Reach.READY
        world.engine.delays[Hop.GENERATE, "b"] = 30.0
        await world.until(lambda: world.gate.is_open)
        assert memory(world) == set()
        await world.ended("b")
        assert memory(world) == {CAT}


@virtual
async def test_steps_and_loads_are_those_of_verified_jobs() -> None:
    """Not of the canary's small picture, nor of a job of whose time nobody knows how much was loading."""
    world = World(engine=FakeEngine(seconds=2.0))
    async with world.running():
        for job_id in "ab":
            assert world.tools.reporter.speeds.step is None
            await world.submit(job_id, checkpoint=CAT.name)
            await world.ended(job_id)
        assert world.tools.reporter.speeds.step == 0.5


class Ordering(MemoryQueue):
    """A queue that orders things, with what it hands over and at each renewal."""

    received: Orders | None = None
    extended: Orders | None = None

    async def receive(self) -> Received:
        found = await super().receive()
        orders, self.received = self.received, None
        return Received(found.delivery, orders)

    async def extend(self, delivery: Delivery) -> Orders | None:
        await super().extend(delivery)
        orders, self.extended = self.extended, None
        return orders


def ordering() -> Ordering:
    return Ordering(VirtualClock(), worker="w1", policy=Policy(visibility=VISIBILITY))


@virtual
async def test_orders_come_with_a_receive_and_with_a_renewal(tmp_path: Path) -> None:
    """An idle node hears of them where it asks for work, a busy one where it says that it still works.

    What the node then has is told in the next report.
    """
    async with kept(tmp_path / "m") as cache:
        cache.hub.has("ink.safetensors", content("ink", KB))
        queue = ordering()
        world = World(queue=queue, models=cache.cache)
        world.tools = replace(world.tools, reporter=Reporter(world.live, world.metrics, shelf=lambda: cache.cache))
        queue.received = Orders((Download(url=HOST + "ink.safetensors", kind="lora"),))
        async with world.running():
            await world.until(lambda: cache.names == ["ink.safetensors"])
            [told] = world.tools.reporter.report().models
            assert (told.kind, told.name, told.size, told.tier) == ("lora", "ink.safetensors", KB, "disk")
            world.engine.delays[Hop.GENERATE, "a"] = 60.0
            await world.submit("a")
            await world.at(Hop.GENERATE, "a")
            queue.extended = Orders((), (Evict(kind="loras", name="ink.safetensors"),))
            await world.until(lambda: not cache.names)
            assert world.tools.reporter.report().models == ()
            assert await world.status_of("a") == "leased"
            queue.extended = Orders(cancel=("a",))
            await world.ended("a")
        assert [code for code, _ in await world.ends("a")] == ["cancelled"]


@virtual
async def test_a_drain_begins_no_order(tmp_path: Path) -> None:
    """The job that still runs renews its lease, and what is ordered then would be fetched for nobody."""
    async with kept(tmp_path / "m") as cache:
        cache.hub.has("ink.safetensors", content("ink", KB))
        queue = ordering()
        world = World(queue=queue, models=cache.cache, drain_s=100.0)
        async with world.running():
            world.engine.delays[Hop.GENERATE, "a"] = 60.0
            await world.submit("a")
            await world.at(Hop.GENERATE, "a")
            world.supervisor.stop()
            queue.extended = Orders((Download(url=HOST + "ink.safetensors", kind="lora"),))
            await world.until(lambda: queue.extended is None)
            assert world.tools.orders.under_way == 0
            await world.ended("a")
        assert cache.hub.fetches.total() == 0
