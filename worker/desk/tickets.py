"""What the desk knows of each job that it took in, from its coming until some time after its end."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field

from worker.made import Made
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
    itself. ``store`` and ``notifier`` take the place of the worker's own for this job. ``size``: as `room.size_of`.
    """

    id: str
    fingerprint: str
    waits: bool
    client_id: str | None = None
    native: bool = False
    store: Storage | None = None
    notifier: Notifier | None = None
    ended: Ended | None = None
    size: float | None = None
    _over: asyncio.Event = field(default_factory=asyncio.Event)

    def end(self, ended: Ended) -> None:
        """Say how it ended; only the first word counts."""
        if self.ended is None:
            self.ended = ended
            self._over.set()

    async def over(self) -> Ended:
        """Until the job has ended."""
        await self._over.wait()
        if self.ended is None:
            raise AssertionError("over without an end")
        return self.ended


class Tickets:
    """All that are open, and the latest that have ended: so many, and no more bytes of them than may be."""

    def __init__(self, *, most: int = KEEP_MOST, most_bytes: int = KEEP_BYTES) -> None:
        self._open: dict[str, Ticket] = {}
        self._ended: OrderedDict[str, Ticket] = OrderedDict()
        self._most = most
        self._most_bytes = most_bytes
        self._bytes = 0

    def __iter__(self) -> Iterator[Ticket]:
        """The open ones, in the order of their coming."""
        return iter(tuple(self._open.values()))

    def find(self, job_id: str) -> Ticket | None:
        return self._open.get(job_id) or self._ended.get(job_id)

    def called(self, client_id: str) -> list[Ticket]:
        """The open ones that their callers call so."""
        return [ticket for ticket in self._open.values() if ticket.client_id == client_id]

    def add(self, ticket: Ticket) -> None:
        self._open[ticket.id] = ticket

    def end(self, job_id: str, ended: Ended) -> None:
        """An open one has ended; the oldest of those that ended before make room for it."""
        ticket = self._open.pop(job_id, None)
        if ticket is None:
            return
        ticket.end(ended)
        self._ended[job_id] = ticket
        self._bytes += ticket.ended.size if ticket.ended is not None else 0
        while len(self._ended) > self._most or (self._bytes > self._most_bytes and len(self._ended) > 1):
            _, oldest = self._ended.popitem(last=False)
            self._bytes -= oldest.ended.size if oldest.ended is not None else 0

    def drop(self, job_id: str) -> None:
        """Take back one that never came to be."""
        self._open.pop(job_id, None)
