"""Workers that are killed, at a named failpoint or at any instant, and what is left to others."""

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


async def one_life(shop: Workshop, failure: Failure, name: str = "w1", *, hasty: bool = False) -> None:
    """A life that ends at a failpoint, which it has to reach."""
    async with shop.worker(name, failure, hasty=hasty) as life:
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
