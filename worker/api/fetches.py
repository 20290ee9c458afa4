"""Models that were asked for over HTTP: each is fetched once, by a task of ours, whoever still waits for it."""

from __future__ import annotations

import asyncio
import copy
from collections import OrderedDict
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Protocol

import structlog

from worker.errors import Disposition, Draining, Fault, WorkerError
from worker.mentions import Place
from worker.models.base import Entry, Models, Priority, Wanted
from worker.tasks import cancel_all

log = structlog.get_logger()

GRACE = timedelta(seconds=0.5)
"""After so long an answer says that the file is coming; most of what is refused is refused before."""

FAILED_MOST = 100
PENDING_MOST = 100


class Shelf(Models, Protocol):
    """The cache, with its measures in bytes."""

    @property
    def bytes(self) -> int: ...

    @property
    def cap(self) -> int: ...

    @property
    def free(self) -> int: ...

    @property
    def folder(self) -> Path | None: ...

    async def typed(self, wanted: Wanted) -> Wanted: ...

    async def loaded(self) -> frozenset[Place]: ...


class TooManyFetches(WorkerError):
    """Too many models are being fetched; ask again later."""

    fault = Fault.NODE
    disposition = Disposition.NACK


class Fetches:
    """Owns the tasks; close it with ``aclose``, which leaves what has come to be resumed."""

    def __init__(self, models: Shelf, grace: timedelta = GRACE) -> None:
        self._models = models
        self._grace = grace
        self._tasks: dict[Wanted, asyncio.Task[Entry]] = {}
        self._failed: OrderedDict[Place, WorkerError] = OrderedDict()

    @property
    def failed(self) -> Mapping[Place, WorkerError]:
        """How the last try of each ended that did not go well, the latest last."""
        return self._failed

    async def fetched(self, wanted: Wanted, *, wait: bool, longest: timedelta | None = None) -> Entry | None:
        """The model's entry; None where it is still coming and nobody is to ``wait`` for it, or not for so long.

        Asked for again meanwhile it is still fetched once. Raises as `Models.fetch`, `Draining` when the worker ends
        before it came, and `TooManyFetches`.
        """
        task = self._tasks.get(wanted) or self._begun(wanted)
        limit = longest if wait else self._grace
        await asyncio.wait({task}, timeout=None if limit is None else limit.total_seconds())
        if not task.done():
            return None
        if task.cancelled():
            raise Draining
        error = task.exception()
        if error is not None:
            raise copy.copy(error)
        return task.result()

    async def aclose(self) -> None:
        await cancel_all(set(self._tasks.values()))

    def _begun(self, wanted: Wanted) -> asyncio.Task[Entry]:
        if len(self._tasks) >= PENDING_MOST:
            raise TooManyFetches(f"{PENDING_MOST} models are being fetched already", retry_after=timedelta(seconds=30))
        self._failed.pop(wanted.place, None)
        task = asyncio.create_task(self._fetch(wanted), name=f"fetch-{wanted.place}")
        self._tasks[wanted] = task
        task.add_done_callback(lambda done: self._ended(wanted, done))
        return task

    async def _fetch(self, wanted: Wanted) -> Entry:
        return await self._models.fetch(await self._models.typed(wanted), Priority.START)

    def _ended(self, wanted: Wanted, task: asyncio.Task[Entry]) -> None:
        del self._tasks[wanted]
        error = None if task.cancelled() else task.exception()
        if isinstance(error, WorkerError):
            self._failed[wanted.place] = error
            while len(self._failed) > FAILED_MOST:
                self._failed.popitem(last=False)
        elif error is not None:
            log.error("internal_error", where="fetch over HTTP", model=str(wanted.place), exc_info=error)
