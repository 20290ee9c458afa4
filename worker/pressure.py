"""Memory that grows from job to job: the server is relieved of it between jobs, before the kernel kills it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import structlog

from worker.engines.base import Process
from worker.gate import Gate
from worker.metrics import Metrics

log = structlog.get_logger()

LOOK_BUSY_S, LOOK_IDLE_S = 1.0, 10.0
GROWN = 1.1
"""Of what it held when fresh: less than that is no growth, and a restart would not help."""


@dataclass(slots=True)
class Held:
    """What the server holds, in bytes: at rest now and when fresh, and how far a job went at most above the rest
    before and after it."""

    fresh: int | None = None
    rest: int = 0
    swing: int = 0
    _peak: int = 0

    def note(self, bytes: int, *, busy: bool) -> None:
        """Take a reading; the first one at rest after a start is what it holds when fresh."""
        self._peak = max(self._peak, bytes)
        if busy:
            return
        if self.fresh is None:
            self.fresh = bytes
        else:
            self.swing = max(self.swing, self._peak - max(self.rest, bytes))
        self.rest = self._peak = bytes

    def is_too_much(self, limit: int) -> bool:
        """Whether the next job may not fit any more, and giving memory back would help."""
        return self.fresh is not None and self.rest + self.swing > limit and self.rest > GROWN * self.fresh


class Pressure:
    """Watches one server's memory. ``limit`` in bytes: what it may hold at the peak of a job."""

    def __init__(self, gate: Gate, process: Process, metrics: Metrics, limit: int) -> None:
        self._gate = gate
        self._process = process
        self._metrics = metrics
        self._limit = limit
        self.held = Held()
        self._asked = False

    async def run(self) -> None:
        """A service."""
        while True:
            busy = self._gate.in_use
            held = await asyncio.to_thread(self._process.memory)
            if held is not None and busy == self._gate.in_use:
                self._metrics.engine_memory(held)
                self._see(held, busy=busy)
            await asyncio.sleep(LOOK_BUSY_S if busy else LOOK_IDLE_S)

    def _see(self, held: int, *, busy: bool) -> None:
        if not self._gate.is_open and not busy:
            self.held, self._asked = Held(), False
            return
        self.held.note(held, busy=busy)
        if not busy and not self._asked and self.held.is_too_much(self._limit):
            self._asked = True
            log.warning("engine_memory_grown", rest=self.held.rest, swing=self.held.swing, fresh=self.held.fresh)
            self._gate.upkeep(self._relieved)

    async def _relieved(self) -> bool:
        """Whether what the server gave back was enough; it may take a moment to do so."""
        for _ in range(5):
            await asyncio.sleep(LOOK_BUSY_S)
            held = await asyncio.to_thread(self._process.memory)
            if held is None or held + self.held.swing <= self._limit:
                return True
        return False
