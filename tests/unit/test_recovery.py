"""What is done about each fault of the server: restart or canary, and when the node is given up."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Coroutine
from datetime import timedelta
from typing import Any, TypeVar

import pytest

from tests.support.fakes import FakeEngine, FakeInputs, FakeProcess
from tests.support.virtual import VirtualClock, elapse, virtual
from worker.clock import CorrectedClock
from worker.engines.base import Reach
from worker.errors import (
    ConfigError,
    EngineCrashed,
    EngineOutOfMemory,
    EngineStalled,
    GpuFault,
    OutputEmpty,
    WorkerError,
)
from worker.gate import Gate, Verdict
from worker.job import Limits
from worker.metrics import ENGINE_FAULTS, ENGINE_RESTARTS, Metrics
from worker.models.none import NoCache
from worker.node import NodeUnfit
from worker.recovery import IDLE_CANARY_S, EngineService, Patience
from worker.settings.units import Rate
from worker.status import Phase, Status
from worker.tasks import run_guarded
from worker.warmup import DEFAULT, Canary, canary_job

T = TypeVar("T")
owned = pytest.mark.parametrize("owned", [True, False], ids=["ours", "another's"])


Timing = Callable[[Callable[[], Awaitable[None]]], Awaitable[None]]


async def untimed(canary: Callable[[], Awaitable[None]]) -> None:
    """Nobody asks how fast the server is."""


class Service:
    """An engine service and what stands around it."""

    def __init__(self, *, owned: bool = True, restarts: int = 3, never: bool = False, timing: Timing = untimed) -> None:
        self.engine, self.status, self.process = FakeEngine(), Status(), FakeProcess(owned=owned)
        self.gate, self.metrics = Gate(self.engine), Metrics()
        self.inputs = FakeInputs(CorrectedClock(VirtualClock()))
        self.service = EngineService(
            self.gate,
            Canary(canary_job(json.dumps(DEFAULT).encode(), Limits()), self.inputs, NoCache(), timedelta(seconds=30)),
            self.process,
            self.status,
            self.metrics,
            patience=Patience(timedelta(minutes=1), Rate(restarts, timedelta(minutes=10)), never=never),
            warm_at_start=True,
            on_ready=lambda: None,
            after_warm_up=timing,
        )

    @property
    def canaries(self) -> int:
        return self.engine.canaries

    async def during(self, body: Coroutine[Any, Any, T]) -> T:
        """Run it beside the body, which it must not outlive or fail."""
        try:
            return await run_guarded(body, self.service.run())
        finally:
            await self.inputs.aclose()

    async def recovered(self) -> None:
        """Until a fault was noticed and attended to."""
        while self.status.phase is Phase.READY:
            await self.status.changed()
        await self.status.reached(Phase.READY)


async def faulted(service: Service, error: WorkerError) -> None:
    await service.status.reached(Phase.READY)
    service.gate.fault(error)
    await service.recovered()


@virtual
@owned
async def test_our_server_is_started_and_anothers_is_not(owned: bool) -> None:
    """A command means that the process is ours."""
    service = Service(owned=owned)
    await service.during(service.status.reached(Phase.READY))
    assert service.process.lives == (1 if owned else 0)
    assert service.metrics.value(ENGINE_RESTARTS, reason="engine_lost") == 0


@virtual
@pytest.mark.parametrize("error", [EngineStalled(), GpuFault(), EngineOutOfMemory()], ids=lambda e: e.code)
@owned
async def test_some_faults_leave_only_a_restart(error: WorkerError, owned: bool) -> None:
    """A stuck server, a dead GPU context, memory that ran out twice; another's server can only be tried again."""
    service = Service(owned=owned)
    await service.during(faulted(service, error))
    assert service.process.lives == (2 if owned else 0)
    assert service.process.stops == (1 if owned else 0)
    assert service.metrics.value(ENGINE_RESTARTS, reason=error.code) == (1 if owned else 0)
    assert service.canaries == 2


@virtual
async def test_a_lost_connection_alone_is_no_reason_for_a_restart() -> None:
    """The process runs and its port is open: the canary tells."""
    service = Service()
    await service.during(faulted(service, EngineCrashed("the connection broke")))
    assert (service.process.lives, service.canaries) == (1, 2)


@virtual
async def test_a_server_that_runs_but_closed_its_port_is_restarted() -> None:
    """Nobody waits for the end of its start timeout."""
    service = Service()
    service.process.on_start = lambda: setattr(service.engine, "reach", Reach.READY)

    async def close() -> None:
        await service.status.reached(Phase.READY)
        service.engine.reach = Reach.PORT_CLOSED
        service.gate.fault(EngineCrashed("refused"))
        await service.recovered()
        assert asyncio.get_running_loop().time() < 30

    await service.during(close())
    assert service.process.lives == 2


@virtual
async def test_a_process_that_ends_while_idle_is_noticed_at_once_and_started_again() -> None:
    """Its end itself tells; no poll is waited for."""
    service = Service()

    async def die() -> None:
        await service.status.reached(Phase.READY)
        now = asyncio.get_running_loop().time()
        service.process.die()
        await service.recovered()
        assert asyncio.get_running_loop().time() - now < 4

    await service.during(die())
    assert service.process.lives == 2
    assert service.metrics.value(ENGINE_FAULTS, code="engine_lost") == 1
    assert service.metrics.value(ENGINE_RESTARTS, reason="engine_lost") == 1


@virtual
async def test_ten_deaths_are_survived_when_every_warm_up_passes() -> None:
    """Only restarts whose warm-up failed too count against the node."""
    service = Service(restarts=2)

    async def die() -> None:
        for _ in range(10):
            await service.status.reached(Phase.READY)
            service.process.die()
            await service.recovered()

    await service.during(die())
    assert service.process.lives == 11
    assert service.service.restarts == 10


@virtual
async def test_a_server_that_ends_while_starting_is_started_again_with_pauses_and_then_given_up() -> None:
    """So often as the operator bears it, the pauses growing."""
    service = Service(restarts=3)
    service.engine.reach = Reach.PORT_CLOSED
    service.process.on_start = lambda: service.process.die("exit code 1")
    with pytest.raises(NodeUnfit, match="the warm-up failed 3 times"):
        await service.service.run()
    assert service.process.lives == 3
    assert asyncio.get_running_loop().time() >= 15
    await service.inputs.aclose()


@virtual
async def test_a_failed_canary_makes_the_node_unfit_and_restarts_its_server() -> None:
    """The job goes to another node while this one is repaired."""
    service = Service()

    async def ask() -> Verdict:
        await service.status.reached(Phase.READY)
        service.engine.canary_troubles.append(OutputEmpty())
        verdict = await service.gate.verdict(OutputEmpty())
        await service.status.reached(Phase.WARMING_UP)
        await service.status.reached(Phase.READY)
        return verdict

    assert await service.during(ask()) is Verdict.UNFIT
    assert service.process.lives == 2
    assert service.metrics.value(ENGINE_RESTARTS, reason="warm_up_failed") == 1


@virtual
async def test_a_node_that_may_fail_once_is_given_up_at_once() -> None:
    """The recovery that a fault led to counts like those after it."""
    service = Service(restarts=1)

    async def fail() -> None:
        await service.status.reached(Phase.READY)
        service.engine.canary_troubles.append(GpuFault())
        service.gate.fault(GpuFault())
        await service.recovered()

    with pytest.raises(NodeUnfit, match="the warm-up failed 1 times, at last: gpu_fault"):
        await service.during(fail())
    assert service.canaries == 2


@virtual
async def test_a_restart_waits_for_the_generation_that_runs() -> None:
    """A verdict that one job asks for does not cost another its picture."""
    service = Service()
    stops: list[int] = []

    async def generate() -> None:
        async with service.gate.turn():
            await elapse(20)
            stops.append(service.process.stops)

    async def ask() -> None:
        await service.status.reached(Phase.READY)
        running = asyncio.create_task(generate(), name="generation")
        await elapse(1)
        assert await service.gate.verdict(EngineOutOfMemory()) is Verdict.FIT
        await running

    await service.during(ask())
    assert stops == [0]
    assert service.process.stops == 1


@virtual
async def test_an_idle_server_that_makes_no_pictures_is_found() -> None:
    """It answers HTTP, so only a canary tells; then it is restarted."""
    service = Service()

    async def wait() -> None:
        await service.status.reached(Phase.READY)
        service.engine.canary_troubles.append(EngineStalled())
        await service.recovered()
        assert asyncio.get_running_loop().time() >= IDLE_CANARY_S

    await service.during(wait())
    assert service.process.lives == 2


@virtual
async def test_an_idle_server_that_works_stays_ready() -> None:
    """Its canary is no event."""
    service = Service()

    async def wait() -> None:
        await service.status.reached(Phase.READY)
        await elapse(IDLE_CANARY_S * 3)

    await service.during(wait())
    assert service.status.phase is Phase.READY
    assert service.canaries >= 3
    assert service.process.lives == 1


@virtual
async def test_a_command_that_cannot_run_is_a_mistake_at_the_start_only() -> None:
    """Later on it counts as a failed recovery."""
    service = Service()
    service.process.start_errors.append(ConfigError("no such command"))
    with pytest.raises(ConfigError):
        await service.service.run()
    await service.inputs.aclose()
    later = Service(restarts=2)

    async def vanish() -> None:
        await later.status.reached(Phase.READY)
        later.process.start_errors.append(ConfigError("no such command"))
        later.process.die()
        await later.recovered()

    await later.during(vanish())
    assert later.process.lives == 2


@virtual
async def test_a_port_that_is_anothers_is_a_mistake() -> None:
    """A server that moved to the next port, or one that somebody else runs, is never driven by accident."""
    service = Service()
    service.process.strange = "port 7860 is held by nginx (pid 12)"
    with pytest.raises(ConfigError, match="nginx"):
        await service.service.run()
    await service.inputs.aclose()


@virtual
async def test_never_stays() -> None:
    """`WORKER_GIVE_UP=never`: it tries for ever, not ready."""
    service = Service(restarts=1, never=True)
    service.engine.reach = Reach.PORT_CLOSED
    service.process.on_start = lambda: service.process.die("exit code 1")
    await service.during(elapse(3600))
    assert service.process.lives > 10
    assert not service.status.was_ready


@virtual
async def test_a_server_of_another_kind_is_a_mistake_and_not_waited_for() -> None:
    """It answers, but will never answer as the configured one; one that is starting is waited for."""
    service = Service(owned=False)
    service.engine.reach = Reach.ROUTES_MISSING
    answers: list[WorkerError] = [EngineCrashed("not yet")]

    async def prepare() -> None:
        if answers:
            raise answers[0]

    service.engine.prepare = prepare  # type: ignore[method-assign]

    async def start() -> None:
        await elapse(30)
        assert service.status.phase is Phase.WAITING_FOR_ENGINE
        answers.clear()
        service.engine.reach = Reach.READY
        await service.status.reached(Phase.READY)

    await service.during(start())
    other = Service(owned=False)
    other.engine.reach = Reach.ROUTES_MISSING
    answers.append(ConfigError("WORKER_ENGINE: is fooocus, but SD.Next answers"))
    other.engine.prepare = prepare  # type: ignore[method-assign]
    with pytest.raises(ConfigError, match="answers"):
        await other.service.run()
    assert asyncio.get_running_loop().time() < 90
    await other.inputs.aclose()


@virtual
async def test_the_warmed_up_server_is_timed_before_the_first_ready_alone() -> None:
    """By further canaries; a later recovery judges the server, not the node."""
    timed = 0

    async def time(canary: Callable[[], Awaitable[None]]) -> None:
        nonlocal timed
        timed += 1
        assert not service.status.was_ready
        await canary()

    service = Service(timing=time)
    await service.during(faulted(service, EngineStalled()))
    assert (timed, service.canaries) == (1, 3)


@virtual
async def test_a_node_that_is_too_slow_is_given_up_before_it_is_ready() -> None:
    """What judges it after the warm-up ends the service."""

    async def slow(canary: Callable[[], Awaitable[None]]) -> None:
        raise NodeUnfit("unfit: step 2 s, 0.5 s wanted")

    service = Service(timing=slow)
    with pytest.raises(NodeUnfit, match="step 2 s"):
        await service.service.run()
    assert not service.status.was_ready
    await service.inputs.aclose()
