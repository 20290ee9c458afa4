"""Pausing while a dependency of the operator is away, and trying it until it is back."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping

import structlog

from worker.dependencies import Dependencies, Dependency
from worker.errors import WorkerError
from worker.gate import Gate
from worker.metrics import Metrics
from worker.status import Phase, Status
from worker.tasks import cancel_all, first_of

log = structlog.get_logger()

PROBE_FIRST_S, PROBE_MOST_S = 5.0, 120.0

Probe = Callable[[], Awaitable[object]]


class Watch:
    """Moves between READY and PAUSED and holds the gate while the store is away; probes what is paused."""

    def __init__(
        self,
        dependencies: Dependencies,
        status: Status,
        gate: Gate,
        metrics: Metrics,
        probes: Mapping[Dependency, Probe],
    ) -> None:
        self._dependencies = dependencies
        self._status = status
        self._gate = gate
        self._metrics = metrics
        self._probes = probes
        self._probing: dict[Dependency, asyncio.Task[None]] = {}
        self._counted: set[str] = set()

    async def run(self) -> None:
        """A service."""
        try:
            while True:
                self.apply()
                await first_of(self._dependencies.changed(), self._status.changed())
        finally:
            await cancel_all(set(self._probing.values()))

    def apply(self) -> None:
        """Have phase and gate say what the dependencies allow."""
        paused = self._dependencies.paused
        self._count(set(paused.values()))
        if Dependency.STORAGE in paused:
            self._gate.close("paused")
        else:
            self._gate.open("paused")
        if paused and self._status.phase is Phase.READY:
            self._status.move(Phase.PAUSED, *sorted(paused.values()))
        elif not paused and self._status.phase is Phase.PAUSED:
            self._status.move(Phase.READY)
        for dependency in paused:
            task = self._probing.get(dependency)
            if task is None or task.done():
                self._probing[dependency] = asyncio.create_task(self._probe(dependency), name=f"probe-{dependency}")

    def _count(self, codes: set[str]) -> None:
        for code in codes ^ self._counted:
            self._metrics.paused(code, code in codes)
        self._counted = codes

    async def _probe(self, dependency: Dependency) -> None:
        wait_s = PROBE_FIRST_S
        while dependency in self._dependencies.paused:
            await asyncio.sleep(wait_s)
            wait_s = min(wait_s * 2, PROBE_MOST_S)
            try:
                await self._probes[dependency]()
            except WorkerError as error:
                log.info("dependency_still_away", dependency=str(dependency), code=error.code, error=error.message)
            else:
                self._dependencies.succeeded(dependency)
