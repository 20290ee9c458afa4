"""Getting a server ready: the operator's own warm-up job, the canary's limits, and skipping it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine, Mapping
from datetime import timedelta
from typing import Any, TypeVar

import pytest

from tests.support.fakes import FakeEngine, FakeInputs, FakeProcess
from tests.support.models import FakeModels
from tests.support.virtual import VirtualClock, elapse, virtual
from worker.clock import CorrectedClock
from worker.engines.base import EngineState
from worker.errors import AuthFailed, ConfigError, EngineStalled, Owner, WorkerError
from worker.gate import Gate, Verdict
from worker.job import Limits
from worker.mentions import Place
from worker.metrics import Metrics
from worker.node import NodeUnfit
from worker.recovery import EngineService, Patience
from worker.settings.units import Rate
from worker.status import Phase, Status
from worker.tasks import run_guarded
from worker.warmup import DEFAULT, Canary, canary_job

LIMITS = Limits()
T = TypeVar("T")


class Service:
    """An engine service and what stands around it."""

    def __init__(self, *, warm: bool = True, restarts: int = 2, document: Mapping[str, Any] = DEFAULT) -> None:
        self.engine, self.status, self.process = FakeEngine(), Status(), FakeProcess()
        self.gate = Gate(self.engine)
        self.ready: list[float] = []
        self.inputs = FakeInputs(CorrectedClock(VirtualClock()))
        job = canary_job(json.dumps(document).encode(), LIMITS)
        self.models = FakeModels()
        self.service = EngineService(
            self.gate,
            Canary(job, self.inputs, self.models, timedelta(seconds=30)),
            self.process,
            self.status,
            Metrics(),
            patience=Patience(timedelta(minutes=1), Rate(restarts, timedelta(minutes=10))),
            warm_at_start=warm,
            on_ready=lambda: self.ready.append(asyncio.get_running_loop().time()),
        )

    async def during(self, body: Coroutine[Any, Any, T]) -> T:
        """Run it beside the body, which it must not outlive or fail."""
        try:
            return await run_guarded(body, self.service.run())
        finally:
            await self.inputs.aclose()


@pytest.mark.parametrize("document", [b"{", b"[]", b'{"v": 2}', b'{"params": {"prompt": "x", "steps": 1000}}'])
def test_a_warm_up_that_is_no_job_is_a_mistake_of_configuration(document: bytes) -> None:
    """Told by the variable's name."""
    with pytest.raises(ConfigError, match="WORKER_WARMUP"):
        canary_job(document, LIMITS)


@virtual
async def test_without_a_warm_up_the_server_is_ready_once_it_is_there() -> None:
    """`none` skips it at the start only: a verdict still runs the canary."""
    service = Service(warm=False)
    verdicts: list[Verdict] = []

    async def ask() -> None:
        await service.status.reached(Phase.READY)
        assert asyncio.get_running_loop().time() < 1
        verdicts.append(await service.gate.verdict(EngineStalled()))

    await service.during(ask())
    assert verdicts == [Verdict.FIT]
    assert asyncio.get_running_loop().time() >= service.engine.seconds


@virtual
async def test_a_warm_up_that_never_ends_counts_as_stalled() -> None:
    """Bounded by the time that a generation may take, loading included."""
    service = Service(restarts=1)
    service.engine.seconds = 1000
    with pytest.raises(NodeUnfit, match="the warm-up failed 1 times"):
        await service.service.run()
    assert service.engine.interrupted == ["warm-up"]
    assert service.ready == []
    await service.inputs.aclose()


@virtual
async def test_refused_credentials_later_on_are_waited_for() -> None:
    """At the start they are a mistake; once it was ready they name the reason, as everything else does."""
    service = Service()
    real = service.engine.look
    refusing = False

    async def look() -> EngineState:
        if refusing:
            raise AuthFailed("401")
        return await real()

    service.engine.look = look  # type: ignore[method-assign]

    async def change() -> None:
        nonlocal refusing
        await service.status.reached(Phase.READY)
        refusing = True
        while service.status.reasons != ("auth_failed",):
            await service.status.changed()
        refusing = False
        await service.status.reached(Phase.READY)

    await service.during(change())
    assert service.engine.prepared == 2


@virtual
async def test_a_server_of_the_wrong_kind_ends_the_start() -> None:
    """What `prepare` says of the configuration is not tried again."""
    service = Service()

    async def prepare() -> None:
        raise ConfigError("WORKER_ENGINE: is a1111, but SD.Next answers")

    service.engine.prepare = prepare  # type: ignore[method-assign]
    with pytest.raises(ConfigError):
        await service.service.run()
    await service.inputs.aclose()


@virtual
async def test_failures_long_ago_do_not_count() -> None:
    """Patience is a number of failures in a time."""
    service = Service(restarts=2)
    errors: list[WorkerError] = [EngineStalled()]

    async def fail_now_and_then() -> None:
        for _ in range(4):
            await service.status.reached(Phase.READY)
            service.engine.canary_troubles.extend(errors)
            service.gate.fault(EngineStalled())
            await service.status.reached(Phase.WARMING_UP)
            await service.status.reached(Phase.READY)
            await elapse(700)

    await service.during(fail_now_and_then())
    assert len(service.ready) == 5


@virtual
async def test_a_look_does_not_disturb_who_uses_the_server() -> None:
    """A server that is at work is not looked at for having gone away."""
    service = Service()
    looks: list[float] = []
    real = service.engine.look

    async def look() -> EngineState:
        looks.append(asyncio.get_running_loop().time())
        return await real()

    service.engine.look = look  # type: ignore[method-assign]

    async def use() -> int:
        await service.status.reached(Phase.READY)
        async with service.gate.turn():
            before = len(looks)
            await elapse(60)
            return len(looks) - before

    assert await service.during(use()) == 0


@virtual
async def test_the_models_of_the_warm_up_are_fetched_and_held_for_it() -> None:
    """They are the operator's: any source will do, and while it runs nothing evicts them."""
    service = Service(document={**DEFAULT, "checkpoint": "tiger.safetensors"})

    async def watch() -> None:
        await service.status.reached(Phase.WARMING_UP)
        while not service.engine.running:
            await elapse(0.01)
        assert [place.name for place in service.models.pinned] == ["tiger.safetensors"]
        await service.status.reached(Phase.READY)

    await service.during(watch())
    assert [(one.name, one.owner) for one in service.models.provisions[0]] == [("tiger.safetensors", Owner.OPERATOR)]
    assert service.models.pinned == []


@virtual
async def test_a_warm_up_whose_model_nobody_has_is_a_mistake_of_configuration() -> None:
    """Told by the variable's name, and not tried again."""
    service = Service(document={**DEFAULT, "checkpoint": "tiger.safetensors"})
    service.models.missing.add(Place("checkpoint", "tiger.safetensors"))
    with pytest.raises(ConfigError, match=r"WORKER_WARMUP: .* no source has tiger"):
        await service.service.run()
    await service.inputs.aclose()
