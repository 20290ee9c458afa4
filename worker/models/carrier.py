"""Brings model files to the disk, each once, within the room that was made for it."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection
from pathlib import Path

import structlog

from worker.errors import DiskFull, ModelCorrupt
from worker.mentions import Place
from worker.models.base import Entry, Fetched, Fetcher, Finder, Loaded, Location
from worker.models.books import Books, Hold, Leftover
from worker.models.disk import Disk
from worker.models.flight import Flight, Flights, GaveWay
from worker.models.hashing import sha256_of
from worker.models.identity import origin
from worker.models.match import Wish
from worker.models.plan import Fetch, Need, Refuse
from worker.models.room import Changes, Room, Tally
from worker.models.speed import Speed
from worker.rates import Moving, Speeds

log = structlog.get_logger()

LEARNED_MOST = 4096
PAUSE_S = 2.0
"""When nothing came for longer, nothing was to come."""

_BLOCK = 512


class Carrier:
    """Owns the transfers. Whatever ends one, its room is given back in the same instant, but for what lies there.

    ``speed`` is that of all transfers together; ``measured`` learns of each that ended, and of what was read.
    """

    def __init__(
        self, disk: Disk, finder: Finder, fetcher: Fetcher, server: Loaded, tally: Tally, *,
        cap: Callable[[], int], ceiling: int, measured: Speeds | None = None,
    ) -> None:  # fmt: skip
        self.measured = measured or Speeds()
        self.changes = Changes()
        self.flights = Flights(self._fly, self.changes.stir, fetcher.pause)
        self.books = Books(disk.entries, self.flights.by_place)
        self.room = Room(disk, self.books, self.flights, server, tally, self.changes, cap=cap, ceiling=ceiling)
        self._disk = disk
        self._finder = finder
        self._fetcher = fetcher
        self._tally = tally
        self.speed = Speed(PAUSE_S)
        self._learned: OrderedDict[str, int] = OrderedDict()
        self._landing = asyncio.Lock()
        self._hashing = asyncio.Lock()

    def size_of(self, wish: Wish) -> int | None:
        """What the file takes as far as anybody knows; at least what an earlier transfer of it came to."""
        known = [size for size in (wish.wanted.size, self._learned.get(wish.key)) if size is not None]
        return max(known, default=None)

    def left_of(self, place: Place, wish: Wish) -> int | None:
        """Bytes that a transfer to this place would have to bring, without those that an earlier one left."""
        size, left = self.size_of(wish), self.books.leftovers.get(place)
        return size if size is None or left is None or left.key != wish.key else max(0, size - left.size)

    def share(self, more: int = 0) -> float | None:
        """Bytes a second of one transfer, were so ``more`` begun; None until anything was measured."""
        rate = self.speed.rate(asyncio.get_running_loop().time())
        return None if rate is None else rate / max(1, self.flights.awaited + more)

    def begin(self, place: Place, wish: Wish, reserved: int) -> Flight:
        """Have the file come to a place that is free, within a reservation that the plan allowed."""
        self.books.leftovers.pop(place, None)
        return self.flights.begin(place, wish, reserved)

    async def learn(self, place: Place, *, sha256: str | None = None, urls: Collection[str] = ()) -> None:
        """Remember of an entry what its bytes hash to, and which canonical URLs gave them."""
        new: list[str | None] = [*sorted(urls)]
        for url in new or [None]:
            await self._disk.learn(place, sha256=sha256, url=url)
        self.books.known.refresh(place)

    async def hash(self, place: Place) -> str | None:
        """The hash of an entry's bytes, taken unless it is known; None when the file cannot be read."""
        async with self._hashing:
            entry = self._disk.entries.get(place)
            if entry is not None and entry.sha256 is not None:
                return entry.sha256
            loop = asyncio.get_running_loop()
            began = loop.time()
            digest = await sha256_of(self._disk.folders.path(place))
            if digest is not None:
                self.measured.read(entry.size if entry is not None else 0, loop.time() - began)
                await self.learn(place, sha256=digest)
            return digest

    async def resume(self) -> None:
        """Take over what the last run left of its transfers."""
        for left in await self._disk.left():
            self.books.leftovers[left.place] = Leftover(left.key, left.size)

    async def aclose(self) -> None:
        """End all transfers, keeping what they brought."""
        await self.flights.aclose()
        await self.room.aclose()

    async def _fly(self, flight: Flight) -> Place:
        """The whole way of one file."""
        partial: Path | None = None
        try:
            await self._granted()
            wish = flight.wish
            recorded = dataclasses.replace(wish.wanted, url=min(wish.own, default=None))
            partial = await self._disk.begin(flight.place, wish.key, recorded)
            return await self._brought(flight, partial)
        except DiskFull:
            self.room.short = flight.reserved
            raise
        finally:
            self._leave(flight, partial)

    async def _granted(self) -> None:
        """Until the room that was promised is free; raises `GaveWay` when it is not, after all."""
        await self.room.cleared()
        if self.room.overdrawn():
            raise GaveWay

    def _leave(self, flight: Flight, partial: Path | None) -> None:
        self.flights.remove(flight)
        if flight.landing:
            self.room.changed(flight.place)
        size = _taken(partial) if partial is not None and not flight.leaving else 0
        if size:
            self.books.leftovers[flight.place] = Leftover(flight.wish.key, size)
        self.changes.stir()

    async def _brought(self, flight: Flight, partial: Path) -> Place:
        wanted, moving = flight.wish.wanted, Moving()
        loop = asyncio.get_running_loop()
        began = loop.time()
        log.info("model_fetch_began", model=str(flight.place), bytes=wanted.size, priority=str(flight.priority))
        fetched = await self._fetcher.fetch(
            lambda: self._locations(flight),
            partial,
            wanted,
            room=lambda total: self._grow(flight, total),
            on_bytes=functools.partial(self._came, flight, moving),
            priority=lambda: flight.priority,
        )
        took = loop.time() - began
        self._tally.model_downloaded(fetched.size)
        self.measured.downloaded(moving)
        place = await self._landed(flight, fetched)
        log.info(
            "model_fetched",
            model=str(place),
            bytes=fetched.size,
            seconds=round(took, 3),
            mb_per_s=round(fetched.size / 1e6 / max(took, 1e-6), 1),
            source=fetched.location.source,
        )
        return place

    def _came(self, flight: Flight, moving: Moving, done: int, total: int | None) -> None:
        now, resumed = asyncio.get_running_loop().time(), flight.done == 0
        self.speed.saw(now, 0 if resumed else max(0, done - flight.done))
        moving.saw(done, now)
        flight.report(done, total)

    async def _locations(self, flight: Flight) -> AsyncIterator[Location]:
        """The places to try; the transfer tells at which one it is."""
        locations = self._finder.locations(flight.wish.wanted)
        try:
            async for location in locations:
                flight.source = location.source
                yield location
        finally:
            if isinstance(locations, AsyncGenerator):
                await locations.aclose()

    async def _grow(self, flight: Flight, total: int) -> None:
        """Have a reservation grow to so many bytes; a transfer that would have to wait for that gives way instead."""
        if total <= flight.reserved:
            return
        self._learned[flight.wish.key] = total
        self._learned.move_to_end(flight.wish.key)
        while len(self._learned) > LEARNED_MOST:
            self._learned.popitem(last=False)
        if not self._grew(flight, total, asked=False):
            await self.room.look()
            if not self._grew(flight, total, asked=True):
                raise GaveWay
        await self._granted()

    def _grew(self, flight: Flight, total: int, *, asked: bool) -> bool:
        """Whether it could; files are evicted only after the server was ``asked`` what it holds."""
        need = Need(flight.place, total)
        match self.room.plan([need], None, flight.priority):
            case Refuse(error):
                raise error
            case Fetch(evict, drop, _, reserve) if asked or not evict:
                flight.reserved = reserve[flight.place]
                self.room.clear(evict, drop)
                return True
        return False

    async def _landed(self, flight: Flight, fetched: Fetched) -> Place:
        """Put the file where it belongs, or drop it for one with the same bytes; pinned for everybody who waits."""
        wanted = flight.wish.wanted
        if wanted.sha256 is not None and wanted.sha256.lower() != fetched.sha256:
            raise ModelCorrupt(f"{wanted.place} came with another hash than was wanted", owner=wanted.owner)
        async with self._landing:
            urls = _urls(flight.wish, fetched)
            twin = await self._twin(flight, fetched)
            if twin is not None:
                self._pin(flight, twin)
                await self._disk.drop(flight.place)
                await self.learn(twin, sha256=fetched.sha256, urls=urls)
                log.info("model_stored_once", model=str(flight.place), same_as=str(twin))
                return twin
            flight.landing = True
            await self._disk.land(fetched.path, Entry(flight.place, fetched.size, 0, fetched.sha256, urls))
            self.books.known.refresh(flight.place)
            self._pin(flight, flight.place)
            return flight.place

    async def _twin(self, flight: Flight, fetched: Fetched) -> Place | None:
        """A file of this kind with the same bytes, that of its name included when nobody hashed it yet."""
        place = flight.wish.wanted.place
        unsure = self.books.entries.get(place)
        if unsure is not None and unsure.sha256 is None and unsure.size == fetched.size:
            await self.hash(place)
        twin = self.books.known.by_sha256(place.kind, fetched.sha256)
        return None if twin is None or twin.place in self.books.leaving else twin.place

    def _pin(self, flight: Flight, place: Place) -> None:
        for hold in flight.waiting:
            if isinstance(hold, Hold):
                self.books.pin(hold, place)


def _urls(wish: Wish, fetched: Fetched) -> frozenset[str]:
    """What is known to have given these bytes, canonical.

    Of what a job says that its URL gives only what came from there: another job may want it by that URL alone.
    """
    place = fetched.location
    proven = place.owner is wish.wanted.owner and not wish.wanted.claimed
    own = wish.own if wish.vouched or proven else frozenset[str]()
    try:
        return own | {origin(place.url, place.auth)}
    except ValueError:
        return own


def _taken(partial: Path) -> int:
    """Bytes that a partial file takes on disk."""
    try:
        found = partial.stat()
    except OSError:
        return 0
    return max(found.st_blocks * _BLOCK, found.st_size)
