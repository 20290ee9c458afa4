"""Workers that are killed, at a named failpoint or at any instant, until every job has ended all the same."""

from __future__ import annotations

import asyncio
import random
import signal

from tests.support.failing_worker import Failure
from tests.support.waiting import wait_until
from tests.support.workshop import Workshop
from worker.simulators import Knobs

STARTING, LONGEST_S = 0.2, 1.0
"""The share of lives that end within a second of their start; the others do so within a second of work."""


async def one_life(shop: Workshop, failure: Failure, name: str = "w1") -> None:
    """A life that ends at a failpoint, which it has to reach."""
    async with shop.worker(name, failure) as life:
        code = await life.died()
        assert code == -signal.SIGKILL, f"{failure} was not reached: {code}\n{life.tail()}"
    shop.kills += 1


async def killed_sometime(shop: Workshop, rng: random.Random, name: str = "w1") -> bool:
    """A life that ends while it starts, or more often at work; whether it had begun to generate."""
    begun = shop.generations()
    async with shop.worker(name) as life:
        if rng.random() > STARTING:
            await wait_until(lambda: life.over or shop.generations() > begun, timeout=60)
        asyncio.get_running_loop().call_later(rng.uniform(0, LONGEST_S), life.process.kill)
        code = await life.died()
        assert code == -signal.SIGKILL, f"it ended by itself with {code}\n{life.tail()}"
    shop.kills += 1
    return shop.generations() > begun


async def crash_at(shop: Workshop, point: str) -> None:
    """Two lives that end at the point and one that does the rest; each job has two pictures.

    On a machine that has no time the first life may bring all of its jobs to the point at once: the second has others.
    """
    shop.pictures = 2
    await shop.submit_many(8)
    await submit_refused(shop, range(3))
    second = 2
    if point.endswith("nack"):
        await shop.submit("doubtful")
        shop.simulators[0].knobs.arm("empty", times=4, prompt="doubtful")
        second = 1
    await one_life(shop, Failure(point, 1))
    await shop.submit_many(4)
    await submit_refused(shop, range(3, 5))
    await one_life(shop, Failure(point, second))
    await shop.finished()


async def submit_refused(shop: Workshop, numbers: range) -> None:
    """Jobs that no engine takes."""
    for number in numbers:
        await shop.submit(f"refused-{number}", code="invalid_job", steps=10_000)


async def crash_at_random(shop: Workshop, rng: random.Random, kills: int) -> int:
    """So many lives of one worker after the other, jobs always waiting; how many had come to work."""
    at_work = 0
    for _ in range(kills):
        if await shop.line.waiting() < 10:
            await shop.submit_many(10)
        before = await shop.line.hand_overs()
        at_work += await killed_sometime(shop, rng)
        shop.held.append(len(await shop.line.hand_overs() - before))
    await shop.finished()
    return at_work


async def two_workers(shop: Workshop, rng: random.Random, jobs: int) -> None:
    """Each worker with its own server, on one queue; the first is killed until a third of the jobs is left."""
    await shop.submit_many(jobs)
    async with shop.worker("w2", WORKER_ENGINE_URL=shop.simulators[1].url) as steady:
        while len(shop.receiver.ended()) < jobs - 20:
            await killed_sometime(shop, rng)
        async with shop.worker("w1") as last:
            await shop.ended(steady, last)
            assert [await life.stop() for life in (steady, last)] == [0, 0]


def knobs(step_seconds: float = 0.02) -> Knobs:
    """Generations that take a while, four steps each, so that kills hit every hop."""
    return Knobs(step_seconds=step_seconds, load_seconds=0.0)
