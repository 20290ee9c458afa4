"""A server of ours and the jobs that break it, in virtual time: who is charged, and when the node is given up."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

import pytest
from structlog.testing import capture_logs

from tests.support.fakes import FakeEngine, FakeProcess, Trouble
from tests.support.virtual import elapse, virtual
from tests.support.world import World
from worker.engines.base import Output, Reach, Work
from worker.errors import EngineCrashed, EngineOutOfMemory, EngineStalled, GpuFault
from worker.live import Hop
from worker.metrics import ENGINE_FAULTS, ENGINE_RESTARTS
from worker.recovery import IDLE_CANARY_S
from worker.status import Phase
from worker.supervisor import ExitCode

MINUTE = 60.0


class Always(deque[Trouble]):
    """A trouble that a prompt meets whenever it is tried."""

    def popleft(self) -> Trouble:
        return self[0]


def owning(**changes: object) -> World:
    """A worker that owns its server; each start makes the server work again."""
    world = World(process=FakeProcess(owned=True), **changes)  # type: ignore[arg-type]
    world.process.on_start = lambda: setattr(world.engine, "reach", Reach.READY)
    return world


def crashing(world: World) -> Callable[[FakeEngine, Work], Output]:
    """A generation that takes the server's process down."""

    def crash(engine: FakeEngine, work: Work) -> Output:
        world.process.die("crashed with SIGSEGV")
        raise EngineCrashed("the connection broke")

    return crash


class Told:
    """What a server has printed."""

    def __init__(self, *lines: str) -> None:
        self.lines = list(lines)

    def mark(self) -> int:
        return len(self.lines)

    def since(self, mark: int) -> tuple[str, ...]:
        return tuple(self.lines[mark:])


@pytest.mark.parametrize("code", ["engine_oom", "engine_lost"])
@virtual
async def test_one_users_impossible_jobs_never_cost_the_node(code: str) -> None:
    """Ten jobs that always run out of memory, or always crash the server, among ten of another user."""
    world = owning()
    trouble: Trouble = EngineOutOfMemory() if code == "engine_oom" else crashing(world)
    bad, good = [f"bad-{number}" for number in range(10)], [f"good-{number}" for number in range(10)]
    for job in bad:
        world.engine.troubles[job] = Always([trouble])
    async with world.running() as process:
        for pair in zip(bad, good, strict=True):
            await world.submit(*pair)
        await world.ended(*bad, *good)
        assert not process.done()
        assert {await world.status_of(job) for job in good} == {"done"}
        assert {await world.code(job) for job in bad} == {"engine_oom" if code == "engine_oom" else "delivery_limit"}
        wanted = [(code, True)] * 3 if code == "engine_oom" else [(code, False)] * 9
        assert {tuple((await world.ends(job))[: len(wanted)]) for job in bad} == {tuple(wanted)}
        charges = [charged for job in good for _, charged in await world.ends(job)]
        assert not any(charges)
    restarts = world.metrics.value(ENGINE_RESTARTS, reason=code)
    assert restarts == world.process.lives - 1 == (30 if code == "engine_oom" else 100)


@virtual
async def test_a_node_is_given_up_after_as_many_failed_warm_ups_as_are_borne() -> None:
    """Not one more: exit 75, after restarts with growing pauses, and the job that met the fault is not charged."""
    world = owning()
    async with world.running() as process:
        await world.until(lambda: world.status.phase is Phase.READY)
        world.engine.canary_troubles = Always([GpuFault()])
        world.engine.trouble("a", GpuFault())
        await world.submit("a")
        await asyncio.wait({process})
        assert await world.ends("a") == [("gpu_fault", False)]
    assert process.result() is ExitCode.GIVEN_UP
    assert world.engine.canaries == 1 + 5
    assert world.metrics.value(ENGINE_RESTARTS, reason="gpu_fault") == 1
    assert world.metrics.value(ENGINE_RESTARTS, reason="warm_up_failed") == 4


@virtual
async def test_a_verdict_is_given_while_the_worker_drains() -> None:
    """A job that asked before the drain hears the answer within it: restart and canary go on."""
    world = owning()
    world.engine.trouble("a", EngineOutOfMemory(), EngineOutOfMemory())
    async with world.running() as process:
        await world.submit("a")
        await world.until(lambda: world.process.lives == 1)
        world.process.on_start = lambda: setattr(world.engine, "reach", Reach.PORT_CLOSED)
        await world.until(lambda: world.process.lives == 2)
        world.supervisor.stop()
        await world.until(lambda: world.status.phase is Phase.DRAINING)
        world.engine.reach = Reach.READY
        await asyncio.wait({process})
        assert await world.ends("a") == [("engine_oom", True)]
        assert world.gate.is_open
    assert process.result() is ExitCode.CLEAN
    assert Phase.WAITING_FOR_ENGINE not in world.status.story[world.status.story.index(Phase.DRAINING) :]


@virtual
async def test_a_server_that_dies_while_the_worker_drains_is_not_mourned() -> None:
    """The job goes back uncharged, the probes go on to say draining, and the end is a clean one."""
    world = owning()
    world.engine.seconds = 10
    async with world.running() as process:
        await world.submit("a")
        await world.at(Hop.GENERATE, "a")
        world.engine.trouble("a", crashing(world))
        world.supervisor.stop()
        await asyncio.wait({process})
        assert await world.ends("a") == [("engine_lost", False)]
    assert process.result() is ExitCode.CLEAN
    assert world.status.story[-2:] == [Phase.DRAINING, Phase.STOPPED]


@virtual
async def test_who_waits_for_a_verdict_hears_that_the_node_is_given_up() -> None:
    """A server that never comes back decides it; the job is given back then, and not at the end of the drain."""
    world = owning(drain_s=600.0)
    async with world.running() as process:
        await world.until(lambda: world.status.phase is Phase.READY)
        world.process.on_start = lambda: setattr(world.engine, "reach", Reach.PORT_CLOSED)
        world.engine.trouble("a", EngineOutOfMemory(), EngineOutOfMemory())
        await world.submit("a")
        await asyncio.wait({process})
        assert 20 * MINUTE < asyncio.get_running_loop().time() < 21 * MINUTE
        assert await world.ends("a") == [("engine_oom", False)]
    assert process.result() is ExitCode.GIVEN_UP


@virtual
async def test_only_what_the_present_server_printed_explains_its_fault() -> None:
    """The last words of the one before it would mislead."""
    world, said = owning(), Told()
    world.process.log = said
    world.process.on_start = lambda: said.lines.append(f"life {world.process.lives}")
    with capture_logs() as events:
        async with world.running():
            for life in (1, 2):
                await world.until(lambda: world.status.phase is Phase.READY)
                said.lines.append(f"last words {life}")
                world.process.die("crashed with SIGSEGV")
                await world.until(lambda: world.status.phase is not Phase.READY)
            await world.until(lambda: world.status.phase is Phase.READY)
    found = [event for event in events if event["event"] == "engine_fault_found"]
    assert [event["lines"] for event in found] == [["life 1", "last words 1"], ["life 2", "last words 2"]]
    assert {event["end"] for event in found} == {"crashed with SIGSEGV"}


@virtual
async def test_a_restart_is_counted_once_however_often_it_is_tried() -> None:
    """A system that cannot start a process for a while has not started one."""
    world = owning()
    async with world.running():
        await world.until(lambda: world.status.phase is Phase.READY)
        world.process.start_errors.extend([EngineCrashed("no memory")] * 3)
        world.process.die()
        await world.until(lambda: world.process.lives == 2)
        await world.until(lambda: world.status.phase is Phase.READY)
    assert world.metrics.value(ENGINE_RESTARTS, reason="engine_lost") == 1


@virtual
async def test_an_idle_server_that_makes_no_pictures_any_more_costs_no_job_anything() -> None:
    """Its canary finds it after a quarter of an hour; a job that comes meanwhile waits for the restart."""
    world = owning()
    async with world.running():
        await world.until(lambda: world.status.phase is Phase.READY)
        world.engine.canary_troubles.append(EngineStalled())
        await elapse(IDLE_CANARY_S - 10)
        await world.until(lambda: not world.engine.canary_troubles, 30)
        await world.submit("a")
        await world.ended("a")
        assert await world.ends("a") == [("succeeded", False)]
    assert world.metrics.value(ENGINE_RESTARTS, reason="engine_stalled") == 1
    assert world.metrics.value(ENGINE_FAULTS, code="engine_stalled") == 1
