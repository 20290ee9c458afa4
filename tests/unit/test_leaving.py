"""An unfit node: what it holds is given back, then it asks to be moved, and waits for that or ends by its code."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from tests.support.virtual import elapse, takes, virtual
from tests.support.world import World
from worker.live import Hop
from worker.node import NodeUnfit
from worker.status import Phase
from worker.supervisor import MOVED_WITHIN_S, ExitCode

REASON = "5 failed warm-ups in 10 minutes"
UNFIT_AT = 30.0


class Platform:
    """Moves whoever asks, or does not; ``heard`` are the reasons, ``held`` what the worker held at the time."""

    def __init__(self, *, takes: bool = True) -> None:
        self.takes = takes
        self.heard: list[str] = []
        self.held: list[int] = []
        self.world: World | None = None

    async def reallocate(self, reason: str) -> bool:
        assert self.world is not None
        self.heard.append(reason)
        self.held.append(len(self.world.live))
        await takes(1)
        return self.takes


def unfit_world(platform: Platform | None, *, ready: bool = True) -> World:
    """A worker that finds its node unfit half a minute after its start."""

    async def judged() -> None:
        await (elapse(UNFIT_AT) if ready else takes(0))
        raise NodeUnfit(REASON)

    leave: Callable[[str], Awaitable[bool]] | None = platform.reallocate if platform is not None else None
    world = World(services={"judged": judged}, leave=leave)
    if platform is not None:
        platform.world = world
    return world


@virtual
async def test_a_node_that_is_moved_waits_for_its_end_with_nothing_in_hand() -> None:
    """It is not ready, but alive; the signal that ends it is a clean end, since it is moved already."""
    platform = Platform()
    world = unfit_world(platform)
    async with world.running() as process:
        await world.status.reached(Phase.READY)
        world.engine.seconds = 1000
        await world.submit("a", "b")
        await world.at(Hop.GENERATE, "a")
        await world.until(lambda: world.status.reasons == ("reallocating",))
        assert (platform.heard, platform.held) == ([REASON], [0])
        assert [await world.status_of(job) for job in ("a", "b")] == ["waiting", "waiting"]
        assert (world.status.phase, world.status.ready().ok, world.status.live().ok) == (Phase.DRAINING, False, True)
        await elapse(60)
        assert not process.done()
        world.supervisor.stop()
        await asyncio.wait({process})
    assert process.result() is ExitCode.CLEAN
    assert world.exits == []


@virtual
async def test_a_node_that_is_not_moved_after_all_ends_by_itself() -> None:
    """A platform may say yes and do nothing."""
    platform = Platform()
    world = unfit_world(platform)
    async with world.running() as process:
        await world.until(lambda: world.status.reasons == ("reallocating",))
        began = asyncio.get_running_loop().time()
        await asyncio.wait({process})
        assert asyncio.get_running_loop().time() - began == pytest.approx(MOVED_WITHIN_S, abs=1)
    assert process.result() is ExitCode.GIVEN_UP
    assert platform.heard == [REASON]


@pytest.mark.parametrize(("ready", "code"), [(True, ExitCode.GIVEN_UP), (False, ExitCode.NEVER_READY)])
@pytest.mark.parametrize("platform", [Platform(takes=False), None], ids=["refused", "nobody to ask"])
def test_a_node_that_cannot_be_moved_ends_at_once(platform: Platform | None, ready: bool, code: ExitCode) -> None:
    """With the code of an unfit node: 69 if it was never ready, else 75."""

    @virtual
    async def story() -> None:
        world = unfit_world(platform, ready=ready)
        async with world.running() as process:
            await asyncio.wait({process})
            assert asyncio.get_running_loop().time() < UNFIT_AT + 10
        assert process.result() is code

    story()


@virtual
async def test_a_node_that_is_stopped_meanwhile_asks_for_nothing() -> None:
    """Somebody ends it anyway: nobody's time is taken up, and no machine avoided, for a move."""
    platform = Platform()
    world = unfit_world(platform)
    async with world.running() as process:
        world.storage.delays[Hop.UPLOAD, "a"] = 20.0
        await elapse(UNFIT_AT - 5)
        await world.submit("a")
        await world.until(lambda: world.status.phase is Phase.DRAINING)
        world.supervisor.stop()
        await asyncio.wait({process})
    assert platform.heard == []
    assert process.result() is ExitCode.GIVEN_UP


@virtual
async def test_a_node_that_ends_for_another_reason_is_not_moved() -> None:
    """A bug is no fault of the machine's."""

    async def breaks() -> None:
        await elapse(5)
        raise OSError("disk")

    platform = Platform()
    world = World(services={"breaks": breaks}, leave=platform.reallocate)
    platform.world = world
    async with world.running() as process:
        await asyncio.wait({process})
    assert process.result() is ExitCode.INTERNAL
    assert platform.heard == []
