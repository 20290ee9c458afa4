"""Accepting work: one receive at a time, orders passed on, and back-off that an end to the wait cuts short."""

from __future__ import annotations

import asyncio

import pytest

from tests.support.mixes import Hostages
from tests.support.virtual import elapse, virtual
from tests.support.world import World
from worker.intake import BACK_OFF_FIRST_S
from worker.live import Hop
from worker.mentions import Place
from worker.node import Orders
from worker.queues.base import Received
from worker.status import Phase
from worker.tasks import cancel_all

FAR = Place("checkpoint", "far.safetensors")


@virtual
async def test_orders_to_cancel_reach_the_jobs_held() -> None:
    """They come with a receive, beside a delivery or without one."""
    world = World()
    world.engine.delays[Hop.GENERATE, "a"] = 100
    real = world.link.receive
    orders: list[Orders] = []

    async def receive() -> Received:
        if orders:
            return Received(orders=orders.pop())
        return await real()

    world.link.receive = receive  # type: ignore[method-assign]
    async with world.running():
        await world.submit("a")
        await world.at(Hop.GENERATE, "a")
        orders.append(Orders(cancel=("a", "unknown")))
        await world.ended("a")
        assert await world.code("a") == "cancelled"


@virtual
async def test_a_queue_that_is_away_is_asked_twice_and_then_only_probed() -> None:
    """Two failures pause the intake; from then on the watch asks, ever more rarely."""
    world = World()
    asked: list[float] = []
    real = world.link.receive

    async def receive() -> Received:
        asked.append(asyncio.get_running_loop().time())
        return await real()

    world.link.receive = receive  # type: ignore[method-assign]
    async with world.running():
        await world.until(lambda: world.status.phase is Phase.READY)
        await elapse(10)
        world.link.away, before = True, len(asked)
        await elapse(300)
        first, second = asked[before:]
        assert BACK_OFF_FIRST_S / 2 <= second - first <= BACK_OFF_FIRST_S
        assert world.status.phase is Phase.PAUSED


@virtual
async def test_a_drain_does_not_wait_for_the_end_of_a_back_off() -> None:
    """The pause before the next try is cut short."""
    world = World()
    async with world.running() as process:
        await world.until(lambda: world.status.phase is Phase.READY)
        world.link.away = True
        await world.until(lambda: world.status.phase is Phase.PAUSED)
        began = asyncio.get_running_loop().time()
        world.supervisor.stop()
        await asyncio.wait({process})
        assert asyncio.get_running_loop().time() - began < 0.5


@virtual
async def test_a_drain_leaves_nothing_leased_by_a_receive_under_way() -> None:
    """The pending receive is given up before the drain is over."""
    world = World()
    async with world.running() as process:
        await world.until(lambda: world.status.phase is Phase.READY)
        await elapse(0.5)
        world.supervisor.stop()
        await asyncio.wait({process})
        await world.submit("a")
        await elapse(10)
        assert await world.status_of("a") == "waiting"


@pytest.mark.parametrize("capacity", [1, 2])
@virtual
async def test_the_capacity_of_a_queue_bounds_all_that_is_out(capacity: int) -> None:
    """Salad hands out one job at a time: no other is asked for while one is stored, or waits for its model."""
    world = World(window=5)
    world.link.capacity = capacity
    world.models.held[FAR] = asyncio.Event()
    world.storage.seconds = 1.0
    jobs = [f"job-{n}" for n in range(6)]
    hostages = Hostages()
    async with world.running():
        watching = asyncio.create_task(hostages.watch(world.live), name="hostages")
        await world.submit("far", checkpoint=FAR.name)
        await world.at(Hop.MODELS, "far")
        await world.submit(*jobs)
        await elapse(60)
        assert len(world.engine.generated) == (0 if capacity == 1 else len(jobs))
        world.models.held[FAR].set()
        await world.ended("far", *jobs)
        await cancel_all({watching})
    assert max(hostages.held) == capacity


@virtual
async def test_a_queue_that_pushes_is_left_while_the_worker_is_not_ready() -> None:
    """Before the first READY, in a pause, and for the drain; each receive after that is a new beginning."""
    world = World()
    left: list[Phase] = []
    real = world.link.receive

    async def receive() -> Received:
        left.clear()
        return await real()

    world.link.receive = receive  # type: ignore[method-assign]
    world.link.leave = lambda: left.append(world.status.phase)  # type: ignore[attr-defined]
    async with world.running() as process:
        await world.until(lambda: world.status.phase is Phase.READY)
        await elapse(1)
        assert left == []
        world.link.away = True
        await world.until(lambda: world.status.phase is Phase.PAUSED)
        await elapse(2 * BACK_OFF_FIRST_S)
        assert set(left) == {Phase.PAUSED}
        world.link.away = False
        await world.until(lambda: world.status.phase is Phase.READY)
        await world.until(lambda: not left)
        world.supervisor.stop()
        await asyncio.wait({process})
        assert left != []
