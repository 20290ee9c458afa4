"""A worker in virtual time with a mix of jobs: models that are here, and models that take long to come."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta

from tests.support.fakes import FakeEngine, document
from tests.support.models import FakeModels
from tests.support.virtual import takes
from tests.support.world import World
from worker.live import Live
from worker.mentions import Place
from worker.models.base import Provided, Wanted
from worker.status import Phase
from worker.tasks import cancel_all

NEAR = "near.safetensors"


class FarModels(FakeModels):
    """Models whose name says it are ``far``: each takes so many seconds to come, once, however many wait for it."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds
        self._coming: dict[Place, asyncio.Task[None]] = {}

    @asynccontextmanager
    async def provided(self, wanted: Sequence[Wanted], at_most: timedelta | None = None) -> AsyncIterator[Provided]:
        for one in wanted:
            if one.name.startswith("far"):
                if one.place not in self._coming:
                    self._coming[one.place] = asyncio.create_task(takes(self.seconds), name=f"far-{one.name}")
                await asyncio.wait({self._coming[one.place]})
        async with super().provided(wanted, at_most) as provided:
            yield provided

    async def aclose(self) -> None:
        await cancel_all(set(self._coming.values()))


@dataclass
class Hostages:
    """Deliveries that would go down with the node: for how many seconds it held so many, and so many not generated."""

    held: dict[int, float] = field(default_factory=dict)
    undone: dict[int, float] = field(default_factory=dict)

    async def watch(self, live: Live) -> None:
        loop = asyncio.get_running_loop()
        while True:
            at, held, undone = loop.time(), len(live), sum(not job.hop.is_past_engine for job in live)
            await live.changed()
            passed = loop.time() - at
            self.held[held] = self.held.get(held, 0.0) + passed
            self.undone[undone] = self.undone.get(undone, 0.0) + passed


def mean_of(seconds: dict[int, float]) -> float:
    return sum(held * passed for held, passed in seconds.items()) / sum(seconds.values())


@dataclass(frozen=True)
class Mix:
    """Short jobs behind a slow store and a slow receiver; of every ``every`` the first ``burst`` want far models.

    Each far model is wanted once. The last ``every`` jobs are all near, so that the end is no part of the measurement.
    """

    jobs: int = 240
    every: int = 80
    burst: int = 3
    job_s: float = 0.3
    far_s: float = 20.0
    store_s: float = 0.4
    hook_s: float = 0.3

    def names(self) -> list[str]:
        """The model of each job in turn."""
        far = [n < self.jobs - self.every and n % self.every < self.burst for n in range(self.jobs)]
        return [f"far-{n}.safetensors" if is_far else NEAR for n, is_far in enumerate(far)]


@dataclass(frozen=True)
class Played:
    duty: float
    hostages: Hostages
    order: list[str]


async def played(mix: Mix, *, window: int = 3, parked: int = 2) -> Played:
    """All jobs in the queue at once, done by one worker; the duty until the last generation has ended."""
    models, hostages = FarModels(mix.far_s), Hostages()
    world = World(engine=FakeEngine(seconds=mix.job_s), models=models, window=window, parked=parked)
    world.storage.seconds, world.receiver.seconds = mix.store_s, mix.hook_s
    async with world.running():
        await world.until(lambda: world.status.phase is Phase.READY)
        began, busy = asyncio.get_running_loop().time(), world.engine.busy_s
        watching = asyncio.create_task(hostages.watch(world.live), name="hostages")
        for n, name in enumerate(mix.names()):
            await world.queue.submit(f"job-{n}", document(f"job-{n}", checkpoint=name))
        await world.until(lambda: len(world.engine.generated) == mix.jobs)
        duty = (world.engine.busy_s - busy) / (asyncio.get_running_loop().time() - began)
        await cancel_all({watching})
    await models.aclose()
    return Played(duty, hostages, world.engine.generated)
