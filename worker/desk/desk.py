"""Takes jobs in from callers, runs them through a queue of its own, and tells the callers how they ended."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, TypeVar

import pydantic_core
import structlog

from worker.desk.hints import Hints
from worker.desk.notifier import DeskNotifier
from worker.desk.refusals import NotReady, TooManyPending
from worker.desk.room import UNMEASURED_S, Line, Load, Room, Usual, size_of
from worker.desk.stores import DeskStores
from worker.desk.tickets import Ended, Ticket, Tickets
from worker.drain import remaining
from worker.errors import Draining, IdConflict, JobCancelled, WorkerError
from worker.job import Limits, parse, usable_id
from worker.live import Hop, LiveJob
from worker.queues.base import JobState
from worker.queues.memory import MemoryQueue
from worker.queues.policy import Policy
from worker.result import ErrorResult, Result
from worker.settlement import worker_of
from worker.status import Phase, Status
from worker.storage.base import Storage
from worker.tasks import gather_bare
from worker.tools import Tools
from worker.webhooks import Notifier

log = structlog.get_logger()
T = TypeVar("T")

SYNCHRONOUS = Policy(max_attempts=2, max_deliveries=2)
"""A job whose caller waits is tried once more after it was given back, then answered."""

LARGE = 1_000_000
RETRY_AFTER = timedelta(seconds=5)


@dataclass(frozen=True, slots=True)
class Rules:
    """What the operator decided of HTTP jobs; ``secret`` goes into ids, so that nobody guesses another's."""

    limits: Limits
    max_pending: int
    max_wait: timedelta
    timeout: timedelta | None
    cancel_on_disconnect: bool
    secret: bytes = b""


class Desk:
    """``queue`` is received from by intake like any other, with the tools that `outfitted` gives."""

    def __init__(
        self,
        queue: MemoryQueue,
        tools: Tools,
        status: Status,
        rules: Rules,
        *,
        inline: Storage,
        notifier: Notifier,
    ) -> None:
        self.queue = queue
        self.rules = rules
        self.tickets = Tickets()
        self._tools = tools
        self._status = status
        self._room = Room(rules.max_pending, rules.max_wait.total_seconds())
        self._line, self._usual = Line(), Usual()
        self._hints = Hints(tools)
        self._stores = DeskStores(tools.bench.stores, inline, self.tickets)
        self._notifier = DeskNotifier(notifier, self.tickets, self._settled)
        queue.on_end = self._ended

    def outfitted(self) -> Tools:
        """The tools of the desk's own jobs."""
        bench = replace(self._tools.bench, queue=self.queue, stores=self._stores, sender=self._notifier)
        return replace(self._tools, bench=bench)

    @property
    def load(self) -> Load:
        """What stands before a job that comes now."""
        now, pace = asyncio.get_running_loop().time(), self._tools.pace
        each_s = UNMEASURED_S if pace.generate_s is None else pace.generate_s
        held = list(self._tools.live)
        ours = {job.id for job in held}
        waiting = [ticket for ticket in self.tickets if ticket.id not in ours]
        ready = [job for job in held if not job.hop.is_past_engine and job.hop is not Hop.GENERATE]
        running = next((job for job in held if job.hop is Hop.GENERATE), None)
        left_s = remaining(running, now=now, pace=pace) if running is not None else 0.0
        left_s = each_s if left_s is None else left_s
        sizes = [ticket.size for ticket in waiting] + [self._size_of(job.id) for job in ready]
        ahead_s = left_s + sum(self._usual.estimate_s(size, each_s) for size in sizes)
        return Load(len(waiting), ahead_s, left_s, each_s)

    def _size_of(self, job_id: str) -> float | None:
        ticket = self.tickets.find(job_id)
        return None if ticket is None else ticket.size

    def full(self) -> tuple[str, ...]:
        """Why no further job may come in now, for the readiness probe; empty when one may."""
        return ("too_many_pending",) if self._room.retry_after_s(self.load) is not None else ()

    async def take(
        self,
        document: Mapping[str, Any],
        *,
        waits: bool,
        key: str | None = None,
        native: bool = False,
        store: Storage | None = None,
        notifier: Notifier | None = None,
    ) -> Ticket:
        """Take a job in; asked again with the same ``key`` (`Idempotency-Key`), the ticket of the first time.

        The document's own id is only what the caller calls it. Raises `InvalidJob`, `UnsupportedDocument`,
        `IdConflict` for a key that stands for another document, `NotReady` and `TooManyPending`.
        """
        job_id = self._id_of(key)
        whole = {**document, "id": job_id}
        job = await _in_thread_if_large(document, lambda: parse(whole, fallback_id=job_id, limits=self.rules.limits))
        known = self.tickets.find(job_id)
        if known is not None:
            if known.fingerprint != job.sha256:
                raise IdConflict("this key stands for another document")
            return known
        size = size_of(job)
        waits_for_others = self._check_open(size)
        client_id = usable_id(document.get("id"))
        ticket = Ticket(job_id, job.sha256, waits, client_id, native, store, notifier, size=size)
        self.tickets.add(ticket)
        try:
            body = await _in_thread_if_large(document, lambda: pydantic_core.to_json(whole))
            await self.queue.submit(
                job_id,
                body,
                priority=job.priority,
                policy=SYNCHRONOUS if waits else None,
                client_id=ticket.client_id,
                seen=key is not None,
            )
        except BaseException:
            self.tickets.drop(job_id)
            raise
        if waits_for_others:
            self._hints.note(job)
        log.info("job_taken", job=job_id, client_id=ticket.client_id, waits=waits)
        return ticket

    async def cancel(self, job_id: str) -> bool:
        """Cancel a job of the desk, waiting or running; False when it is none, or over."""
        if self.tickets.find(job_id) not in tuple(self.tickets):
            return False
        withdrawn = await self.queue.cancel(job_id)
        return self._tools.live.cancel(job_id) or withdrawn

    async def run(self) -> None:
        """A service: models of waiting jobs are fetched ahead until the drain begins; then callers whose jobs are not
        held any more are told so."""
        await gather_bare([self._hints.run(), self._turned_away()], name="desk")

    async def _turned_away(self) -> None:
        await self._tools.drain.beginning()
        while True:
            held = {job.id for job in self._tools.live}
            for ticket in self.tickets:
                if ticket.id not in held:
                    self.tickets.end(ticket.id, Ended(self._failed(ticket, Draining())))
            await self._tools.live.changed()

    def held(self, job_id: str) -> LiveJob | None:
        """The job as it is at work here; None where it waits, or is over."""
        return next((job for job in self._tools.live if job.id == job_id), None)

    def _id_of(self, key: str | None) -> str:
        if key is None:
            return f"http-{secrets.token_hex(16)}"
        keyed = hashlib.blake2b(key.encode("utf-8", "surrogatepass"), key=self.rules.secret[:64], digest_size=16)
        return f"http-{keyed.hexdigest()}"

    def _check_open(self, size: float | None) -> bool:
        """Whether other jobs come before one of this size.

        Raises `NotReady`, and `TooManyPending` where it would have to wait too long.
        """
        if self._status.phase is not Phase.READY:
            reasons = ", ".join(self._status.reasons) or str(self._status.phase)
            raise NotReady(f"this worker takes no jobs now: {reasons}", retry_after=RETRY_AFTER)
        load = self.load
        soonest_s = self._room.retry_after_s(load, self._usual.estimate_s(size, load.each_s))
        if soonest_s is None:
            if load.ahead_s <= 0:
                self._line.forget()
            return load.ahead_s > 0
        now = asyncio.get_running_loop().time()
        raise TooManyPending(retry_after=timedelta(seconds=self._line.place_s(soonest_s, each_s=load.each_s, now=now)))

    def _settled(self, result: Result) -> None:
        """A result is safe, though its webhook is not yet sent."""
        self._end(result.id, result)

    def _ended(self, state: JobState) -> None:
        """The queue is done with a job."""
        self.queue.forget(state.id)
        ticket = self.tickets.find(state.id)
        if ticket is not None:
            self._end(state.id, state.result or self._failed(ticket, JobCancelled()))

    def _end(self, job_id: str, result: Result) -> None:
        ticket = self.tickets.find(job_id)
        held = self.held(job_id)
        made = held.made if held is not None and ticket is not None and ticket.native else None
        if ticket is not None and ticket.ended is None and result.status == "succeeded":
            self._usual.observe(ticket.size, result.timings.generate)
        self._hints.forget(job_id)
        self.tickets.end(job_id, Ended(result, made))

    def _failed(self, ticket: Ticket, error: WorkerError) -> Result:
        """The result of a job that no delivery ended."""
        bench = self._tools.bench
        now = bench.clock.now()
        return Result(
            id=ticket.id,
            client_id=ticket.client_id,
            status="cancelled" if isinstance(error, JobCancelled) else "failed",
            error=ErrorResult(code=error.code, message=error.message, retryable=error.retryable, fault=error.fault),
            worker=worker_of(bench.identity),
            created_at=now,
            finished_at=now,
        )


async def _in_thread_if_large(document: Mapping[str, Any], work: Callable[[], T]) -> T:
    """Documents that hold images are read and written beside the event loop."""
    large = sum(len(value) for value in _texts(document)) > LARGE
    return await asyncio.to_thread(work) if large else work()


def _texts(document: Any) -> Iterator[str]:
    """Every text in a document."""
    if isinstance(document, str):
        yield document
    elif isinstance(document, Mapping):
        for value in document.values():
            yield from _texts(value)
    elif isinstance(document, list):
        for value in document:
            yield from _texts(value)
