"""Stopping without losing anything: which held jobs are given back at once, and which may still finish."""

from __future__ import annotations

import asyncio

from worker.errors import Draining
from worker.live import Hop, Live, LiveJob
from worker.lookahead import Pace

ENOUGH = 0.1
"""Of a generation must have been seen before its speed is believed."""


def fits(job: LiveJob, *, now: float, deadline: float, pace: Pace) -> bool:
    """Whether a held job can be expected to end before the deadline; event loop times.

    A job that has not begun to generate never does. Without a measurement a running one gets its chance.
    """
    if now >= deadline:
        return False
    if job.hop.is_past_engine:
        return True
    if job.hop is not Hop.GENERATE:
        return False
    left = remaining(job, now=now, pace=pace)
    return left is None or now + left + (pace.settle_s or 0.0) <= deadline


def remaining(job: LiveJob, *, now: float, pace: Pace) -> float | None:
    """Seconds that a running generation takes yet: by its own speed, the server's estimate, or this node's average.

    Its speed counts from the first report, so that loading a model is no part of it.
    """
    if job.progress is not None and job.progress_from is not None:
        first_at, first = job.progress_from
        gained, since = job.progress - first, now - job.progress_at
        if gained >= ENOUGH:
            return max(0.0, (job.progress_at - first_at) * (1 - job.progress) / gained - since)
        if job.eta_s is not None and job.eta_s > 0:
            return max(0.0, job.eta_s - since)
    return None if pace.generate_s is None else max(0.0, pace.generate_s - (now - job.hop_since))


class Drain:
    """Tells every job when to end; begun once, and for good."""

    def __init__(self, live: Live, pace: Pace) -> None:
        self._live = live
        self._pace = pace
        self._begun = asyncio.Event()
        self.deadline: float | None = None

    @property
    def begun(self) -> bool:
        return self._begun.is_set()

    def begin(self, deadline: float) -> None:
        self.deadline = deadline
        self._begun.set()

    async def beginning(self) -> None:
        await self._begun.wait()

    async def due(self, job: LiveJob) -> None:
        """A guard: raises `Draining` when the job has to be given back."""
        await self._begun.wait()
        loop = asyncio.get_running_loop()
        deadline = self.deadline if self.deadline is not None else loop.time()
        while fits(job, now=loop.time(), deadline=deadline, pace=self._pace):
            try:
                async with asyncio.timeout_at(deadline):
                    await self._live.changed()
            except TimeoutError:
                break
        raise Draining

    async def over(self) -> None:
        """A guard: raises `TimeoutError` at the deadline."""
        await self._begun.wait()
        await asyncio.sleep(self.left() or 0.0)
        raise TimeoutError("the drain's deadline has come")

    def left(self) -> float | None:
        """Seconds until the deadline, None while not draining."""
        if self.deadline is None:
            return None
        return max(0.0, self.deadline - asyncio.get_running_loop().time())
