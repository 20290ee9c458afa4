"""The cache of model files: sets of models for jobs, all or nothing, under a cap that holds at every instant."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import structlog

from worker.errors import DiskFull, ModelComing, ModelInUse, ModelNotFound, WorkerError
from worker.mentions import Place
from worker.models.auth import Auth
from worker.models.base import Entry, InFlight, Priority, Provided, Wanted
from worker.models.books import Hold
from worker.models.plan import STEP, Need, Refuse
from worker.models.speed import MEASURED_S
from worker.models.taking import Parts, Taking
from worker.tasks import cancel_all, run_guarded

log = structlog.get_logger()

BACKGROUND_AT_ONCE = 2
GRACE = timedelta(minutes=2)
"""By so much later than was said somebody may come for what is kept for him."""

LOOK_S = 1.0
"""How often one who waits for models looks at how fast they come."""

DELAY_MOST = timedelta(minutes=15)
TIDY_EVERY = timedelta(seconds=30)
SPACE_FRESH = timedelta(seconds=2)
_Identities = frozenset[tuple[str, str, str | None, str | None, Auth | None]]
_PROBE = Place("checkpoint", ".space")


@dataclass(slots=True)
class _Expected:
    """Somebody who was put off: what he wants, None once he has it, and his place in line, which he keeps."""

    wanted: _Identities | None
    rank: tuple[int, int]


class Cache:
    """`Models` over one disk; ``close`` closes what it was made of. Made by `worker.models.open.open_cache`."""

    def __init__(self, parts: Parts, close: Callable[[], Awaitable[None]]) -> None:
        self._parts = parts
        self._disk = parts.disk
        self._carrier = parts.carrier
        self._books = parts.carrier.books
        self._room = parts.carrier.room
        self._close = close
        self._tickets = 0
        self._hints: dict[Wanted, asyncio.Task[None]] = {}
        self._expected: dict[asyncio.Task[None], _Expected] = {}
        self._background = asyncio.Semaphore(BACKGROUND_AT_ONCE)
        self._closing = False

    @property
    def version(self) -> int:
        return self._room.version

    @property
    def bytes(self) -> int:
        """What counts against the cap: entries that did not come with the image, and all that is set aside."""
        return self._disk.counted + sum(one.reserved for one in self._books.transfers())

    @property
    def cap(self) -> int:
        """Bytes that models may take now."""
        return self._room.cap

    @property
    def free(self) -> int:
        """Bytes that more models may take, by the cap and by what the disk has left. Raises `DownloadFailed`."""
        shelf = self._room.shelf(None, Priority.BACKGROUND)
        return max(0, min(shelf.cap - shelf.taken, shelf.free))

    @property
    def room(self) -> int:
        """Bytes of the disk that this worker may fill: free ones, and those that all that it knows of takes.

        Raises `DownloadFailed` where nobody can tell.
        """
        begun = sum(one.done for one in self._books.transfers())
        return self._disk.free_bytes() + self._disk.others + self._disk.counted + begun

    @property
    def folder(self) -> Path | None:
        """The folder of the server's models."""
        return self._disk.folders.root

    async def loaded(self) -> frozenset[Place]:
        """What the server holds now, by our names."""
        await self._room.look()
        return self._books.loaded

    @property
    def hinting(self) -> int:
        """How many hints have not come to an end."""
        return len(self._hints)

    @asynccontextmanager
    async def provided(self, wanted: Sequence[Wanted], at_most: timedelta | None = None) -> AsyncIterator[Provided]:
        """As `Models.provided`."""
        expected = self._expected_first(wanted)
        rank = None if expected is None else self._expected[expected].rank
        async with self._held(wanted, Priority.JOB, at_most, rank) as provided:
            self._met(wanted)
            yield provided

    def hint(self, wanted: Wanted, priority: Priority = Priority.BACKGROUND) -> None:
        """As `Models.hint`."""
        if not self._closing and wanted not in self._hints:
            task = asyncio.create_task(self._hinted(wanted, priority), name=f"hint-{wanted.place}")
            self._hints[wanted] = task
            task.add_done_callback(lambda _: self._hints.pop(wanted, None))

    async def fetch(self, wanted: Wanted, priority: Priority = Priority.START) -> Entry:
        """As `Models.fetch`. A file that only the server knows comes as a baked entry without size."""
        async with self._held([wanted], priority) as provided:
            place = provided.places[0]
            return self._disk.entries.get(place) or Entry(place, 0, 0, baked=True)

    async def remove(self, place: Place) -> None:
        """As `Models.remove`. Raises `DiskFull` for a file that cannot be deleted."""
        place = self._disk.folders.canonical(place)
        self._check_removable(place)
        await self._room.look()
        self._check_removable(place)
        if place in self._books.loaded:
            raise ModelInUse(f"{place} is loaded in the image server, or configured there")
        self._room.clear([place], ())
        await self._room.cleared()
        if place in self._disk.entries:
            raise DiskFull(f"{place} cannot be deleted; the log says why")

    def entries(self) -> tuple[Entry, ...]:
        return tuple(self._disk.entries.values())

    def transfers(self) -> tuple[InFlight, ...]:
        return self._books.transfers()

    @property
    def paused(self) -> Mapping[str, str]:
        """The operator's sources that are left alone for now, by the code of their error."""
        return self._parts.finder.paused

    async def typed(self, wanted: Wanted) -> Wanted:
        """The same with its kind, for what only its hub knows the kind of. Raises as `Finder.locations`."""
        return await self._parts.finder.typed(wanted)

    async def space(self) -> None:
        """As `Models.space`: room for what was wanted when there was none, else for a file of unknown size."""
        await self.tidy(SPACE_FRESH)
        answer = self._room.plan([Need(_PROBE, self._room.short or STEP)], None, Priority.JOB)
        if isinstance(answer, Refuse) and isinstance(answer.error, DiskFull):
            raise answer.error
        self._room.short = 0

    async def tidy(self, older_than: timedelta = TIDY_EVERY) -> None:
        """Take up what the server or others wrote meanwhile, and give up what is too much since then."""
        if await self._disk.refresh(older_than):
            self._room.changed()
        self._books.stuck.clear()
        await self._room.trim()

    async def keep(self) -> None:
        """A service: tidies up every now and then."""
        while True:
            await asyncio.sleep(TIDY_EVERY.total_seconds())
            try:
                await self.tidy()
            except WorkerError as error:
                log.warning("models_not_tidied", code=error.code, error=error.message)

    def drain(self) -> None:
        """Nothing is fetched any more that no job waits for; what was begun can be resumed."""
        self._closing = True
        for task in (*self._hints.values(), *self._expected):
            task.cancel()
        self._carrier.flights.halt()

    async def aclose(self) -> None:
        """End all transfers, keeping what they brought."""
        self.drain()
        await cancel_all({*self._hints.values(), *self._expected})
        await self._carrier.aclose()
        await self._close()

    def _hold(self, priority: Priority, rank: tuple[int, int] | None = None) -> Hold:
        """Whoever holds pins them; whoever waits holds nothing but a place in line. To be let go of."""
        self._tickets += 1
        return Hold(rank or (int(priority is Priority.BACKGROUND), self._tickets), priority)

    def _let_go(self, hold: Hold) -> None:
        self._books.served(hold)
        self._books.release(hold)
        self._carrier.changes.stir()

    @asynccontextmanager
    async def _held(
        self,
        wanted: Sequence[Wanted],
        priority: Priority,
        at_most: timedelta | None = None,
        rank: tuple[int, int] | None = None,
    ) -> AsyncIterator[Provided]:
        loop = asyncio.get_running_loop()
        began = loop.time()
        hold = self._hold(priority, rank)
        try:
            try:
                taking = Taking(self._parts, hold, at_most)
                guards = () if at_most is None else (_overdue(taking, at_most),)
                places = await run_guarded(taking.places(wanted), *guards, name="models-taken")
            except ModelComing as error:
                self._expect(wanted, hold, error.retry_after or timedelta(0))
                raise
            except WorkerError as error:
                names = list(dict.fromkeys(str(one.place) for one in wanted))
                log.warning("model_refused", models=names, code=error.code, error=error.message)
                raise
            finally:
                waited_s = loop.time() - began
                self._parts.tally.models_waited(waited_s)
            yield Provided(places, self.version, waited_s)
        finally:
            self._let_go(hold)

    def _expect(self, wanted: Sequence[Wanted], hold: Hold, delay: timedelta) -> None:
        """Have what was begun for this hold go on, and stay, until somebody is provided with it, or did not come."""
        names = list(dict.fromkeys(str(one.place) for one in wanted))
        log.info("model_put_off", models=names, delay_s=round(delay.total_seconds()), begun=bool(hold.flights))
        if self._closing or not hold.flights:
            return
        kept = self._hold(Priority.START, hold.rank)
        self._books.join(kept, hold)
        task = asyncio.create_task(self._kept(wanted, kept, delay + GRACE), name=f"models-expected-{names[0]}")
        self._expected[task] = _Expected(_identities(wanted), hold.rank)
        task.add_done_callback(lambda task: self._expected_ended(task, kept))

    async def _kept(self, wanted: Sequence[Wanted], hold: Hold, within: timedelta) -> None:
        """What fails is met again by the job that comes for it."""
        over = asyncio.get_running_loop().time() + within.total_seconds()
        with suppress(TimeoutError, WorkerError):
            async with asyncio.timeout_at(over):
                await Taking(self._parts, hold, anew=True).places(wanted)
                await asyncio.sleep(over - asyncio.get_running_loop().time())

    def _expected_ended(self, task: asyncio.Task[None], hold: Hold) -> None:
        del self._expected[task]
        self._let_go(hold)

    def _expected_first(self, wanted: Sequence[Wanted]) -> asyncio.Task[None] | None:
        """Of those who are expected to come for these the one who was put off first."""
        identities = _identities(wanted)
        return next((task for task, expected in self._expected.items() if expected.wanted == identities), None)

    def _met(self, wanted: Sequence[Wanted]) -> None:
        """Somebody was provided with these: who is expected to come for them first need not be expected any more."""
        task = self._expected_first(wanted)
        if task is not None:
            self._expected[task].wanted = None
            task.cancel()

    async def _hinted(self, wanted: Wanted, priority: Priority) -> None:
        """What fails was logged, and nobody waits."""
        try:
            async with self._background, self._held([wanted], priority):
                pass
        except WorkerError:
            return

    def _check_removable(self, place: Place) -> None:
        if place not in self._disk.entries or place in self._books.leaving:
            raise ModelNotFound(f"there is no {place}")
        if place in self._books.pinned:
            raise ModelInUse(f"{place} is used by a job")


def _identities(wanted: Sequence[Wanted]) -> _Identities:
    """By which a set that is wanted again is known."""
    return frozenset((one.kind, one.name, one.url, one.sha256, one.auth) for one in wanted)


async def _overdue(taking: Taking, at_most: timedelta) -> None:
    """A guard: raises `ModelComing` once the set is seen to take longer yet than it may be waited for."""
    await asyncio.sleep(MEASURED_S)
    left_s: float | None = None
    while left_s is None or left_s <= at_most.total_seconds():
        await asyncio.sleep(LOOK_S)
        left_s = taking.time_left()
    delay = timedelta(seconds=min(left_s, DELAY_MOST.total_seconds()))
    raise ModelComing(f"the models take about {delay.total_seconds():.0f} s to come yet", retry_after=delay)
