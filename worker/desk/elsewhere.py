"""What lies beyond this process and every replica sees: the configured queue's submitting side, and stores."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta

from worker.errors import QueueUnavailable, UploadFailed, WorkerError
from worker.queues.base import JobState, Producer
from worker.result import Result
from worker.storage.base import Archive

WITHIN = timedelta(seconds=10)
"""How long a caller waits for the queue or a store."""


class Elsewhere:
    """``producer`` is None where there is no queue, or it may not be submitted to."""

    def __init__(
        self, producer: Producer | None = None, archives: Sequence[Archive] = (), *, within: timedelta = WITHIN
    ) -> None:
        self._producer = producer
        self._archives = archives
        self._within_s = within.total_seconds()

    @property
    def takes_jobs(self) -> bool:
        """Whether there is a queue to submit to."""
        return self._producer is not None

    async def submit(self, job_id: str, body: bytes, *, priority: int) -> bool:
        """As `Producer.submit`."""
        if self._producer is None:
            raise ValueError("there is no queue to submit to")
        async with self._in_time(QueueUnavailable("the queue does not answer in time")):
            return await self._producer.submit(job_id, body, priority=priority)

    async def queued(self, job_id: str) -> JobState | None:
        """What the queue knows of the job; `QueueUnavailable` and `AuthFailed` when it does not tell."""
        if self._producer is None:
            return None
        async with self._in_time(QueueUnavailable("the queue does not answer in time")):
            return await self._producer.state(job_id)

    async def cancel(self, job_id: str) -> bool:
        """As `Producer.cancel`; False without a queue."""
        if self._producer is None:
            return False
        async with self._in_time(QueueUnavailable("the queue does not answer in time")):
            return await self._producer.cancel(job_id)

    async def stored(self, job_id: str) -> Result | None:
        """What the stores know of the job, the operator's first; `UploadFailed` and `AuthFailed` as they raise them."""
        for archive in self._archives:
            async with self._in_time(UploadFailed("the store does not answer in time")):
                found = await archive.find_result(job_id)
            if found is not None:
                return found
        return None

    @asynccontextmanager
    async def _in_time(self, error: WorkerError) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self._within_s):
                yield
        except TimeoutError:
            raise error from None
