"""Makes room for models: asks the plan, deletes what it chose, and has the server let go of what it holds."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Coroutine, Iterable
from contextlib import suppress
from typing import Any, Protocol

import structlog

from worker.errors import InvalidJob, WorkerError
from worker.mentions import Place
from worker.models.base import Loaded, Priority
from worker.models.books import Books, Hold, Leftover, Measures
from worker.models.disk import Disk
from worker.models.flight import Flight, Flights
from worker.models.plan import Need, Plan, Shelf, plan, trim

log = structlog.get_logger()


class Tally(Protocol):
    """What the cache counts of itself."""

    def models_used(self, hits: int, misses: int) -> None:
        """So many models were on disk when they were wanted, so many were not."""
        ...

    def model_evicted(self) -> None: ...

    def model_downloaded(self, bytes: int) -> None: ...

    def models_waited(self, seconds: float) -> None:
        """Somebody waited so long for models."""
        ...


class Changes:
    """Something that others may wait for has changed."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def stir(self) -> None:
        self._event.set()
        self._event = asyncio.Event()

    def next(self) -> Coroutine[Any, Any, bool]:
        """Until the next change, from this call on."""
        return self._event.wait()


class Room:
    """The space for models on one disk. ``cap`` tells what they may take now, ``ceiling`` what they ever may.

    ``version`` grows whenever a file came or went. ``short`` are the bytes that were wanted when the disk was full
    last. Owns the tasks that delete.
    """

    def __init__(
        self, disk: Disk, books: Books, flights: Flights, server: Loaded, tally: Tally, changes: Changes, *,
        cap: Callable[[], int], ceiling: int,
    ) -> None:  # fmt: skip
        self.version = 0
        self.short = 0
        self._disk = disk
        self._books = books
        self._flights = flights
        self._server = server
        self._tally = tally
        self._changes = changes
        self._cap = cap
        self._ceiling = ceiling
        self._looking = asyncio.Lock()
        self._clearing: set[asyncio.Task[None]] = set()

    @property
    def cap(self) -> int:
        return self._cap()

    def shelf(self, hold: Hold | None, priority: Priority) -> Shelf:
        """Raises `DownloadFailed` where nobody can tell what the disk has left."""
        measures = Measures(self._cap(), self._ceiling, self._disk.free_bytes())
        return self._books.shelf(self._disk.counted, measures, hold, priority)

    def plan(self, needs: Collection[Need], hold: Hold | None, priority: Priority) -> Plan:
        """What these need just now; without a hold for a transfer that grows. Raises as `shelf`."""
        return plan(list(needs), self.shelf(hold, priority))

    def overdrawn(self) -> bool:
        """Whether more is promised than there is: a deletion failed, or others wrote."""
        shelf = self.shelf(None, Priority.BACKGROUND)
        return shelf.taken > shelf.cap or shelf.free < 0

    async def trim(self) -> None:
        """Give up what is too much because others wrote or the server fetched something itself."""
        if self.overdrawn():
            await self.look()
            less = trim(self.shelf(None, Priority.JOB))
            self.clear(less.evict, less.drop)
            await self.cleared()

    def clear(self, evict: Iterable[Place], drop: Iterable[Place]) -> None:
        """Begin to delete these files, and to give up these transfers and what was left of others."""
        books = self._books
        entries = [place for place in evict if place not in books.leaving]
        partials = {place: self._flights.by_place.get(place) for place in drop if place not in books.dropping}
        books.leaving.update(entries)
        for place, flight in partials.items():
            left = books.leftovers.pop(place, None)
            books.dropping[place] = flight.done if flight is not None else left.size if left is not None else 0
            if flight is not None:
                flight.leaving = True
        if entries or partials:
            task = asyncio.create_task(self._clear(entries, partials), name="models-clear")
            self._clearing.add(task)
            task.add_done_callback(self._clearing.discard)

    async def cleared(self) -> None:
        """Until nothing is being deleted any more."""
        while not self._books.clear:
            await self._changes.next()

    async def look(self) -> None:
        """Ask the server what it holds."""
        async with self._looking:
            mark = self._books.mark()
            loaded = await self._server.loaded()
            self._books.asked(frozenset(self._canonical(loaded)), mark)

    async def unload(self, places: Collection[Place]) -> None:
        """Have the server let go of these; what it does not let go of is remembered as kept."""
        log.info("model_unload_asked", models=[str(place) for place in places])
        await self._server.unload(places)
        await self.look()
        self._books.kept |= self._books.loaded.intersection(places)
        self._changes.stir()

    def changed(self, place: Place | None = None) -> None:
        """A file came or went: at this place, or anywhere."""
        if place is None:
            self._books.known.rebuild()
        else:
            self._books.known.refresh(place)
        self.version += 1
        self._changes.stir()

    async def aclose(self) -> None:
        """Wait for deletions to end."""
        while self._clearing:
            await asyncio.wait(self._clearing)

    def _canonical(self, places: Iterable[Place]) -> Iterable[Place]:
        for place in places:
            with suppress(InvalidJob):
                yield self._disk.folders.canonical(place)

    async def _clear(self, entries: Iterable[Place], partials: dict[Place, Flight | None]) -> None:
        for place, flight in partials.items():
            if flight is not None:
                await self._flights.drop(flight)
            await self._drop(place)
        for place in entries:
            await self._evict(place)

    async def _drop(self, place: Place) -> None:
        size = self._books.dropping[place]
        try:
            await self._disk.drop(place)
        except WorkerError as error:
            self._books.leftovers[place] = Leftover("", size)
            log.error("model_stays", model=str(place), code=error.code, error=error.message)
        finally:
            del self._books.dropping[place]
            self._changes.stir()

    async def _evict(self, place: Place) -> None:
        try:
            size = await self._disk.delete(place)
            self._books.gone.add(place)
            self._tally.model_evicted()
            log.info("model_evicted", model=str(place), bytes=size)
        except WorkerError as error:
            self._books.stuck.add(place)
            log.error("model_stays", model=str(place), code=error.code, error=error.message)
        finally:
            self._books.leaving.discard(place)
            self.changed(place)
