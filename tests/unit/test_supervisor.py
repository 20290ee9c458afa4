"""The process around the services: signals, the drain's end, and what is left behind."""

from __future__ import annotations

import asyncio
import os
import signal

from tests.support.virtual import elapse, virtual
from tests.support.waiting import wait_until
from tests.support.world import World
from worker.engines.base import Reach
from worker.live import Hop
from worker.status import Phase
from worker.supervisor import SETTLE_GRACE_S, ExitCode


async def test_sigterm_and_sigint_ask_to_stop_and_are_given_back_afterwards() -> None:
    """One signal drains; the handlers of whoever ran us are there again."""
    for number in (signal.SIGTERM, signal.SIGINT):
        before = signal.getsignal(number)
        world = World()
        world.engine.reach = Reach.PORT_CLOSED
        async with world.running() as process:
            await wait_until(lambda world=world: world.status.phase is Phase.WAITING_FOR_ENGINE)  # type: ignore[misc]
            os.kill(os.getpid(), number)
            await asyncio.wait({process}, timeout=20)
            assert process.result() is ExitCode.CLEAN
        assert signal.getsignal(number) == before
        assert world.exits == []


async def test_a_second_signal_stops_at_once() -> None:
    """While the first one's drain is under way."""
    world = World()
    world.engine.seconds = 0.01
    world.receiver.seconds = 0.5
    async with world.running() as process:
        await world.submit("a")
        await wait_until(lambda: any(job.hop is Hop.SETTLE for job in world.live))
        os.kill(os.getpid(), signal.SIGTERM)
        await wait_until(lambda: world.status.phase is Phase.DRAINING)
        os.kill(os.getpid(), signal.SIGTERM)
        await wait_until(lambda: world.exits)
        await asyncio.wait({process}, timeout=20)
    assert world.exits == ["at once"]


@virtual
async def test_jobs_that_outlive_the_drain_are_left_to_their_leases() -> None:
    """The process ends shortly after the deadline whatever hangs; another worker gets the job."""
    world = World(drain_s=10)
    async with world.running() as process:
        world.storage.delays[Hop.UPLOAD, "a"] = 1.0
        await world.submit("a")
        await world.at(Hop.UPLOAD, "a")
        world.link.nack = _hangs  # type: ignore[method-assign]
        world.storage.seconds = 1000
        began = asyncio.get_running_loop().time()
        world.supervisor.stop()
        await asyncio.wait({process})
        assert asyncio.get_running_loop().time() - began <= 10 + SETTLE_GRACE_S + 1
        assert process.result() is ExitCode.CLEAN
        assert len(world.live) == 0
        await elapse(30)
        assert await world.status_of("a") == "waiting"


async def _hangs(*args: object, **named: object) -> None:
    await asyncio.Event().wait()


@virtual
async def test_the_first_service_to_break_decides_the_exit_code() -> None:
    """What breaks because everything ends is not asked any more."""

    async def breaks_first() -> None:
        await elapse(5)
        raise OSError("disk")

    async def breaks_later() -> None:
        await elapse(6)
        raise KeyError("too late")

    world = World(services={"first": breaks_first, "later": breaks_later})
    async with world.running() as process:
        await asyncio.wait({process})
        assert world.status.live().reasons == ("service-first_broke",)
        assert world.status.story[-2:] == [Phase.DRAINING, Phase.STOPPED]
    assert process.result() is ExitCode.INTERNAL
