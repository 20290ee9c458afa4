"""Memory that grows from job to job: the server is relieved of it between jobs, before the kernel kills it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import structlog

from worker.engines.base import Process
from worker.gate import Gate
from worker.metrics import Metrics

log = structlog.get_logger()

LOOK_BUSY_S, LOOK_IDLE_S = 1.0, 10.0
"""How often it is looked while the server works, and while it does not; also the least time from one look between
two jobs to the next."""

GROWN = 1.1
"""Of what it held when fresh: less than that is no growth, and a restart would not help."""


@dataclass(slots=True)
class Held:
    """What the server holds, in bytes: at rest now and when fresh, and how far a job went at most above the rest
    before and after it. ``kept`` is what the last work has added to the rest, and the work before that."""

    fresh: int | None = None
    rest: int = 0
    swing: int = 0
    kept: tuple[int, int] = (0, 0)
    _peak: int = 0

    def note(self, bytes: int, *, busy: bool, worked: bool = False) -> None:
        """Take a reading, after ``worked`` the first one at rest again; the first one at rest of all is what it
        holds when fresh."""
        self._peak = max(self._peak, bytes)
        if busy:
            return
        if self.fresh is None:
            self.fresh = bytes
        else:
            self.swing = max(self.swing, self._peak - max(self.rest, bytes))
            self.kept = (max(0, bytes - self.rest), self.kept[0]) if worked else self.kept
        self.rest = self._peak = bytes

    def is_too_much(self, limit: int) -> bool:
        """Whether the next job may not fit any more, and giving memory back would help.

        What is kept again and again counts as kept by the next job too; what was kept once may be another model.
        """
        return self.fresh is not None and self.next_peak > limit and self.rest > GROWN * self.fresh

    @property
    def next_peak(self) -> int:
        """What the next job is expected to reach at most."""
        return self.rest + self.swing + min(self.kept)


class Pressure:
    """Watches one server's memory. ``limit`` in bytes: what it may hold at the peak of a job.

    ``lives`` counts the server's restarts: each begins with memory of its own.
    """

    def __init__(
        self,
        gate: Gate,
        process: Process,
        metrics: Metrics,
        limit: int,
        lives: Callable[[], int] = lambda: 0,
    ) -> None:
        self._gate = gate
        self._process = process
        self._metrics = metrics
        self._limit = limit
        self._lives = lives
        self._life = lives()
        self._asked = False
        self._rested_at: float | None = None
        self.held = Held()
        gate.between_turns(self._between_turns)

    async def run(self) -> None:
        """A service."""
        while True:
            busy = self._gate.in_use
            held = await asyncio.to_thread(self._process.memory)
            if held is not None and busy == self._gate.in_use:
                self._see(held, busy=busy)
            if busy:
                await asyncio.sleep(LOOK_BUSY_S)
                continue
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_IDLE_S):
                    await self._gate.taken()

    async def _between_turns(self) -> None:
        """With one job after the other the server is never seen at rest but here."""
        now = asyncio.get_running_loop().time()
        if self._rested_at is not None and now - self._rested_at < LOOK_BUSY_S:
            return
        self._rested_at = now
        held = await asyncio.to_thread(self._process.memory)
        if held is not None:
            self._see(held, busy=False, worked=True)

    def _see(self, held: int, *, busy: bool, worked: bool = False) -> None:
        self._metrics.engine_memory(held)
        if self._life != self._lives():
            self._begin_anew()
        if not self._gate.is_open and not busy:
            return
        self.held.note(held, busy=busy, worked=worked)
        if not busy and not self._asked and self.held.is_too_much(self._limit):
            self._asked = True
            log.warning("engine_memory_grown", rest=self.held.rest, swing=self.held.swing, fresh=self.held.fresh)
            self._gate.upkeep(self._relieved)

    def _begin_anew(self) -> None:
        self.held, self._asked, self._life = Held(), False, self._lives()

    async def _relieved(self) -> bool:
        """Whether what the server gave back was enough; it may take a moment to do so."""
        most = self._limit - self.held.next_peak + self.held.rest
        self._begin_anew()
        for _ in range(5):
            await asyncio.sleep(LOOK_BUSY_S)
            held = await asyncio.to_thread(self._process.memory)
            if held is None or held <= most:
                return True
        return False
