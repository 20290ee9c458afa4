"""Deliveries that wait for their models stand aside: the engine goes on, few are held, and nobody is forgotten."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from tests.support.cache import KB, content, kept
from tests.support.fakes import FakeEngine
from tests.support.mixes import Mix, mean_of, played
from tests.support.virtual import elapse, virtual
from tests.support.world import VISIBILITY, World
from worker.errors import ModelComing, UploadFailed
from worker.live import Hop
from worker.mentions import Place
from worker.queues.policy import Policy
from worker.status import Phase

FAR, NEAR = Place("checkpoint", "far.safetensors"), Place("checkpoint", "near.safetensors")
FURTHER = Place("checkpoint", "further.safetensors")
BLOCK_S = 0.25
ALONE, MIXED = Mix(jobs=160, burst=0), Mix(jobs=160)


def waiting(**more: int) -> World:
    """A worker whose far models come when a test says so."""
    world = World(**more)  # type: ignore[arg-type]
    world.models.held |= {place: asyncio.Event() for place in (FAR, FURTHER)}
    return world


async def parked(world: World, *job_ids: str) -> None:
    """Wait until these are parked, and nobody else."""
    await world.until(lambda: [job.id for job in world.live if job.parked] == list(job_ids))


@virtual
async def test_the_engine_is_not_idle_while_parked_jobs_wait() -> None:
    """Three models of 20 s among jobs of 300 ms: the duty of the jobs alone. In the window they stop everything."""
    alone, mixed, in_the_window = await asyncio.gather(played(ALONE), played(MIXED), played(MIXED, parked=0))
    assert alone.duty > 0.99
    assert mixed.duty > 0.98 * alone.duty
    assert in_the_window.duty < 0.75 * alone.duty


@virtual
async def test_few_would_go_down_with_the_node() -> None:
    """Before the engine never more than window and places, and no more at a time than the look-ahead needs."""
    short, long = await asyncio.gather(played(MIXED), played(Mix(jobs=60, every=30, job_s=3.0, far_s=60.0)))
    assert max(short.hostages.undone) == max(long.hostages.undone) == 3 + 2
    assert mean_of(short.hostages.undone) < 4
    assert mean_of(long.hostages.undone) < 3


@virtual
async def test_later_jobs_overtake_those_that_are_parked() -> None:
    """With a window of one: the parked ones stand beside it, and one more keeps the slot."""
    world = waiting(window=1, parked=1)
    async with world.running():
        await world.submit("far", checkpoint=FAR.name)
        await parked(world, "far")
        await world.submit("a", "b", checkpoint=NEAR.name)
        await world.ended("a", "b")
        await world.submit("further", checkpoint=FURTHER.name)
        await parked(world, "far", "further")
        await world.submit("c", checkpoint=NEAR.name)
        await elapse(100)
        assert await world.status_of("c") == "waiting"
        world.models.held[FAR].set()
        await world.ended("c")
        world.models.held[FURTHER].set()
        await world.ended("far", "further")
    assert world.engine.generated == ["a", "b", "far", "c", "further"]


@virtual
async def test_a_parked_job_is_served_when_its_models_came() -> None:
    """Before all that become ready later, however many come; those of one model in the order of their coming."""
    world = waiting()
    async with world.running():
        await world.submit("far-1", "far-2", checkpoint=FAR.name)
        await parked(world, "far-1", "far-2")
        world.engine.delays[Hop.GENERATE, "a"] = 10.0
        await world.submit(*"abcdef", checkpoint=NEAR.name)
        await world.at(Hop.GENERATE, "a")
        await world.at(Hop.WAITING, "b")
        world.models.held[FAR].set()
        await world.ended("far-1", "far-2", *"abcdef")
    assert world.engine.generated == ["a", "b", "far-1", "far-2", *"cdef"]


@virtual
async def test_nothing_more_is_received_while_models_that_came_fill_the_window() -> None:
    """It may be exceeded for a moment, by those who were parked."""
    world = waiting(window=2)
    async with world.running():
        await world.submit("far-1", "far-2", checkpoint=FAR.name)
        await parked(world, "far-1", "far-2")
        world.engine.delays[Hop.GENERATE, "a"] = 1.0
        await world.submit(*"abcd", checkpoint=NEAR.name)
        await world.at(Hop.GENERATE, "a")
        await world.at(Hop.WAITING, "b")
        world.models.held[FAR].set()
        await world.until(lambda: not world.live.parked)
        assert [job.id for job in world.live] == ["far-1", "far-2", "a", "b"]
        await world.at(Hop.GENERATE, "far-1")
        assert await world.status_of("c") == "waiting"
        await world.ended("far-1", "far-2", *"abcd")


@virtual
async def test_waiting_for_models_is_no_time_of_preparing() -> None:
    """Else the next deliveries would be asked for far too early."""
    world = waiting()
    async with world.running():
        await world.submit("far", checkpoint=FAR.name)
        await parked(world, "far")
        await elapse(300)
        world.models.held[FAR].set()
        await world.ended("far")
    assert world.pace.prepare_s is not None
    assert world.pace.prepare_s < 1


def drain(world: World) -> None:
    world.supervisor.stop()


def cancel(world: World) -> None:
    assert world.live.cancel("far")


def lose(world: World) -> None:
    world.link.lose("far")


def pause(world: World) -> None:
    world.storage.down = UploadFailed("away")


@pytest.mark.parametrize(
    ("befall", "ends"),
    [(drain, ["draining"]), (cancel, ["cancelled"]), (lose, []), (pause, ["draining"])],
    ids=["drain", "cancel", "lease lost", "store away"],
)
@virtual
async def test_a_parked_job_goes_back_like_any_that_was_not_begun(
    befall: Callable[[World], None], ends: list[str]
) -> None:
    """Nothing is begun, and nothing stays pinned."""
    world = waiting()
    async with world.running():
        await world.submit("far", checkpoint=FAR.name)
        await parked(world, "far")
        befall(world)
        if befall is pause:
            await world.submit("a", "b", checkpoint=NEAR.name)
        await world.until(lambda: "far" not in [job.id for job in world.live])
        assert [end.code for end in (await world.state("far")).attempts][:1] == ends
        assert FAR not in world.models.pinned
    assert "far" not in world.engine.generated


@virtual
async def test_what_takes_too_long_goes_back_for_that_time_and_is_not_counted() -> None:
    """The queue's delay keeps it from coming back at once, so that nothing spins."""
    world = World(max_wait=timedelta(minutes=3))
    world.models.errors[FAR] = [ModelComing(retry_after=timedelta(seconds=s)) for s in (400, 200)]
    loop = asyncio.get_running_loop()
    async with world.running():
        await world.until(lambda: world.status.phase is Phase.READY)
        began = loop.time()
        await world.submit("far", checkpoint=FAR.name)
        await world.until(lambda: not world.models.errors[FAR])
        assert 600 > loop.time() - began >= 400
        await world.ended("far")
        assert loop.time() - began >= 600
        state = await world.state("far")
    assert [(end.code, end.charged) for end in state.attempts[:-1]] == [("model_coming", False)] * 2
    assert state.deliveries == 1
    assert world.models.at_most[1:] == [timedelta(minutes=3)] * 3


@virtual
async def test_who_can_not_come_again_is_kept() -> None:
    """A queue that cannot delay, and a delivery after which no other may follow."""
    assert await waited(World(), can_delay=True) == timedelta(minutes=5)
    assert await waited(World(), can_delay=False) is None
    last = World(policy=Policy(visibility=VISIBILITY, max_deliveries=1))
    assert await waited(last, can_delay=True) is None


async def waited(world: World, *, can_delay: bool) -> timedelta | None:
    """How long a job's models may be waited for."""
    world.link.can_delay = can_delay
    async with world.running():
        await world.submit("far", checkpoint=FAR.name)
        await world.ended("far")
    return world.models.at_most[-1]


@virtual
async def test_a_model_that_was_waited_for_elsewhere_is_here_when_its_job_returns(tmp_path: Path) -> None:
    """The whole way with the real cache: given back for the measured time, fetched meanwhile, done at once."""
    async with kept(tmp_path / "m", cap=1000 * KB) as cache:
        cache.hub.has("far", content("far", int(120 / BLOCK_S) * KB), seconds=BLOCK_S)
        (url,) = cache.hub.sources
        world = World(engine=FakeEngine(), models=cache.cache, max_wait=timedelta(minutes=1))
        loop = asyncio.get_running_loop()
        async with world.running():
            await world.until(lambda: world.status.phase is Phase.READY)
            began = loop.time()
            ref = {"kind": "checkpoint", "name": FAR.name, "url": url}
            await world.submit("far", checkpoint=FAR.name, models=[ref])
            await world.until(lambda: len(world.live) == 0 and loop.time() > began + 1)
            assert 5 < loop.time() - began < 10
            await world.submit("near")
            await world.ended("near", "far")
            assert 118 < loop.time() - began < 140
            state = await world.state("far")
        assert [end.code for end in state.attempts] == ["model_coming", "succeeded"]
        assert cache.hub.fetches.total() == 1
        assert cache.idle
    assert world.engine.generated == ["near", "far"]
