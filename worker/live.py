"""The register of jobs that this process holds: how far each is, who watches it, and how it is cancelled."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from worker.errors import JobCancelled

INSTANT_S = 0.1
"""A wait for models that lasts no longer parks nobody."""

RECENT_MOST = 50
"""Jobs that are remembered after their end."""

SPANS_MOST = 32
"""Hops that are remembered of a job; one that makes more goes on without."""

Preview = Callable[[], Awaitable[bytes | None]]
"""Asks for the newest look at a picture in the making; None where there is none yet. Raises `WorkerError`."""


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


@dataclass(frozen=True, slots=True)
class Span:
    """A hop that is over; times are the event loop's."""

    hop: Hop
    began: float
    ended: float


@dataclass(frozen=True, slots=True)
class Past:
    """A job that is not held any more: ``outcome`` as the log's `job_settled` has it, ``code`` of its error."""

    id: str
    outcome: str
    code: str | None
    since: float
    ended: float
    spans: tuple[Span, ...]


@dataclass(eq=False, slots=True)
class LiveJob:
    """One job held; times are the event loop's, ``progress`` a fraction of the running generation.

    ``spans`` are the hops that are over, ``preview`` asks for a look at what the running one makes.
    ``progress_from`` is the time and fraction of its first report, ``progress_at`` the time of the last that grew.
    ``parked`` while it waits for its models, for which it waited ``models_s`` seconds so far in all.
    ``made`` is what its generation made, once verified; a `worker.made.Made`. ``receipt`` is what the queue knows the
    delivery by.
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
    receipt: Any = None
    spans: list[Span] = field(default_factory=list)
    preview: Preview | None = None
    _end: tuple[str, str | None] = ("abandoned", None)
    _cancelled: asyncio.Event = field(default_factory=asyncio.Event)

    def enter(self, hop: Hop) -> None:
        self.hop, self.hop_since = hop, asyncio.get_running_loop().time()
        self.progress = self.eta_s = self.progress_from = self.preview = None
        self._stir()

    def passed(self, span: Span) -> None:
        """Note that a hop is over."""
        if len(self.spans) < SPANS_MOST:
            self.spans.append(span)

    def ended(self, outcome: str, code: str | None) -> None:
        """Note how it ended, for those who look back; a job of which nobody said so was abandoned."""
        self._end = outcome, code

    def past(self, now: float) -> Past:
        """What is remembered of it, which is over now."""
        outcome, code = self._end
        return Past(self.id, outcome, code, self.since, now, tuple(self.spans))

    def report(self, fraction: float, eta_s: float | None, preview: Preview | None = None) -> None:
        """Note how far the generation is; a fraction that did not grow is no news of the time it takes."""
        self.preview = preview
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
    """All jobs held here, in the order of their coming; ``recent`` are the latest that are not any more."""

    def __init__(self) -> None:
        self.recent: deque[Past] = deque(maxlen=RECENT_MOST)
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
    def holding(self, delivery_id: str, receipt: Any = None) -> Iterator[LiveJob]:
        """Register a delivery for as long as the context lasts, and with it the job that it came to own."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        job = LiveJob(delivery_id, self._stir, since=now, hop_since=now, receipt=receipt)
        self._jobs.append(job)
        self._stir()
        try:
            yield job
        finally:
            self._jobs.remove(job)
            self.recent.append(job.past(loop.time()))
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
