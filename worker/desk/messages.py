"""Tells the owners of jobs that no delivery ends: withdrawn before their turn, or dropped by a drain."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import structlog

from worker.desk.notifier import DeskNotifier
from worker.errors import WorkerError
from worker.job import Job
from worker.queues.base import Producer
from worker.result import Result
from worker.storage.base import Storage, Stores
from worker.tasks import cancel_all, run_guarded
from worker.tools import Tools

log = structlog.get_logger()

Telling = Callable[[], Coroutine[Any, Any, object]]

GRACE_S = 3.0
"""How long after the drain's deadline they may still be told."""


class Messages:
    """Webhooks go by ``notifier``, and documents of failures to the places of ``stores``, each on its own.

    ``queue`` knows how often each was tried.
    """

    def __init__(self, tools: Tools, queue: Producer, stores: Stores, notifier: DeskNotifier) -> None:
        self._tools = tools
        self._queue = queue
        self._stores = stores
        self._notifier = notifier
        self._tasks: set[asyncio.Task[None]] = set()

    def tell(self, owner: Job, result: Result) -> None:
        """Have the owner told how it ended, by what is his now: later nobody may know of the job."""
        notifier, store = self._notifier.of(owner), self._stores.of(owner)
        if notifier.wants(result.status, owner):
            self._start(lambda: notifier.send(result.status, owner, result), "webhook", owner)
        if result.status == "failed":
            self._start(lambda: self._kept(store, owner, result), "document", owner)

    async def told(self) -> None:
        """Until everybody has been told, or cannot be."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def aclose(self) -> None:
        """Tell nobody any more."""
        await cancel_all(set(self._tasks))

    def _start(self, telling: Telling, what: str, owner: Job) -> None:
        task = asyncio.create_task(self._tried(telling, what, owner), name=f"tell-{what}-{owner.id}")
        self._tasks.add(task)
        task.add_done_callback(self._over)

    def _over(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self._tools.bench.metrics.bug()
            log.error("internal_error", where=task.get_name(), exc_info=task.exception())

    async def _tried(self, telling: Telling, what: str, owner: Job) -> None:
        metrics = self._tools.bench.metrics
        try:
            await run_guarded(telling(), self._too_late(), name=f"{what}-{owner.id}")
        except (WorkerError, TimeoutError) as error:
            log.warning("owner_not_told", job=owner.id, by=what, error=str(error))
            outcome = "undelivered"
        else:
            outcome = "delivered"
        if what == "webhook":
            metrics.webhook(outcome)

    async def _kept(self, store: Storage, owner: Job, result: Result) -> None:
        known = await self._queue.state(owner.id)
        attempt = 1 if known is None else len(known.attempts) + 1
        await store.put_failure(owner, result, attempt)

    async def _too_late(self) -> None:
        """A guard: raises `TimeoutError` when the drain leaves no more time."""
        drain = self._tools.drain
        await drain.beginning()
        await asyncio.sleep((drain.left() or 0.0) + GRACE_S)
        raise TimeoutError("the worker stops")
