"""A whole worker in one process and in virtual time: real story, memory queue, and fakes at the seams."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

from tests.support.fakes import (
    FakeEngine,
    FakeInputs,
    FakeProcess,
    FakeReceiver,
    FakeStorage,
    FakeStores,
    document,
)
from tests.support.link import Link
from tests.support.models import FakeModels
from tests.support.virtual import VirtualClock, elapse
from worker import desk, recovery, warmup
from worker.clock import CorrectedClock
from worker.dependencies import Dependencies, Dependency
from worker.desk import Desk
from worker.drain import Drain
from worker.engines.base import Output, Work
from worker.gate import Gate
from worker.images import Encoding
from worker.intake import Intake
from worker.job import Limits, document_of, parse
from worker.live import Hop, Live
from worker.lookahead import Pace
from worker.metrics import Metrics
from worker.models.base import Models
from worker.node import Identity
from worker.orders import Duties
from worker.patience import Patience
from worker.queues.base import JobState
from worker.queues.memory import MemoryQueue
from worker.queues.policy import Policy
from worker.report import Reporter
from worker.settings.units import Rate
from worker.settlement import Bench
from worker.status import Status
from worker.storage.inline import InlineStorage
from worker.supervisor import ExitCode, Supervisor
from worker.tasks import Budget
from worker.tools import Rules, Tools
from worker.watch import Watch
from worker.workflows import Workflows

VISIBILITY = timedelta(seconds=20)


class World:
    """One worker and its surroundings; `running` runs it. Made inside the loop; everything may be turned before."""

    def __init__(
        self,
        *,
        engine: FakeEngine | None = None,
        process: FakeProcess | None = None,
        storage: FakeStorage | None = None,
        queue: MemoryQueue | None = None,
        models: Models | None = None,
        policy: Policy | None = None,
        window: int = 3,
        parked: int = 2,
        flat: str = "canary",
        worker: str = "w1",
        drain_s: float = 25.0,
        unpublished: int = 512_000_000,
        max_wait: timedelta = timedelta(minutes=5),
        never: bool = False,
        services: dict[str, Callable[[], Awaitable[None]]] | None = None,
        leave: Callable[[str], Awaitable[bool]] | None = None,
        status: Status | None = None,
        stays: bool = False,
        http: desk.Rules | None = None,
        workflows: Workflows | None = None,
    ) -> None:
        wall = VirtualClock()
        self.window, self.parked, self.worker = window, parked, worker
        self.clock = CorrectedClock(wall)
        self.engine, self.storage = engine or FakeEngine(), storage or FakeStorage()
        self.queue = queue or MemoryQueue(wall, worker=worker, policy=policy or Policy(visibility=VISIBILITY))
        self.link = Link(self.queue)
        self.process = process or FakeProcess()
        self.receiver, self.inputs = FakeReceiver(self.clock), FakeInputs(self.clock)
        self.status, self.live, self.metrics, self.pace = status or Status(), Live(), Metrics(), Pace()
        self.drain = Drain(self.live, self.pace)
        self.gate, self.dependencies, self.limits = Gate(self.engine), Dependencies(), Limits()
        self.exits: list[str] = []
        stores, self.models = FakeStores(self.storage), FakeModels()
        shelf = models or self.models
        self.tools = Tools(
            bench=self._bench(stores),
            gate=self.gate,
            engine=self.engine,
            inputs=self.inputs,
            models=shelf,
            dependencies=self.dependencies,
            patience=Patience(stores, self.dependencies),
            live=self.live,
            orders=Duties(shelf, self.live, self.drain, self.metrics),
            reporter=Reporter(self.live, self.metrics),
            drain=self.drain,
            pace=self.pace,
            budget=Budget(unpublished),
            rules=self._rules(flat, max_wait),
            workflows=workflows or Workflows(),
        )
        self.desk = self._desk(http) if http is not None else None
        self._services(services or {}, drain_s, leave, never=never, stays=stays)

    def _rules(self, flat: str, max_wait: timedelta) -> Rules:
        minutes = timedelta(minutes=10)
        return Rules(self.limits, Encoding(), flat, minutes, upload_concurrency=4, models_max_wait=max_wait)

    def _bench(self, stores: FakeStores) -> Bench:
        return Bench(
            queue=self.link,
            stores=stores,
            sender=self.receiver,
            metrics=self.metrics,
            clock=self.clock,
            identity=Identity(self.worker, "machine", "0"),
            rng=random.Random(3),
            drain=self.drain,
        )

    def _desk(self, rules: desk.Rules) -> Desk:
        """Where HTTP jobs are taken in, beside the queue."""
        own = MemoryQueue(self.queue._clock, worker=self.worker, can_delay=False)
        inline = InlineStorage(8_000_000)
        return Desk(own, self.tools, self.status, rules, inline=inline, notifier=self.receiver)

    def _services(
        self,
        more: dict[str, Callable[[], Awaitable[None]]],
        drain_s: float,
        leave: Callable[[str], Awaitable[bool]] | None,
        *,
        never: bool,
        stays: bool,
    ) -> None:
        watch = Watch(
            self.dependencies,
            self.status,
            self.gate,
            self.metrics,
            {
                Dependency.STORAGE: self.storage.check,
                Dependency.QUEUE: self.link.check,
                Dependency.DISK: self.models.space,
            },
        )
        canary = parse(
            document_of(json.dumps(warmup.DEFAULT).encode(), max_body=10_000), fallback_id="warm-up", limits=self.limits
        )
        engine_service = recovery.EngineService(
            self.gate,
            warmup.Canary(canary, self.inputs, self.models, timedelta(minutes=5), self._verified),
            self.process,
            self.status,
            self.metrics,
            patience=recovery.Patience(timedelta(minutes=20), Rate(5, timedelta(minutes=10)), never=never),
            warm_at_start=True,
            on_ready=watch.apply,
            on_look=self.tools.reporter.looked,
        )
        self.supervisor = Supervisor(
            self.status,
            self.drain,
            Intake(
                self.tools,
                self.status,
                window=self.window,
                parked=self.parked,
                rng=random.Random(4),
                beside=[self.desk.outfitted()] if self.desk is not None else [],
            ),
            {
                "engine": engine_service.run,
                "watch": watch.run,
                **more,
            },
            _serve_for_ever,
            drain_timeout=timedelta(seconds=drain_s),
            stop_at_once=lambda: self.exits.append("at once"),
            lasting={"desk": self.desk.run} if self.desk is not None else {},
            leave=leave,
            stays=stays,
        )

    def _verified(self, work: Work, output: Output) -> None:
        self.tools.reporter.verified(work, output, typical=False)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[asyncio.Task[ExitCode]]:
        """The worker at work; drained when the block ends."""
        task = asyncio.create_task(self.supervisor.run(), name="supervisor")
        try:
            yield task
        finally:
            if not task.done():
                self.supervisor.stop()
            await asyncio.wait({task})
            await self.receiver.aclose()
            await self.inputs.aclose()

    async def submit(self, *job_ids: str, **fields: Any) -> None:
        for job_id in job_ids:
            await self.queue.submit(job_id, document(job_id, **fields))

    async def ended(self, *job_ids: str) -> None:
        """Wait until each of these jobs is done or dead."""
        pause_s = 0.05
        for job_id in job_ids:
            while (await self.state(job_id)).status not in ("done", "dead"):
                await elapse(pause_s)
                pause_s = min(pause_s * 1.01, 5.0)
                assert asyncio.get_running_loop().time() < 100_000, f"{job_id} never ended"

    async def until(self, check: Callable[[], bool], seconds: float = 100_000) -> None:
        """Let virtual time pass until the check holds."""
        ends = asyncio.get_running_loop().time() + seconds
        while not check():
            assert asyncio.get_running_loop().time() < ends, "it never came to that"
            await elapse(0.05)

    async def at(self, hop: Hop, job_id: str) -> None:
        """Wait until the job is at this hop."""
        await self.until(lambda: any(job.id == job_id and job.hop is hop for job in self.live))

    async def state(self, job_id: str) -> JobState:
        state = await self.queue.state(job_id)
        assert state is not None
        return state

    async def status_of(self, job_id: str) -> str:
        return (await self.state(job_id)).status

    async def code(self, job_id: str) -> str | None:
        return (await self.state(job_id)).code

    async def ends(self, job_id: str) -> list[tuple[str | None, bool]]:
        """How each attempt ended: its code, and whether it was charged."""
        return [(attempt.code, attempt.charged) for attempt in (await self.state(job_id)).attempts]


async def _serve_for_ever() -> None:
    await asyncio.Event().wait()
