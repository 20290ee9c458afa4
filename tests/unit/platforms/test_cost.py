"""The deletion cost as the platform hears of it, in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise

from tests.support.virtual import elapse, virtual
from tests.support.world import World
from worker.live import Hop, Live
from worker.platforms.cost import PAUSE_MOST_S, PAUSE_S, DeletionCost
from worker.platforms.plain import PlainPlatform
from worker.tasks import cancel_all


class Listening(PlainPlatform):
    """Notes what it is told and when; refuses while ``away``."""

    def __init__(self) -> None:
        self.told: list[tuple[float, int]] = []
        self.away = False

    async def set_deletion_cost(self, cost: int) -> bool:
        self.told.append((asyncio.get_running_loop().time(), cost))
        return not self.away


@asynccontextmanager
async def telling(live: Live) -> AsyncIterator[Listening]:
    platform = Listening()
    task = asyncio.create_task(DeletionCost(platform, live).run(), name="cost")
    try:
        yield platform
    finally:
        await cancel_all({task})


@virtual
async def test_it_is_zero_at_the_start_and_between_jobs_and_rises_within_one() -> None:
    """Told in growing steps, and not at all while nothing happens."""
    live = Live()
    async with telling(live) as platform:
        await elapse(100)
        with live.holding("a") as job:
            await elapse(10)
            job.enter(Hop.GENERATE)
            await elapse(100)
        await elapse(1000)
    grown = [(115, 6), (120, 11), (125, 16), (135, 26), (150, 41), (170, 61), (200, 91)]
    assert platform.told == [(0, 0), (100, 1), *grown, (210, 0)]


@virtual
async def test_many_short_jobs_are_told_of_at_most_every_few_seconds() -> None:
    """A stream of jobs is no stream of requests, and the last word is that nothing is at stake."""
    live = Live()
    async with telling(live) as platform:
        for number in range(300):
            with live.holding(str(number)) as job:
                job.enter(Hop.GENERATE)
                await elapse(0.3)
            await elapse(0.1)
        await elapse(60)
    times = [at for at, _ in platform.told]
    assert all(after - before >= PAUSE_S for before, after in pairwise(times))
    assert platform.told[-1][1] == 0


@virtual
async def test_what_was_not_taken_is_told_again() -> None:
    """More and more seldom while the platform is away; what stands there is not known until it takes one."""
    live = Live()
    async with telling(live) as platform:
        platform.away = True
        await elapse(500)
        platform.away = False
        await elapse(500)
    times = [at for at, _ in platform.told]
    waits = [after - before for before, after in pairwise(times)]
    assert waits[:4] == [10, 20, 40, PAUSE_MOST_S]
    assert max(waits) == PAUSE_MOST_S
    assert {cost for _, cost in platform.told} == {0}
    assert times[-1] <= 500 + PAUSE_MOST_S


@virtual
async def test_a_whole_worker_tells_it_beside_its_jobs() -> None:
    """From the first job's coming to the last one's end, images that wait for their upload included."""
    world = World()
    world.engine.seconds = 30
    world.storage.delays[Hop.UPLOAD, "a"] = 40.0
    async with telling(world.live) as platform, world.running():
        await world.submit("a")
        await world.at(Hop.UPLOAD, "a")
        await elapse(20)
        assert platform.told[-1][1] > 20
        await world.ended("a")
        await elapse(PAUSE_S)
        assert platform.told[-1][1] == 0
    assert platform.told[0][1] == 0
