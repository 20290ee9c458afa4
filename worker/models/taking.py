"""How one set of models is taken, all or nothing: asked for, made room for, fetched, and pinned."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import AsyncGenerator, Awaitable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import structlog

from worker.errors import (
    DiskFull,
    DownloadFailed,
    InvalidJob,
    ModelForbidden,
    ModelNotFound,
    ModelTooLarge,
    Owner,
    UrlForbidden,
    WorkerError,
)
from worker.mentions import Place
from worker.models.base import Finder, Location, Wanted
from worker.models.books import Hold
from worker.models.carrier import Carrier
from worker.models.disk import Disk
from worker.models.flight import Flight, GaveWay
from worker.models.identity import has_extension, origin, safe_name
from worker.models.match import Coming, Found, Going, Here, Missing, Sight, Unsure, Wish, alike, wish_of
from worker.models.plan import Fetch, Need, Plan, Ready, Refuse, UnloadFirst, Wait
from worker.models.room import Tally
from worker.models.speed import time_for
from worker.tasks import gather_bare

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Parts:
    """What the cache works with."""

    disk: Disk
    finder: Finder
    carrier: Carrier
    tally: Tally


@dataclass(frozen=True, slots=True)
class Served:
    """All are there, and pinned."""

    places: tuple[Place, ...]


@dataclass(frozen=True, slots=True)
class Arriving:
    """Room is made and what is missing is on its way: the transfers, by the numbers of the wishes."""

    flights: Mapping[int, Flight]


@dataclass(frozen=True, slots=True)
class Ask:
    """Sources have to tell more of these wishes first."""

    numbers: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Then:
    """Something has to end first, while nothing is held. ``asked``: it tells anew what the server holds."""

    act: Awaitable[object]
    asked: bool = False


Step = Served | Arriving | Ask | Then


class Taking:
    """One set being taken for a hold. Between two steps nothing is held but a place in line.

    While others are on their way, nothing is begun that would take longer than ``at_most``. ``anew``: the set was
    taken before, and is not counted again.
    """

    def __init__(self, parts: Parts, hold: Hold, at_most: timedelta | None = None, *, anew: bool = False) -> None:
        self._disk = parts.disk
        self._finder = parts.finder
        self._carrier = parts.carrier
        self._books = parts.carrier.books
        self._room = parts.carrier.room
        self._tally = parts.tally
        self._hold = hold
        self._at_most_s = math.inf if at_most is None else at_most.total_seconds()
        self._put_off_s: float | None = None
        self._wishes: list[Wish] = []
        self._counted = anew

    async def places(self, wanted: Sequence[Wanted]) -> tuple[Place, ...]:
        """All of them on disk and pinned, in their order. Raises as `Models.provided`."""
        self._wishes = [await self._wish(one) for one in wanted]
        asked = False
        while True:
            step = self._step(asked)
            asked = isinstance(step, Then) and step.asked
            match step:
                case Served(places):
                    await self._learnt(places)
                    return places
                case Arriving(flights):
                    await self._arrived(flights)
                case Ask(numbers):
                    told = await gather_bare([self._told(self._wishes[i]) for i in numbers], name="models-ask")
                    for i, wish in zip(numbers, told, strict=True):
                        self._wishes[i] = wish
                case Then(act):
                    await act

    def time_left(self) -> float | None:
        """Seconds until all of it is here, by what was measured; None where nobody can tell."""
        if self._put_off_s is not None:
            return self._put_off_s
        share = self._carrier.share()
        known = [left_s for flight in self._hold.flights if (left_s := flight.time_left(share)) is not None]
        return max(known, default=None)

    async def _wish(self, wanted: Wanted) -> Wish:
        kind = self._disk.folders.layout.kind(wanted.kind)
        return wish_of(dataclasses.replace(await self._finder.completed(wanted), kind=kind))

    async def _told(self, wish: Wish) -> Wish:
        """With what the best source says of it."""
        locations = self._finder.locations(wish.wanted)
        try:
            with naming(wish.wanted):
                return told(wish, await anext(locations))
        except StopAsyncIteration:
            raise ModelNotFound(f"{wish.wanted.place}: no source has it") from None
        finally:
            if isinstance(locations, AsyncGenerator):
                await locations.aclose()

    def _step(self, asked: bool) -> Step:
        """What comes next, booked in the same instant in which it is decided."""
        self._put_off_s = None
        done = self._confirmed()
        if done is not None:
            return self._served(done)
        if self._hold.pins or self._hold.flights:
            self._books.release(self._hold)
            self._carrier.changes.stir()
        found = self._found()
        if not self._counted:
            self._counted = True
            each = set(found)
            hits = sum(isinstance(one, Here) for one in each)
            self._tally.models_used(hits, len(each) - hits)
        return self._before(found) or self._planned(found, asked)

    def _sight(self) -> Sight:
        """What there is; that a server lists a cut-off file of ours tells nothing either."""
        return dataclasses.replace(self._books.sight(), gone=self._books.gone | self._disk.unusable.keys())

    def _found(self) -> list[Found]:
        """What each wish comes to; two that are missing never get one place unless they are the same model."""
        sight, found = self._sight(), []
        for wish in self._wishes:
            one = sight.find(wish)
            if isinstance(one, Missing):
                sight.flights[one.place] = wish
            found.append(one)
        return found

    def _confirmed(self) -> tuple[Place, ...] | None:
        """The places, when all that was fetched is there, pinned, and what was wanted."""
        if not self._hold.flights:
            return None
        found = [self._sight().find(wish) for wish in self._wishes]
        here = [one.place for one in found if isinstance(one, Here) and (not one.ours or one.place in self._hold.pins)]
        return tuple(here) if len(here) == len(found) else None

    def _before(self, found: Sequence[Found]) -> Step | None:
        """What has to be known or over before anything can be planned."""
        numbers = []
        for i, (one, wish) in enumerate(zip(found, self._wishes, strict=True)):
            match one:
                case Going():
                    return Then(self._carrier.changes.next())
                case Unsure(place):
                    return Then(self._hashed(place))
                case Missing(place) if wish.vague:
                    numbers.append(i)
                case Missing(place):
                    self._check_listed(wish, place)
        return Ask(tuple(numbers)) if numbers else None

    def _check_listed(self, wish: Wish, place: Place) -> None:
        """Raise `InvalidJob` for a file that the server would never find."""
        self._disk.folders.path(place)
        layout = self._disk.folders.layout
        if not layout.lists(*place):
            ends = " ".join(layout.shelving(place.kind).extensions)
            message = f"{layout.family} finds no {place.kind} called {place.name!r}; such files end with one of {ends}"
            raise InvalidJob(message, field=wish.wanted.field)

    async def _hashed(self, place: Place) -> None:
        """Have a file hashed that may be the one, pinned meanwhile."""
        self._books.pin(self._hold, place)
        if await self._carrier.hash(place) is None:
            if await self._disk.refresh(timedelta(0)):
                self._room.changed()
            elif place in self._disk.entries:
                raise DownloadFailed(f"{place} cannot be read")

    def _planned(self, found: Sequence[Found], asked: bool) -> Step:
        needs = self._needs(found)
        answer = self._room.plan(needs, self._hold, self._hold.priority)
        if not asked and self._must_ask(answer):
            return Then(self._room.look(), asked=True)
        match answer:
            case Ready():
                return self._served(tuple(one.place for one in found if isinstance(one, Here)))
            case Fetch():
                self._put_off_s = self._too_long(found)
                return self._begun(found, answer) if self._put_off_s is None else Then(self._carrier.changes.next())
            case Wait(places):
                self._stand(places)
                return Then(self._carrier.changes.next())
            case UnloadFirst(places):
                self._stand(places)
                return Then(self._room.unload(places))
            case Refuse(error):
                self._refused(error, needs)
                raise error

    def _too_long(self, found: Sequence[Found]) -> float | None:
        """Seconds that what is missing would take beside what others wait for, when that is more than it may."""
        missing = [(one.place, wish) for one, wish in zip(found, self._wishes, strict=True) if isinstance(one, Missing)]
        left = [self._carrier.left_of(place, wish) for place, wish in missing]
        known = [size for size in left if size is not None]
        if not known or len(known) < len(left) or not self._carrier.flights.awaited:
            return None
        took_s = time_for(max(known), self._carrier.share(len(left)))
        return None if took_s is None or took_s <= self._at_most_s else took_s

    def _must_ask(self, answer: Plan) -> bool:
        """Whether the answer depends on what the server holds."""
        match answer:
            case Fetch():
                return bool(answer.evict)
            case Wait(places):
                return bool(places)
            case Refuse():
                return bool(self._books.kept)
        return isinstance(answer, UnloadFirst)

    def _needs(self, found: Sequence[Found]) -> list[Need]:
        needs = []
        for one, wish in zip(found, self._wishes, strict=True):
            match one:
                case Here(place, True):
                    needs.append(Need(place, self._disk.entries[place].size))
                case Missing(place):
                    needs.append(Need(place, self._carrier.size_of(wish)))
                case Coming(place) if place in self._books.flights:
                    needs.append(Need(place, self._books.flights[place].reserved))
        return needs

    def _begun(self, found: Sequence[Found], answer: Fetch) -> Step:
        """Book all that the plan says: from now on nothing of the set can go, and what is missing comes."""
        if not answer.reserve.keys().isdisjoint(answer.drop):
            self._room.clear((), answer.drop)
            return Then(self._room.cleared())
        self._room.clear(answer.evict, answer.drop)
        flights: dict[int, Flight] = {}
        for i, (one, wish) in enumerate(zip(found, self._wishes, strict=True)):
            match one:
                case Here(place, True):
                    self._books.pin(self._hold, place)
                case Missing(place) | Coming(place):
                    flight = self._books.flights.get(place)
                    flight = flight or self._carrier.begin(place, wish, answer.reserve[place])
                    flight.reserved = max(flight.reserved, answer.reserve.get(place, 0))
                    flights[i] = flight
        for flight in flights.values():
            flight.join(self._hold, self._hold.priority)
            self._hold.flights.add(flight)
        self._leave_line()
        return Arriving(flights)

    async def _arrived(self, flights: Mapping[int, Flight]) -> None:
        """Until all have landed. When one gave way, or failed for a reason of somebody else's, all is asked anew."""
        arrivals = [self._arrival(self._wishes[i], flight) for i, flight in flights.items()]
        try:
            places = await gather_bare(arrivals, name="models-arrive")
        except GaveWay:
            return
        for i, place in zip(flights, places, strict=True):
            self._wishes[i] = dataclasses.replace(self._wishes[i], landed=place)

    async def _arrival(self, wish: Wish, flight: Flight) -> Place:
        try:
            with naming(wish.wanted):
                return await flight.landed()
        except WorkerError as error:
            if isinstance(error, GaveWay) or alike(wish, flight.wish):
                raise
            raise GaveWay from error

    def _served(self, places: tuple[Place, ...]) -> Served:
        for place in places:
            if place in self._disk.entries:
                self._books.pin(self._hold, place)
                self._disk.touch(place)
        self._leave_line()
        return Served(places)

    async def _learnt(self, places: Sequence[Place]) -> None:
        """Note for each file that was there already the URL that somebody trusted says it is behind, too."""
        for wish, place in zip(self._wishes, places, strict=True):
            entry = self._disk.entries.get(place)
            if entry is not None and wish.vouched and not wish.own <= entry.urls:
                await self._carrier.learn(place, urls=wish.own)

    def _stand(self, claims: Collection[Place]) -> None:
        """Stand in line, or go on standing there."""
        if self._books.wait(self._hold, claims):
            wanted = [str(wish.wanted.place) for wish in self._wishes]
            log.info("model_waits", models=wanted, waits_for=[str(place) for place in claims])

    def _leave_line(self) -> None:
        if self._books.served(self._hold):
            self._carrier.changes.stir()

    def _refused(self, error: WorkerError, needs: Sequence[Need]) -> None:
        if isinstance(error, DiskFull):
            self._room.short = sum(need.size or 0 for need in needs if need.place not in self._disk.entries)


@contextmanager
def naming(wanted: Wanted) -> Iterator[None]:
    """Have an error that is about one model of a job say where the job names it."""
    try:
        yield
    except (ModelForbidden, ModelNotFound, ModelTooLarge, UrlForbidden) as error:
        at = f"{wanted.field}: "
        if wanted.owner is not Owner.JOB or not wanted.field or error.message.startswith(at):
            raise
        raise type(error)(at + error.message) from error


def told(wish: Wish, location: Location) -> Wish:
    """The wish with what a source tells of it: name, size, hash, and one more URL.

    What was said of it before holds. A source that gives the same hash vouches for the URL that it was wanted by.
    """
    wanted = wish.wanted
    name = wanted.name or safe_name(location.name or "")
    if not has_extension(name) and location.name and has_extension(location.name):
        name += "." + location.name.rpartition(".")[2]
    sha256 = wanted.sha256 or location.sha256
    size = location.size if wanted.size is None else wanted.size
    try:
        urls = wish.urls | {origin(location.url, location.auth)}
    except ValueError:
        urls = wish.urls
    proven = location.sha256 is not None and location.owner is wanted.owner and not wanted.claimed
    wanted = dataclasses.replace(wanted, name=name, sha256=sha256, size=size)
    return dataclasses.replace(wish, wanted=wanted, urls=urls, asked=True, vouched=wish.vouched or proven)
