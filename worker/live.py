"""The register of jobs that this process holds: how far each is, who watches it, and how it is cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from enum import StrEnum

from worker.errors import JobCancelled


class Hop(StrEnum):
    """Where in its life a held job is; the order is the order of the journey."""

    RECEIVED = "received"
    ADMIT = "admit"
    MODELS = "models"
    WAITING = "waiting"
    GENERATE = "generate"
    IMAGES = "images"
    UPLOAD = "upload"
    SETTLE = "settle"

    @property
    def is_past_engine(self) -> bool:
        return self in (Hop.IMAGES, Hop.UPLOAD, Hop.SETTLE)


@dataclass(eq=False, slots=True)
class LiveJob:
    """One job held; times are the event loop's, ``progress`` a fraction of the running generation."""

    id: str
    hop: Hop = Hop.RECEIVED
    since: float = 0.0
    hop_since: float = 0.0
    progress: float | None = None
    eta_s: float | None = None
    _cancelled: asyncio.Event = field(default_factory=asyncio.Event)
    _moved: asyncio.Event = field(default_factory=asyncio.Event)

    def enter(self, hop: Hop) -> None:
        self.hop, self.hop_since = hop, asyncio.get_running_loop().time()
        self.stir()

    def report(self, fraction: float, eta_s: float | None) -> None:
        self.progress, self.eta_s = fraction, eta_s
        self.stir()

    def stir(self) -> None:
        """Wake everyone who awaits `moved`."""
        self._moved.set()
        self._moved = asyncio.Event()

    async def moved(self) -> None:
        """Wait for the next change of hop or progress."""
        await self._moved.wait()

    def cancel(self) -> None:
        self._cancelled.set()

    async def cancelled(self) -> None:
        """A guard: raises `JobCancelled` once somebody cancels the job."""
        await self._cancelled.wait()
        raise JobCancelled


class Live:
    """All jobs held here, in the order of their coming."""

    def __init__(self) -> None:
        self._jobs: list[LiveJob] = []
        self._owners: dict[str, LiveJob] = {}
        self._left = asyncio.Event()

    def __iter__(self) -> Iterator[LiveJob]:
        return iter(tuple(self._jobs))

    def __len__(self) -> int:
        return len(self._jobs)

    @contextmanager
    def holding(self, delivery_id: str) -> Iterator[LiveJob]:
        """Register a delivery for as long as the context lasts."""
        now = asyncio.get_running_loop().time()
        job = LiveJob(delivery_id, since=now, hop_since=now)
        self._jobs.append(job)
        try:
            yield job
        finally:
            self._jobs.remove(job)
            self._stir()

    @asynccontextmanager
    async def owning(self, job: LiveJob, job_id: str) -> AsyncIterator[None]:
        """Be the only delivery of this job at work here: a second one waits for the first."""
        while job_id in self._owners:
            await self._left.wait()
        self._owners[job_id] = job
        job.id = job_id
        try:
            yield
        finally:
            del self._owners[job_id]
            self._stir()

    def cancel(self, job_id: str) -> bool:
        """Cancel every delivery held of this job; False when there is none."""
        found = [job for job in self._jobs if job.id == job_id]
        for job in found:
            job.cancel()
        return bool(found)

    async def empty(self) -> None:
        while self._jobs:
            await self._left.wait()

    def _stir(self) -> None:
        self._left.set()
        self._left = asyncio.Event()
