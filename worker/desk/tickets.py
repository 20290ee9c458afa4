"""What the desk knows of each job that it took in, from its coming until some time after its end."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from worker.errors import Fault
from worker.job import Job
from worker.made import Made
from worker.models.auth import Credentials
from worker.result import Result
from worker.storage.base import Storage
from worker.webhooks import Notifier

KEEP_MOST = 1000
KEEP_BYTES = 64_000_000


@dataclass(frozen=True, slots=True)
class Ended:
    """How a job ended. ``made`` holds what was made where the caller gets it from us and not from the result."""

    result: Result
    made: Made | None = None

    @property
    def size(self) -> int:
        """Bytes that it holds."""
        inline = sum(len(output.base64 or "") for output in self.result.outputs)
        return inline + (self.made.size if self.made is not None else 0)


@dataclass(eq=False, slots=True)
class Ticket:
    """One job of the desk, under an id of ours.

    ``waits``: its caller waits for the end. ``native``: he asked in the server's own language, and gets what was made
    itself. ``store`` and ``notifier`` take the place of the worker's own for this job, ``credentials`` open URLs of its
    models; they may hold all that was asked, and are kept no longer than needed. ``size``: as `room.size_of`.
    ``whole`` is a digest of the whole document, ``fingerprint`` of what it asks for. ``owner`` is the job without what
    it asks for: enough to tell whose it is how it ended. ``waiters`` counts those who wait just now.
    """

    id: str
    fingerprint: str
    waits: bool
    client_id: str | None = None
    native: bool = False
    store: Storage | None = None
    notifier: Notifier | None = None
    credentials: Credentials = field(default=(), repr=False)
    ended: Ended | None = None
    size: float | None = None
    whole: bytes = b""
    owner: Job | None = None
    waiters: int = 0
    _over: asyncio.Event = field(default_factory=asyncio.Event)
    _had_store: bool = False

    @property
    def is_stored_apart(self) -> bool:
        """Whether what was made went to a place of the caller's own, which nobody can link to anew."""
        return self.store is not None or self._had_store

    def end(self, ended: Ended) -> None:
        """Say how it ended; only the first word counts."""
        if self.ended is None:
            self.ended, self.credentials = ended, ()
            self._over.set()

    def close(self) -> None:
        """Let go of what only one that is at work needs."""
        self._had_store = self.is_stored_apart
        self.store = self.notifier = None

    async def over(self) -> Ended:
        """Until the job has ended."""
        await self._over.wait()
        if self.ended is None:
            raise AssertionError("over without an end")
        return self.ended

    @contextmanager
    def awaited(self) -> Iterator[None]:
        """Somebody waits for the end as long as the block lasts."""
        self.waiters += 1
        try:
            yield
        finally:
            self.waiters -= 1

    def answers(self, whole: bytes) -> bool:
        """Whether its end answers the same document asked for again, of which ``whole`` is the digest.

        A success does, and so does what is the job's own fault, as long as nothing at all was changed. What may pass
        is tried again, and so is a job that was cancelled when nobody waited for it any more.
        """
        if self.ended is None or self.ended.result.status == "succeeded":
            return True
        error = self.ended.result.error
        if self.ended.result.status == "cancelled" and self.waits:
            return False
        return error is not None and error.fault is Fault.JOB and self.whole == whole


class Tickets:
    """All that are at work, and the latest that have ended: so many, and no more bytes of them than may be."""

    def __init__(self, *, most: int = KEEP_MOST, most_bytes: int = KEEP_BYTES) -> None:
        self._open: dict[str, Ticket] = {}
        self._closing: dict[str, Ticket] = {}
        self._ended: OrderedDict[str, Ticket] = OrderedDict()
        self._most = most
        self._most_bytes = most_bytes
        self._bytes = 0

    def __iter__(self) -> Iterator[Ticket]:
        """The open ones, in the order of their coming."""
        return iter(tuple(self._open.values()))

    def find(self, job_id: str) -> Ticket | None:
        return self._open.get(job_id) or self._closing.get(job_id) or self._ended.get(job_id)

    def credentials_of(self, job_id: str) -> Credentials:
        """What the caller gave for the URLs of his job's models; kept no longer than the job is at work."""
        ticket = self.find(job_id)
        return () if ticket is None else ticket.credentials

    def called(self, client_id: str) -> list[Ticket]:
        """The open ones that their callers call so."""
        return [ticket for ticket in self._open.values() if ticket.client_id == client_id]

    def add(self, ticket: Ticket) -> None:
        self.drop(ticket.id)
        self._open[ticket.id] = ticket

    def is_closing(self, job_id: str) -> bool:
        """Whether its end is known, though its queue is not yet done with it."""
        return job_id in self._closing

    def end(self, job_id: str, ended: Ended) -> None:
        """An open one has ended; the oldest of those that ended before make room for it."""
        ticket = self._open.pop(job_id, None)
        if ticket is None:
            return
        ticket.end(ended)
        self._closing[job_id] = self._ended[job_id] = ticket
        self._bytes += _size(ticket)
        while len(self._ended) > self._most or (self._bytes > self._most_bytes and len(self._ended) > 1):
            _, oldest = self._ended.popitem(last=False)
            self._bytes -= _size(oldest)

    def close(self, job_id: str) -> None:
        """Its queue is done with one that has ended: nobody asks any more where its webhooks go."""
        ticket = self._closing.pop(job_id, None)
        if ticket is not None:
            ticket.close()

    def drop(self, job_id: str) -> None:
        """Forget all about one."""
        self._open.pop(job_id, None)
        self._closing.pop(job_id, None)
        ended = self._ended.pop(job_id, None)
        if ended is not None:
            self._bytes -= _size(ended)


def _size(ticket: Ticket) -> int:
    return ticket.ended.size if ticket.ended is not None else 0
