"""The register of jobs that this process holds: how far each is, who watches it, and how it is cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from worker.errors import JobCancelled

INSTANT_S = 0.1
"""A wait for models that lasts no longer parks nobody."""


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
    """One job held; times are the event loop's, ``progress`` a fraction of the running generation.

    ``progress_from`` is the time and fraction of its first report, ``progress_at`` the time of the last that grew.
    ``parked`` while it waits for its models, for which it waited ``models_s`` seconds so far in all.
    ``made`` is what its generation made, once verified; a `worker.made.Made`.
    """

    id: str
    _stir: Callable[[], None]
    since: float
    hop_since: float
    hop: Hop = Hop.RECEIVED
    progress: float | None = None
    eta_s: float | None = None
    progress_from: tuple[float, float] | None = None
    progress_at: float = 0.0
    committed: bool = False
    parked: bool = False
    models_s: float = 0.0
    made: Any = None
    _cancelled: asyncio.Event = field(default_factory=asyncio.Event)

    def enter(self, hop: Hop) -> None:
        self.hop, self.hop_since = hop, asyncio.get_running_loop().time()
        self.progress = self.eta_s = self.progress_from = None
        self._stir()

    def report(self, fraction: float, eta_s: float | None) -> None:
        """Note how far the generation is; a fraction that did not grow is no news of the time it takes."""
        if fraction != self.progress:
            self.progress_at = asyncio.get_running_loop().time()
            self.eta_s = eta_s
        if self.progress_from is None and fraction > 0:
            self.progress_from = (self.progress_at, fraction)
        self.progress = fraction
        self._stir()

    @contextmanager
    def parking(self) -> Iterator[None]:
        """Parked from an instant on for as long as the block, which waits for models, lasts."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        timer = loop.call_later(INSTANT_S, self._park, True)
        try:
            yield
        finally:
            timer.cancel()
            self.models_s += loop.time() - began
            self._park(False)

    def _park(self, parked: bool) -> None:
        if parked != self.parked:
            self.parked = parked
            self._stir()

    def cancel(self) -> None:
        self._cancelled.set()

    def commit(self) -> None:
        """The mark is about to be sent: from now on the success may stand, and a cancellation comes too late."""
        self.committed = True

    async def cancelled(self) -> None:
        """A guard: raises `JobCancelled` once somebody cancels the job in time."""
        await self._cancelled.wait()
        if not self.committed:
            raise JobCancelled


class Live:
    """All jobs held here, in the order of their coming."""

    def __init__(self) -> None:
        self._jobs: list[LiveJob] = []
        self._owners: dict[str, LiveJob] = {}
        self._changed = asyncio.Event()

    def __iter__(self) -> Iterator[LiveJob]:
        return iter(tuple(self._jobs))

    def __len__(self) -> int:
        return len(self._jobs)

    @property
    def parked(self) -> int:
        """How many wait for their models."""
        return sum(job.parked for job in self._jobs)

    @contextmanager
    def holding(self, delivery_id: str) -> Iterator[LiveJob]:
        """Register a delivery for as long as the context lasts, and with it the job that it came to own."""
        now = asyncio.get_running_loop().time()
        job = LiveJob(delivery_id, self._stir, since=now, hop_since=now)
        self._jobs.append(job)
        self._stir()
        try:
            yield job
        finally:
            self._jobs.remove(job)
            if self._owners.get(job.id) is job:
                del self._owners[job.id]
            self._stir()

    async def own(self, job: LiveJob, job_id: str) -> None:
        """Become the only delivery of this job at work here: a second one waits for the first."""
        while self._owners.get(job_id, job) is not job:
            await self.changed()
        self._owners[job_id] = job
        job.id = job_id

    def cancel(self, job_id: str) -> bool:
        """Cancel every delivery held of this job; False when there is none."""
        found = [job for job in self._jobs if job.id == job_id]
        for job in found:
            job.cancel()
        return bool(found)

    def changed(self) -> Coroutine[Any, Any, bool]:
        """Until any job comes, goes, changes its hop or makes progress, from this call on."""
        return self._changed.wait()

    async def empty(self) -> None:
        while self._jobs:
            await self.changed()

    def _stir(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
