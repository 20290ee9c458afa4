"""The node's own server: judged by its canary, waited for, recovered, and given up when nothing helps."""

from __future__ import annotations

import asyncio

import pytest

from tests.support.fakes import flat_output
from tests.support.virtual import elapse, virtual
from tests.support.world import World
from worker.engines.base import EngineState, Reach
from worker.errors import (
    AuthFailed,
    EngineCrashed,
    EngineOutOfMemory,
    EngineStalled,
    GpuFault,
    OutputEmpty,
    WorkerError,
)
from worker.live import Hop
from worker.status import Phase
from worker.supervisor import ExitCode

MINUTE = 60.0


@pytest.mark.parametrize(("flat", "warnings"), [("canary", ("output_flat",)), ("off", ())])
@virtual
async def test_a_flat_picture_goes_out_when_the_canary_is_fine(flat: str, warnings: tuple[str, ...]) -> None:
    """The job may have asked for it: with `canary` it carries a warning, with `off` nobody looks."""
    world = World(flat=flat)
    world.engine.trouble("a", flat_output)
    async with world.running():
        await world.submit("a")
        await world.ended("a")
    result = world.storage.results()["a"]
    assert (result.status, result.warnings) == ("succeeded", warnings)
    assert world.engine.prepared == (2 if flat == "canary" else 1)


@virtual
async def test_a_flat_picture_fails_the_job_where_the_operator_wants_it() -> None:
    """With `fail` each is a charged attempt, and the last one is rejected."""
    world = World(flat="fail")
    world.engine.trouble("a", *[flat_output] * 3)
    async with world.running():
        await world.submit("a")
        await world.ended("a")
        assert await world.ends("a") == [("output_flat", True)] * 3
        assert await world.code("a") == "output_flat"
    assert world.storage.results() == {}


@virtual
async def test_a_flat_picture_is_the_nodes_fault_when_the_canary_is_flat_too() -> None:
    """Given back uncharged; the gate stays closed until a warm-up passes; nothing flat is ever stored."""
    world = World()
    async with world.running():
        await world.until(lambda: world.status.phase is Phase.READY)
        world.engine.trouble("a", flat_output)
        world.engine.canary_troubles.extend([flat_output, flat_output])
        await world.submit("a", "b")
        await world.ended("a", "b")
        assert ("output_flat", False) in await world.ends("a")
    assert {result.warnings for result in world.storage.results().values()} == {()}


@virtual
async def test_a_job_does_not_wait_long_for_an_engine_that_stays_away() -> None:
    """After a minute behind the closed gate it goes back uncounted, so that another node can do it."""
    world = World()
    async with world.running():
        await world.until(lambda: world.status.phase is Phase.READY)
        world.engine.trouble("a", EngineCrashed())
        await world.submit("a")
        await world.at(Hop.GENERATE, "a")
        await world.submit("b")
        await world.at(Hop.WAITING, "b")
        world.engine.reach = Reach.PORT_CLOSED
        await world.until(lambda: not world.gate.is_open)
        closed_at = asyncio.get_running_loop().time()
        await world.until(lambda: not list(world.live))
        assert 59 < asyncio.get_running_loop().time() - closed_at < 62
        assert ("draining", False) in await world.ends("b")
        world.engine.reach = Reach.READY
        await world.ended("a", "b")


@virtual
async def test_out_of_memory_again_is_charged_when_the_canary_passes() -> None:
    """Freed, tried once more, judged: the job is too large for this GPU, at every attempt."""
    world = World()
    world.engine.trouble("a", *[EngineOutOfMemory()] * 6)
    async with world.running():
        await world.submit("a")
        await world.ended("a")
        assert await world.ends("a") == [("engine_oom", True)] * 3
    assert world.engine.freed == 3


@pytest.mark.parametrize("error", [EngineCrashed(), EngineStalled(), GpuFault()], ids=lambda error: error.code)
@virtual
async def test_an_engine_fault_closes_the_gate_until_a_warm_up_passes(error: WorkerError) -> None:
    """Jobs behind it wait, are not charged and are done once the server proved itself."""
    world = World()
    async with world.running():
        await world.until(lambda: world.status.phase is Phase.READY)
        world.engine.trouble("a", error)
        world.engine.canary_troubles.extend([EngineCrashed(), OutputEmpty()])
        await world.submit("a", "b")
        await world.until(lambda: not world.status.ready().ok)
        assert not world.gate.is_open
        await world.ended("a", "b")
        ends = await world.ends("a") + await world.ends("b")
    assert not any(charged for _, charged in ends)
    assert world.engine.prepared == 4
    assert world.metrics.value("sd_worker_engine_faults_total", code=error.code) == 1


@virtual
async def test_a_server_that_goes_while_nobody_uses_it_is_noticed() -> None:
    """Not ready within seconds, with the reason; ready again after a warm-up."""
    world = World()
    async with world.running():
        await world.until(lambda: world.status.phase is Phase.READY)
        world.engine.reach = Reach.ROUTES_MISSING
        await world.until(lambda: world.status.phase is Phase.WAITING_FOR_ENGINE, 15)
        await elapse(3)
        assert world.status.ready().reasons == ("engine_routes_missing",)
        assert world.status.startup().ok
        world.engine.reach = Reach.READY
        await world.until(lambda: world.status.ready().ok, 10)
    assert world.engine.prepared == 2


@virtual
async def test_each_way_of_not_being_there_is_named_while_it_is_waited_for() -> None:
    """Port closed, routes missing and model not loaded are three waits, readable at `/startup`."""
    world = World()
    seen: list[str] = []
    world.engine.reach = Reach.PORT_CLOSED
    async with world.running():
        for reach in (Reach.PORT_CLOSED, Reach.ROUTES_MISSING, Reach.MODEL_NOT_LOADED):
            world.engine.reach = reach
            await elapse(3)
            seen += world.status.startup().reasons
        world.engine.reach = Reach.READY
        await world.until(lambda: world.status.startup().ok)
    assert seen == ["engine_port_closed", "engine_routes_missing", "engine_model_not_loaded"]


@virtual
async def test_a_server_that_never_comes_gives_the_node_up_as_never_ready() -> None:
    """Exit 69, after the start timeout and not before."""
    world = World()
    world.engine.reach = Reach.PORT_CLOSED
    async with world.running() as process:
        await asyncio.wait({process})
        assert 20 * MINUTE <= asyncio.get_running_loop().time() < 21 * MINUTE
    assert process.result() is ExitCode.NEVER_READY


@virtual
async def test_a_server_whose_warm_up_keeps_failing_gives_the_node_up() -> None:
    """Exit 75 once it had been ready; the job that met the fault is given back uncharged."""
    world = World()
    async with world.running() as process:
        await world.until(lambda: world.status.phase is Phase.READY)
        world.engine.trouble("a", EngineCrashed())
        world.engine.canary_troubles.extend([GpuFault()] * 20)
        await world.submit("a", "b")
        await asyncio.wait({process})
        assert not any(charged for _, charged in await world.ends("a") + await world.ends("b"))
        assert {await world.status_of(one) for one in ("a", "b")} <= {"waiting", "delayed"}
    assert process.result() is ExitCode.GIVEN_UP


@virtual
async def test_a_node_that_may_never_be_given_up_stays_unready() -> None:
    """`never`: hours later it still tries, and recovers."""
    world = World(never=True)
    world.engine.reach = Reach.PORT_CLOSED
    async with world.running() as process:
        await elapse(180 * MINUTE)
        assert not process.done()
        world.engine.canary_troubles.extend([GpuFault()] * 20)
        world.engine.reach = Reach.READY
        await world.until(lambda: world.status.phase is Phase.READY)


@virtual
async def test_refused_credentials_of_the_server_end_the_start_as_a_mistake_of_configuration() -> None:
    """Exit 64 before the first READY."""
    world = World()

    async def refused() -> EngineState:
        raise AuthFailed("401")

    world.engine.look = refused  # type: ignore[method-assign]
    async with world.running() as process:
        await asyncio.wait({process})
    assert process.result() is ExitCode.CONFIG


@virtual
async def test_a_service_that_breaks_drains_and_ends_as_an_internal_failure() -> None:
    """Exit 70; `/live` says so meanwhile, and the job in hand is finished."""

    async def breaks() -> None:
        await elapse(60)
        raise RuntimeError("a bug")

    world = World(services={"flawed": breaks})
    async with world.running() as process:
        await world.until(lambda: world.status.phase is Phase.READY)
        await elapse(57)
        world.engine.seconds = 5
        await world.submit("a")
        await world.until(lambda: world.status.phase is Phase.DRAINING)
        assert world.status.live().reasons == ("service-flawed_broke",)
        await asyncio.wait({process})
        assert await world.status_of("a") == "done"
    assert process.result() is ExitCode.INTERNAL


@virtual
async def test_a_service_that_returns_is_over_and_nothing_more() -> None:
    """The worker goes on without it."""

    async def brief() -> None:
        await elapse(1)

    world = World(services={"brief": brief})
    async with world.running() as process:
        await world.submit("a")
        await world.ended("a")
        assert not process.done()
    assert process.result() is ExitCode.CLEAN


@virtual
async def test_an_idle_worker_stops_at_once_and_a_second_signal_does_not_wait() -> None:
    """The first asks for a drain, the second ends the process on the spot."""
    idle = World()
    async with idle.running() as process:
        await idle.until(lambda: idle.status.phase is Phase.READY)
        began = asyncio.get_running_loop().time()
        idle.supervisor.stop()
        await asyncio.wait({process})
        assert asyncio.get_running_loop().time() - began < 0.5
    busy = World()
    busy.engine.seconds = 20
    async with busy.running():
        await busy.submit("a")
        await busy.until(lambda: len(busy.live) == 1)
        busy.supervisor.stop()
        assert busy.exits == []
        busy.supervisor.stop()
        assert busy.exits == ["at once"]


@virtual
async def test_a_worker_asked_to_stop_before_it_was_ready_ends_cleanly() -> None:
    """SIGTERM while the server is waited for: exit 0, at once."""
    world = World()
    world.engine.reach = Reach.PORT_CLOSED
    async with world.running() as process:
        await elapse(30)
        world.supervisor.stop()
        await asyncio.wait({process})
        assert asyncio.get_running_loop().time() < 31
    assert process.result() is ExitCode.CLEAN
