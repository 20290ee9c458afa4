"""A server whose memory grows from job to job, in virtual time: relieved between jobs, before it is too much."""

from __future__ import annotations

import pytest

from tests.support.fakes import FakeEngine, FakeProcess
from tests.support.virtual import virtual
from tests.support.world import World
from worker.engines.base import Files, Output, Progress, Work
from worker.metrics import ENGINE_RESTARTS
from worker.pressure import Pressure

LIMIT = 1000
FRESH, SWING, LEAK = 300, 200, 50


class LeakingEngine(FakeEngine):
    """Each generation takes more memory while it runs, and keeps some of it; only a restart gives that back."""

    def __init__(self, seconds: float, process: FakeProcess, leak: int) -> None:
        super().__init__(seconds)
        self.process, self.leak = process, leak
        self.most = 0
        process.on_start = self.begin
        self.begin()

    def begin(self) -> None:
        self.process.held = FRESH

    async def generate(self, work: Work, files: Files, on_progress: Progress, *, fresh: bool = False) -> Output:
        before = self.process.held or 0
        self.process.held = before + SWING
        self.most = max(self.most, self.process.held)
        try:
            return await super().generate(work, files, on_progress, fresh=fresh)
        finally:
            self.process.held = before + self.leak


def leaking(seconds: float, leak: int = LEAK) -> tuple[World, LeakingEngine]:
    """A worker whose server may hold `LIMIT`."""
    process = FakeProcess(owned=True)
    engine = LeakingEngine(seconds, process, leak)

    async def press() -> None:
        await pressure.run()

    world = World(engine=engine, process=process, services={"pressure": press})
    pressure = Pressure(world.gate, process, world.metrics, LIMIT)
    return world, engine


@pytest.mark.parametrize("seconds", [0.3, 2.0, 20.0])
@virtual
async def test_a_leak_is_found_though_one_job_follows_the_other(seconds: float) -> None:
    """The server never rests; all the same it is restarted before it holds too much, and no job is interrupted."""
    world, engine = leaking(seconds)
    jobs = [f"job-{number}" for number in range(60)]
    async with world.running():
        await world.submit(*jobs)
        await world.ended(*jobs)
        assert {tuple(await world.ends(job)) for job in jobs} == {(("succeeded", False),)}
    assert engine.most <= LIMIT
    assert engine.interrupted == []
    restarts = world.metrics.value(ENGINE_RESTARTS, reason="engine_memory")
    assert 60 * LEAK // (LIMIT - FRESH - SWING) - 1 <= restarts <= 10


@virtual
async def test_memory_that_every_job_gives_back_is_no_leak() -> None:
    """Near the limit it may stay for ever."""
    world, engine = leaking(1.0, leak=0)
    engine.process.held = LIMIT - SWING
    world.process.on_start = int
    jobs = [f"job-{number}" for number in range(20)]
    async with world.running():
        await world.submit(*jobs)
        await world.ended(*jobs)
    assert (world.process.lives, engine.freed) == (1, 0)


@virtual
async def test_a_server_that_is_anothers_is_only_asked_to_free_memory() -> None:
    """It is not restarted, and asked again only when it has grown further."""
    world, engine = leaking(1.0)
    world.process.owned = False
    jobs = [f"job-{number}" for number in range(20)]
    async with world.running():
        await world.submit(*jobs)
        await world.ended(*jobs)
    assert world.process.lives == 0
    assert 1 <= engine.freed < 8
