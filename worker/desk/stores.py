"""Where what HTTP jobs make goes: into the answer, unless the job, the caller or the operator named a place."""

from __future__ import annotations

from worker.desk.tickets import Tickets
from worker.job import Job
from worker.result import Result
from worker.storage.base import R, Storable, Storage, Stores

SHARED = frozenset({"s3", "s4"})
"""Places of the operator's that callers can reach by a URL."""


class HandedStorage:
    """Stores nothing: what was made is handed to the caller who waits for it."""

    name = "inline"

    def accepts(self, job: Job, outputs: int) -> None:
        """Any job."""

    def marks(self, job: Job) -> bool:
        return False

    async def find_mark(self, job: Job) -> Result | None:
        return None

    async def put_artifact(self, job: Job, artifact: Storable[R]) -> R:
        return artifact.result()

    async def put_mark(self, job: Job, result: Result) -> Result:
        return result

    async def put_failure(self, job: Job, result: Result, attempt: int) -> None:
        """The caller is told."""

    async def check(self) -> str:
        return "handed to the caller"

    async def aclose(self) -> None:
        """Nothing is open."""


class DeskStores:
    """The worker's places as HTTP jobs see them; ``inline`` is where results hold what was made."""

    def __init__(self, stores: Stores, inline: Storage, tickets: Tickets) -> None:
        self._stores = stores
        self._inline = inline
        self._handed = HandedStorage()
        self._tickets = tickets

    @property
    def default(self) -> Storage:
        return self._stores.default

    def of(self, job: Job) -> Storage:
        """As `Stores.of`."""
        ticket = self._tickets.find(job.id)
        if ticket is not None and ticket.store is not None:
            return ticket.store
        named = job.output.storage is not None or job.output.upload_urls or job.output.result_urls is not None
        if named:
            return self._stores.of(job)
        if ticket is not None and ticket.native:
            return self._handed
        return self._stores.default if self._stores.default.name in SHARED else self._inline
