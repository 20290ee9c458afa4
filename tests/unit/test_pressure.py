"""Memory that grows from job to job: when it is too much, and what is done about it."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from tests.support.fakes import FakeEngine, FakeProcess
from tests.support.virtual import elapse, virtual
from worker.gate import Case, Gate
from worker.metrics import ENGINE_MEMORY_BYTES, Metrics
from worker.pressure import Held, Pressure
from worker.tasks import run_guarded

T = TypeVar("T")
LIMIT = 1000


def held(*readings: tuple[int, bool]) -> Held:
    record = Held()
    for reading, busy in readings:
        record.note(reading, busy=busy)
    return record


def test_the_first_rest_is_what_it_holds_when_fresh() -> None:
    """A server that needs that much from the start is not restarted: it would not help."""
    record = held((950, True), (900, False), (2000, True), (900, False))
    assert (record.fresh, record.swing) == (900, 1100)
    assert not record.is_too_much(LIMIT)


def test_growth_counts_with_the_swing_of_a_job() -> None:
    """What matters is the peak of the next job, not the rest between two."""
    grown = held((300, False), (600, True), (300, False), (600, False))
    assert (grown.rest, grown.swing) == (600, 300)
    assert not grown.is_too_much(LIMIT)
    grown.note(750, busy=False)
    assert grown.is_too_much(LIMIT)


def test_what_every_job_keeps_the_next_one_keeps_too() -> None:
    """A leak is foreseen; what was kept once was perhaps another model."""
    record = held((300, False))
    for rest in (700, 720, 940):
        record.note(rest, busy=False, worked=True)
    assert (record.kept, record.next_peak) == ((220, 20), 960)
    record.note(990, busy=False, worked=True)
    assert record.next_peak == 1040
    record.note(940, busy=False)
    assert record.is_too_much(LIMIT - 11)
    assert not record.is_too_much(LIMIT)


def test_nothing_is_too_much_before_the_first_rest() -> None:
    """A model that is being loaded is no leak."""
    assert not held((5000, True)).is_too_much(LIMIT)


class Watched:
    """Pressure beside a gate, and a process whose memory a test sets."""

    def __init__(self) -> None:
        self.process, self.metrics = FakeProcess(), Metrics()
        self.gate = Gate(FakeEngine())
        self.pressure = Pressure(self.gate, self.process, self.metrics, LIMIT)
        self.process.held = 300

    async def during(self, body: Coroutine[Any, Any, T]) -> T:
        self.gate.open("starting")
        return await run_guarded(body, self.pressure.run())

    async def case(self) -> Case | None:
        """The upkeep asked for within two minutes."""
        try:
            async with asyncio.timeout(120):
                return await self.gate.case()
        except TimeoutError:
            return None


@virtual
async def test_a_leak_leads_to_upkeep_between_jobs() -> None:
    """The gate is closed, and the engine service is asked once."""
    watched = Watched()

    async def leak() -> tuple[bool, bool]:
        await elapse(15)
        async with watched.gate.turn():
            watched.process.held = 1200
            await elapse(30)
            asked_while_busy = not watched.gate.is_open
        case = await watched.case()
        assert case is not None
        assert case.relieved is not None
        assert case.reason == "engine_memory"
        assert await watched.case() is None
        return asked_while_busy, watched.gate.is_open

    assert await watched.during(leak()) == (False, False)
    assert watched.metrics.value(ENGINE_MEMORY_BYTES) == 1200


@virtual
async def test_memory_that_is_given_back_needs_no_restart() -> None:
    """Freeing is measured, not believed."""
    watched = Watched()

    async def leak(after: int) -> bool:
        await elapse(15)
        watched.process.held = 1200
        case = await watched.case()
        assert case is not None
        assert case.relieved is not None
        watched.process.held = after
        return await case.relieved()

    assert await watched.during(leak(300))
    assert not await Watched().during(_unrelieved())


async def _unrelieved() -> bool:
    watched = Watched()

    async def leak() -> bool:
        await elapse(15)
        watched.process.held = 1200
        case = await watched.case()
        assert case is not None
        assert case.relieved is not None
        return await case.relieved()

    return await watched.during(leak())


@virtual
async def test_after_upkeep_it_is_measured_anew() -> None:
    """What the restarted server holds is its new fresh level; a higher one is no growth."""
    watched = Watched()

    async def twice() -> Case | None:
        await elapse(15)
        watched.process.held = 1200
        case = await watched.case()
        assert case is not None
        assert case.relieved is not None
        assert not await case.relieved()
        watched.gate.open("engine")
        await elapse(60)
        return await watched.case()

    assert await watched.during(twice()) is None
    assert watched.pressure.held.fresh == 1200


@virtual
async def test_between_two_turns_it_is_looked_once_a_second() -> None:
    """So that short jobs are not held up by it; with the engine at rest, which nobody else may use meanwhile."""
    watched = Watched()
    readings: list[tuple[float, bool]] = []
    memory = watched.process.memory

    def counted() -> int | None:
        readings.append((loop.time(), watched.gate.in_use))
        return memory()

    async def work() -> None:
        for _ in range(40):
            async with watched.gate.turn():
                await elapse(0.1)

    loop = asyncio.get_running_loop()
    watched.gate.open("starting")
    watched.process.memory = counted  # type: ignore[method-assign]
    await work()
    assert len(readings) == 4
    assert all(in_use for _, in_use in readings)


@virtual
async def test_a_restart_begins_a_new_account() -> None:
    """Whoever restarted it, and for what reason: its fresh level is learned again."""
    lives = [0]
    watched = Watched()
    watched.pressure = Pressure(watched.gate, watched.process, watched.metrics, LIMIT, lives=lambda: lives[0])

    async def restart() -> int | None:
        await elapse(15)
        lives[0], watched.process.held = 1, 600
        await elapse(15)
        return watched.pressure.held.fresh

    assert await watched.during(restart()) == 600


@virtual
async def test_a_process_that_cannot_be_measured_is_left_alone() -> None:
    """No reading, no verdict."""
    watched = Watched()
    watched.process.held = None
    assert await watched.during(watched.case()) is None
