"""What a queue orders beside the jobs, carried out in the background: models to fetch, models to drop, cancellations.

Orders are the operator's: they may name any host. A server repeats them until it sees in a report that they were
carried out, so a repeated order is one order, and one that failed rests for a while.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Coroutine, Hashable, Iterable
from datetime import timedelta
from typing import Any

import structlog

from worker.drain import Drain
from worker.errors import InvalidJob, ModelInUse, ModelNotFound, Owner, WorkerError
from worker.live import Live
from worker.mentions import Place, place_of
from worker.metrics import Metrics
from worker.models.base import Entry, Models, Priority, Wanted
from worker.models.folders import wrong_name
from worker.models.identity import canonical, name_of
from worker.models.kinds import is_told_by_hub, kind_of_url
from worker.node import Orders
from worker.tasks import cancel_all
from worker.wire import Download, Evict

log = structlog.get_logger()

REST = timedelta(minutes=5)
"""How long an order that failed is not tried again, however often it is repeated."""

AT_ONCE = 2
"""Files that are fetched together; others wait for their turn, and all of them for the jobs' own."""

HELD_MOST = 200
"""Orders under way or waiting, and ends remembered. What is beyond that is ordered again some day."""

_DIGEST = re.compile(r"[0-9a-f]{64}")
_KIND = re.compile(r"[a-z][a-z0-9_]{0,63}")


class Duties:
    """Carries out orders; owns the tasks that do. During the drain nothing is begun.

    ``typed`` completes a model whose kind only its hub knows.
    """

    def __init__(
        self,
        models: Models,
        live: Live,
        drain: Drain,
        metrics: Metrics,
        typed: Callable[[Wanted], Awaitable[Wanted]] | None = None,
    ) -> None:
        self._models = models
        self._typed = typed
        self._live = live
        self._drain = drain
        self._metrics = metrics
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._tasks: dict[Hashable, asyncio.Task[None]] = {}
        self._resting: dict[Hashable, float] = {}
        """Orders that failed, with the loop's time until which they rest; the oldest failure first."""
        self._met: dict[Hashable, Place] = {}
        """Where the files of earlier orders are, whatever their names became; the oldest first."""

    def obey(self, orders: Orders) -> None:
        """Begin what is new of these. Returns at once and raises nothing; `Live.cancel` is done when it returns."""
        for job_id in orders.cancel:
            if self._live.cancel(job_id):
                self._metrics.ordered("cancel", "done")
        if self._drain.begun:
            return
        for download in orders.download:
            self._fetch(download)
        for evict in orders.evict:
            self._drop(evict)

    @property
    def under_way(self) -> int:
        """Orders that have not come to an end."""
        return len(self._tasks)

    def stop(self) -> None:
        """Begin the end of all that is under way; what has come of a file can be resumed."""
        for task in self._tasks.values():
            task.cancel()

    async def aclose(self) -> None:
        await cancel_all(set(self._tasks.values()))

    def _fetch(self, order: Download) -> None:
        entries = self._models.entries()
        if self._is_known(order) or any(entry.place == self._met.get(order) for entry in entries):
            return
        try:
            wanted = wanted_of(order)
        except InvalidJob as error:
            self._failed(order, "download", order.name or order.url or "", error)
            return
        if not is_here(wanted, entries):
            self._begin(order, self._fetched(order, wanted))

    def _drop(self, order: Evict) -> None:
        place = place_of(order.kind, order.name)
        entry = next((one for one in self._models.entries() if one.place == place), None)
        if entry is not None and not entry.baked and not self._is_known(order):
            self._begin(order, self._dropped(order, place))

    def _is_known(self, order: Hashable) -> bool:
        """Whether it is under way, or failed so lately that it rests; or there are too many to begin another."""
        if order in self._tasks or len(self._tasks) >= HELD_MOST:
            return True
        until = self._resting.get(order)
        if until is None:
            return False
        if asyncio.get_running_loop().time() < until:
            return True
        del self._resting[order]
        return False

    def _begin(self, order: Download | Evict, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work, name=f"order-{order.name or type(order).__name__.lower()}")
        self._tasks[order] = task
        task.add_done_callback(lambda done: self._ended(order, done))

    def _ended(self, order: Hashable, task: asyncio.Task[None]) -> None:
        del self._tasks[order]
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("internal_error", where="orders", task=task.get_name(), exc_info=error)
            self._metrics.bug()
            self._rest(order, REST)

    async def _fetched(self, order: Download, wanted: Wanted) -> None:
        try:
            async with self._slots:
                known = wanted if wanted.kind or self._typed is None else await self._typed(wanted)
                entry = await self._models.fetch(known, Priority.BACKGROUND)
        except WorkerError as error:
            self._failed(order, "download", wanted.name or wanted.url or "", error)
            return
        self._met[order] = entry.place
        _bound(self._met)
        self._metrics.ordered("download", "done")
        log.info("order_done", order="download", model=str(entry.place), bytes=entry.size)

    async def _dropped(self, order: Evict, place: Place) -> None:
        """What a job or the server uses stays, and so does what is gone already: the next report says so."""
        try:
            await self._models.remove(place)
        except (ModelInUse, ModelNotFound) as error:
            self._metrics.ordered("evict", error.code)
            log.debug("order_not_done", order="evict", model=str(place), code=error.code)
        except WorkerError as error:
            self._failed(order, "evict", str(place), error)
        else:
            self._metrics.ordered("evict", "done")
            log.info("order_done", order="evict", model=str(place))

    def _failed(self, order: Hashable, kind: str, model: str, error: WorkerError) -> None:
        """Said once; then it rests, for as long as whoever refused it asks for."""
        rest = max(REST, error.retry_after or REST)
        self._metrics.ordered(kind, error.code)
        self._rest(order, rest)
        log.warning(
            "order_failed",
            order=kind,
            model=model,
            code=error.code,
            error=error.message,
            rests_s=round(rest.total_seconds()),
        )

    def _rest(self, order: Hashable, rest: timedelta) -> None:
        self._resting[order] = asyncio.get_running_loop().time() + rest.total_seconds()
        _bound(self._resting)


def _bound(kept: dict[Hashable, Any]) -> None:
    while len(kept) > HELD_MOST:
        del kept[next(iter(kept))]


def wanted_of(order: Download) -> Wanted:
    """The model that an order to fetch means. Raises `InvalidJob` for one that nobody could carry out."""
    url = order.url or None
    if url is None and not order.name:
        raise InvalidJob("an order names neither a URL nor a file", field="download")
    try:
        name = order.name or name_of(url or "")
        kind = order.kind or (kind_of_url(url) if url else None) or ""
        told = bool(kind) or (url is not None and is_told_by_hub(url))
    except ValueError as error:
        raise InvalidJob(str(error), field="url") from None
    if name and (wrong := wrong_name(name)):
        raise InvalidJob(f"the name {name[:200]!r} {wrong}", field="name")
    if not told or (kind and not _KIND.fullmatch(kind)):
        raise InvalidJob(f"the kind {kind[:80]!r} is none", field="kind")
    sha256 = order.sha256.lower() if order.sha256 else None
    if sha256 is not None and not _DIGEST.fullmatch(sha256):
        raise InvalidJob("is no SHA-256", field="sha256")
    return Wanted(kind, name, url, sha256, order.size or None, Owner.OPERATOR, "download")


def is_here(wanted: Wanted, entries: Iterable[Entry]) -> bool:
    """Whether a file on disk is what is wanted: without asking anybody, and without counting as a use of it."""
    url = _canonical(wanted.url)
    return any(_is(entry, wanted, url) for entry in entries if entry.place.kind == wanted.place.kind)


def _is(entry: Entry, wanted: Wanted, url: str | None) -> bool:
    if wanted.sha256 is not None and entry.sha256 is not None:
        return wanted.sha256 == entry.sha256
    if url is not None:
        return url in entry.urls and wanted.sha256 is None
    return entry.place == wanted.place and wanted.sha256 is None


def _canonical(url: str | None) -> str | None:
    try:
        return canonical(url) if url is not None else None
    except ValueError:
        return url
