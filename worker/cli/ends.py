"""How submitted jobs end, for those who wait: as their queue tells it, else as it stands in the operator's store."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta

from worker.clock import CorrectedClock, SystemClock
from worker.desk.elsewhere import Elsewhere
from worker.desk.states import stored
from worker.errors import ConfigError, FieldError
from worker.queues.base import JobState
from worker.settings import Settings
from worker.storage.base import Archive

SILENT = ("sqs",)
"""Queues that tell nothing of a job."""

KEEPS_RESULTS = ("sqlite", "availability")
"""Queues that need no store to tell how a job ended."""

_ROUGHLY = timedelta(seconds=5)
"""By which clocks may differ that are not known to."""


class Ends:
    """What the stores tell of jobs that were submitted from now on; a success counts whenever it was.

    ``alone``: the queue tells nothing, so a job of which nothing is found is not over.
    """

    def __init__(self, stores: Elsewhere, clock: CorrectedClock, *, alone: bool) -> None:
        self.alone = alone
        self._stores = stores
        self._clock = clock
        self._since = SystemClock().now()

    async def of(self, job_id: str) -> JobState | None:
        """How the job ended; None while nothing is known of its end.

        Raises `UploadFailed` and `AuthFailed` as stores do.
        """
        found = await self._stores.stored(job_id)
        if found is None or (found.status != "succeeded" and self._is_earlier(found.created_at)):
            return None
        state = stored(job_id, found, self._clock.now())
        if not state.is_over:
            return None
        code = found.error.code if found.error is not None else None
        return JobState(job_id, "dead" if state.status == "failed" else "done", 0, (), code, found)

    def _is_earlier(self, at: datetime) -> bool:
        return at < self._since + self._clock.offset - _ROUGHLY


@asynccontextmanager
async def open_ends(settings: Settings, clock: CorrectedClock, *, wanted: bool) -> AsyncIterator[Ends | None]:
    """What tells how jobs end beside the queue; None where the queue does, or nobody wants to know.

    Raises `ConfigError` where nothing would.
    """
    from worker.app import opened

    kind = settings.queue.kind
    if not wanted or kind in KEEPS_RESULTS:
        yield None
        return
    if kind in SILENT and settings.storage.kind == "auto" and settings.storage.bucket is None:
        said = f"is needed to wait, or WORKER_S3_BUCKET: WORKER_QUEUE={kind} tells nothing of a job"
        raise ConfigError((FieldError("WORKER_STORAGE", said),))
    async with opened(settings, {"storage"}) as parts:
        archives = parts.storage.archives if parts.storage is not None else ()
        default = parts.storage.default if parts.storage is not None else None
        if kind in SILENT and not isinstance(default, Archive):
            said = f"keeps no results, and WORKER_QUEUE={kind} tells nothing of a job: there is nothing to wait for"
            raise ConfigError((FieldError("WORKER_STORAGE", said),))
        yield Ends(Elsewhere(None, archives), clock, alone=kind in SILENT) if archives else None
