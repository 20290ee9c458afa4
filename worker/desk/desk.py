"""Takes jobs in from callers, runs them through a queue of its own, and tells the callers how they ended."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import pydantic_core
import structlog

from worker.desk import asking
from worker.desk.asking import Asked, owner_of
from worker.desk.elsewhere import Elsewhere
from worker.desk.entrance import Entrance
from worker.desk.hints import Hints
from worker.desk.messages import Messages
from worker.desk.notifier import DeskNotifier
from worker.desk.refusals import NoSharedState
from worker.desk.room import Load, Room, size_of
from worker.desk.states import State, is_dated, queued
from worker.desk.stores import SHARED, DeskStores
from worker.desk.tickets import Ended, Ticket, Tickets
from worker.errors import Draining, IdConflict, JobCancelled, WorkerError
from worker.job import Job, Limits, usable_id
from worker.live import LiveJob
from worker.models.auth import Credentials
from worker.queues.base import JobState
from worker.queues.memory import MemoryQueue
from worker.queues.policy import Policy
from worker.result import ErrorResult, Result
from worker.settlement import worker_of
from worker.status import Status
from worker.storage.base import Storage
from worker.tasks import first_of
from worker.tools import Tools
from worker.webhooks import Notifier

log = structlog.get_logger()

SYNCHRONOUS = Policy(max_attempts=2, max_deliveries=2)
"""A job whose caller waits is tried once more after it was given back, then answered."""

OUTAGE_S = 60.0
"""How long callers who wait are kept while the worker takes no jobs."""


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
    """``queue`` is received from by intake like any other, with the tools that `outfitted` gives.

    ``tools`` are the worker's own; jobs whose callers do not wait go ``elsewhere`` where they can.
    """

    def __init__(
        self,
        queue: MemoryQueue,
        tools: Tools,
        status: Status,
        rules: Rules,
        *,
        inline: Storage,
        notifier: Notifier,
        elsewhere: Elsewhere | None = None,
    ) -> None:
        self.queue = queue
        self.rules = rules
        self.tickets = Tickets()
        self.tools = tools
        self.elsewhere = elsewhere or Elsewhere()
        self._status = status
        room = Room(rules.max_pending, rules.max_wait.total_seconds())
        self._entrance = Entrance(tools, status, self.tickets, room)
        self._hints = Hints(replace(tools, credentials=self.tickets.credentials_of))
        self._stores = DeskStores(tools.bench.stores, inline, self.tickets)
        self._notifier = DeskNotifier(notifier, self.tickets, self._settled)
        self._messages = Messages(tools, queue, self._stores, self._notifier)
        queue.on_end = self._ended
        tools.bench.metrics.http_waiting(self._waiting)

    def outfitted(self) -> Tools:
        """The tools of the desk's own jobs."""
        bench = replace(self.tools.bench, queue=self.queue, stores=self._stores, sender=self._notifier)
        return replace(self.tools, bench=bench, credentials=self.tickets.credentials_of)

    @property
    def load(self) -> Load:
        """What stands before a job that comes now."""
        return self._entrance.load

    def full(self) -> tuple[str, ...]:
        """Why no further job may come in now, for the readiness probe; empty when one may."""
        return self._entrance.full()

    async def take(
        self,
        document: Mapping[str, Any],
        *,
        waits: bool,
        key: str | None = None,
        native: bool = False,
        store: Storage | None = None,
        notifier: Notifier | None = None,
        credentials: Credentials = (),
    ) -> Ticket:
        """Take a job in; asked again with the same ``key`` (`Idempotency-Key`), the ticket of the first time.

        The document's own id is only what the caller calls it. Raises `InvalidJob`, `UnsupportedDocument`,
        `IdConflict` for a key that stands for another document, `NotReady`, `Draining` and `TooManyPending`; for a job
        whose caller does not wait, `UrlForbidden` for what could never be sent or fetched.
        """
        with self._counting():
            asked = await asking.read(await self.followed(document), self._id_of(key), self.rules.limits)
            known = self._joined(asked, waits=waits)
            if known is None and not waits:
                await self._accepts(asked.job)
                known = self._joined(asked, waits=waits)
            if known is not None:
                return known
            ticket = _ticket(asked, waits=waits)
            ticket.native, ticket.store, ticket.notifier, ticket.credentials = native, store, notifier, credentials
            return await self._taken(asked, ticket, seen=key is not None)

    async def accept(self, document: Mapping[str, Any], *, key: str | None = None) -> State:
        """Take a job in whose caller does not wait: it goes to the configured queue, else it is held here.

        The queue knows it by the caller's id, where it has one. Raises as `take`, `UrlForbidden` for a webhook that
        could never be sent, `QueueUnavailable`, and `NoSharedState` for a job that is held here though nothing could
        tell how it ended once this worker is gone.
        """
        with self._counting():
            job_id = self._id_of(key)
            if self.elsewhere.takes_jobs and self.tickets.find(job_id) is None:
                return await self._passed_on(document, usable_id(document.get("id")) or job_id)
            asked = await asking.read(await self.followed(document), job_id, self.rules.limits)
            ticket = self._joined(asked, waits=False)
            if ticket is None:
                await self._accepts(asked.job)
                if self._stores.of(asked.job).name not in SHARED and not self._notifier.wants("succeeded", asked.job):
                    raise NoSharedState
                ticket = self._joined(asked, waits=False)
                ticket = ticket or await self._taken(asked, _ticket(asked, waits=False), seen=key is not None)
            status = "waiting" if ticket.ended is None else ticket.ended.result.status
            return State(id=ticket.id, client_id=ticket.client_id, status=status)

    @contextmanager
    def _counting(self) -> Iterator[None]:
        """Count what keeps a job from being taken in."""
        try:
            yield
        except WorkerError as error:
            self.tools.bench.metrics.http_refused(error.code)
            raise

    def _waiting(self) -> int:
        return sum(self.held(ticket.id) is None for ticket in self.tickets)

    async def followed(self, document: Mapping[str, Any]) -> Mapping[str, Any]:
        """As `asking.followed`."""
        return await asking.followed(document, self.tools.inputs, self.rules.limits)

    async def cancel(self, job_id: str) -> bool:
        """Cancel a job of the desk, waiting or running; False when it is none, or over."""
        ticket = self.tickets.find(job_id)
        if ticket is None or ticket.ended is not None:
            return False
        withdrawn = await self.queue.cancel(job_id)
        return self.tools.live.cancel(job_id) or withdrawn

    async def run(self) -> None:
        """A service, over once the drain has begun and everybody has been told what it means for his job.

        Until then models of waiting jobs are fetched ahead, and callers who wait are told so when nothing is done for
        their jobs for long.
        """
        try:
            await first_of(self._hints.run(), self._kept_waiting(), self.tools.drain.beginning())
            while tuple(self.tickets):
                self._turn_away(Draining(), [ticket for ticket in self.tickets if self.held(ticket.id) is None])
                if tuple(self.tickets):
                    await self.tools.live.changed()
            await self._messages.told()
        finally:
            self._turn_away(Draining(), list(self.tickets))
            await self._messages.aclose()

    async def _kept_waiting(self) -> None:
        """Callers who wait are told after a while that the worker takes no jobs."""
        while True:
            while self._entrance.is_open:
                await self._status.changed()
            try:
                async with asyncio.timeout(OUTAGE_S):
                    while not self._entrance.is_open:
                        await self._status.changed()
            except TimeoutError:
                waiting = [ticket for ticket in self.tickets if ticket.waits and self.held(ticket.id) is None]
                self._turn_away(self._entrance.not_ready(), waiting)
                for ticket in waiting:
                    await self.queue.cancel(ticket.id)

    def _turn_away(self, error: WorkerError, tickets: list[Ticket]) -> None:
        """End jobs that nobody will work on here; of those whose callers do not wait, the owners are told."""
        for ticket in tickets:
            result = self._failed(ticket, error)
            self._hints.forget(ticket.id)
            self.tickets.end(ticket.id, Ended(result))
            if not ticket.waits and ticket.owner is not None:
                self._messages.tell(ticket.owner, result)

    def held(self, job_id: str) -> LiveJob | None:
        """The job as it is at work here; None where it waits, or is over."""
        return next((job for job in self.tools.live if job.id == job_id), None)

    def _joined(self, asked: Asked, *, waits: bool) -> Ticket | None:
        """The ticket that stands for this very job; None where it is new, or worth trying again."""
        known = self.tickets.find(asked.job.id)
        if known is None:
            return None
        if known.fingerprint != asked.job.sha256:
            raise IdConflict("this key stands for another document")
        stands = known.answers(asked.whole) and not self._is_dated(known)
        if not stands and not self.tickets.is_closing(known.id):
            return None
        known.waits = known.waits and waits
        return known

    def _is_dated(self, ticket: Ticket) -> bool:
        """Whether its success is better found again by its mark, which signs the links anew."""
        now = self.tools.bench.clock.now()
        return not ticket.is_stored_apart and ticket.ended is not None and is_dated(ticket.ended.result, now)

    async def _taken(self, asked: Asked, ticket: Ticket, *, seen: bool) -> Ticket:
        job = asked.job
        waits_for_others = self._entrance.check(ticket.size)
        self.tickets.add(ticket)
        await self.queue.submit(
            job.id,
            asked.body,
            priority=job.priority,
            policy=SYNCHRONOUS if ticket.waits else None,
            client_id=ticket.client_id,
            seen=seen,
            sha256=job.sha256,
        )
        if waits_for_others:
            self._hints.note(job)
        log.info("job_taken", job=job.id, client_id=ticket.client_id, waits=ticket.waits)
        return ticket

    async def _passed_on(self, document: Mapping[str, Any], job_id: str) -> State:
        """Submit a job to the configured queue; one that only points at the real document goes as it is."""
        client_id = usable_id(document.get("id"))
        if asking.pointer_in(document) is not None:
            body, priority = pydantic_core.to_json({"job_url": document["job_url"]}), 0
        else:
            asked = await asking.read(document, job_id, self.rules.limits)
            await self._accepts(asked.job)
            body, priority = asked.body, asked.job.priority
        if await self.elsewhere.submit(job_id, body, priority=priority):
            log.info("job_passed_on", job=job_id)
            return State(id=job_id, client_id=client_id, status="waiting")
        known = await self.elsewhere.queued(job_id)
        return State(id=job_id, client_id=client_id, status="waiting" if known is None else queued(known).status)

    async def _accepts(self, job: Job) -> None:
        await self._notifier.accepts(job)
        await self.tools.inputs.allows(job)

    def _id_of(self, key: str | None) -> str:
        if key is None:
            return f"http-{secrets.token_hex(16)}"
        keyed = hashlib.blake2b(key.encode("utf-8", "surrogatepass"), key=self.rules.secret[:64], digest_size=16)
        return f"http-{keyed.hexdigest()}"

    def _settled(self, result: Result) -> None:
        """A result is safe, though its webhook is not yet sent."""
        self._end(result.id, result)

    def _ended(self, state: JobState) -> None:
        """The queue is done with a job."""
        self.queue.forget(state.id)
        ticket = self.tickets.find(state.id)
        if ticket is None:
            return
        withdrawn = ticket.ended is None and state.result is None
        result = state.result or self._failed(ticket, JobCancelled())
        self._end(state.id, result)
        if withdrawn and not ticket.waits and ticket.owner is not None:
            self._messages.tell(ticket.owner, result)
        self.tickets.close(state.id)

    def _end(self, job_id: str, result: Result) -> None:
        ticket = self.tickets.find(job_id)
        held = self.held(job_id)
        made = held.made if held is not None and ticket is not None and ticket.native else None
        if ticket is not None and ticket.ended is None and result.status == "succeeded":
            self._entrance.note(ticket.size, result.timings.generate)
        self._hints.forget(job_id)
        self.tickets.end(job_id, Ended(result, made))

    def _failed(self, ticket: Ticket, error: WorkerError) -> Result:
        """The result of a job that no delivery ended."""
        bench = self.tools.bench
        now = bench.clock.now()
        return Result(
            id=ticket.id,
            client_id=ticket.client_id,
            status="cancelled" if isinstance(error, JobCancelled) else "failed",
            error=ErrorResult(code=error.code, message=error.message, retryable=error.retryable, fault=error.fault),
            worker=worker_of(bench.identity),
            job_sha256=ticket.fingerprint,
            metadata=None if ticket.owner is None else ticket.owner.metadata,
            created_at=now,
            finished_at=now,
        )


def _ticket(asked: Asked, *, waits: bool) -> Ticket:
    job = asked.job
    size, owner = size_of(job), owner_of(job)
    return Ticket(job.id, job.sha256, waits, asked.client_id, size=size, whole=asked.whole, owner=owner)
