"""What the cache promised to whom: pins, room, and the order of those who wait. No I/O, nothing to wait for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

from worker.mentions import Place
from worker.models.base import Entry, InFlight, Priority
from worker.models.flight import Flight
from worker.models.match import Known, Sight
from worker.models.plan import Shelf


@dataclass(eq=False, slots=True)
class Hold:
    """What one user of models holds. ``rank`` orders those who wait: prefetches after all others."""

    rank: tuple[int, int]
    priority: Priority
    pins: set[Place] = field(default_factory=set)
    flights: set[Flight] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class Leftover:
    """What an interrupted transfer left: ``size`` bytes on disk, to be gone on with for the model of this key."""

    key: str
    size: int


@dataclass(frozen=True, slots=True)
class Measures:
    """Bytes: what models may take now, what they may take once everything else is gone, and what the disk has left."""

    cap: int
    ceiling: int
    free: int


class Books:
    """``entries`` in the order of their use, and ``flights``, are another's and read only."""

    def __init__(self, entries: Mapping[Place, Entry], flights: Mapping[Place, Flight]) -> None:
        self.entries = entries
        self.flights = flights
        self.known = Known(entries)
        self.leftovers: dict[Place, Leftover] = {}
        self.leaving: set[Place] = set()
        """Files that are being deleted."""
        self.dropping: dict[Place, int] = {}
        """Partial files that are being deleted, with the bytes that this frees."""
        self.loaded: frozenset[Place] = frozenset()
        """What the server held when it was asked last."""
        self.kept: frozenset[Place] = frozenset()
        """What the server did not let go of when it was asked to."""
        self.stuck: set[Place] = set()
        """What could not be deleted."""
        self.released: dict[Place, int] = {}
        """What was pinned and is no more since the server was asked last: it may have loaded it. With a mark."""
        self.gone: set[Place] = set()
        """What was deleted in this life, so that the server may still list it."""
        self._marks = 0
        self._pins: Counter[Place] = Counter()
        self._line: dict[Hold, frozenset[Place]] = {}

    @property
    def pinned(self) -> Collection[Place]:
        return self._pins.keys()

    @property
    def waiting(self) -> int:
        """How many wait for room."""
        return len(self._line)

    def mark(self) -> int:
        """A number that is larger than that of every release so far."""
        self._marks += 1
        return self._marks

    def asked(self, loaded: frozenset[Place], mark: int) -> None:
        """The server, asked at this mark, holds these."""
        self.loaded = loaded
        self.kept &= loaded
        self.released = {place: at for place, at in self.released.items() if at > mark}

    def pin(self, hold: Hold, place: Place) -> None:
        if place not in hold.pins:
            hold.pins.add(place)
            self._pins[place] += 1

    def join(self, hold: Hold, other: Hold) -> None:
        """Have it pin, and wait for, what another one does."""
        for place in other.pins:
            self.pin(hold, place)
        for flight in other.flights:
            flight.join(hold, hold.priority)
        hold.flights |= other.flights

    def release(self, hold: Hold) -> None:
        """Take back its pins and its part in transfers, which go on."""
        for place in hold.pins:
            self._pins[place] -= 1
            if not self._pins[place]:
                del self._pins[place]
                self.released[place] = self.mark()
        hold.pins.clear()
        for flight in list(hold.flights):
            flight.leave(hold)
        hold.flights.clear()

    def wait(self, hold: Hold, claims: Collection[Place]) -> bool:
        """Have it stand in line, or go on standing there; whether it is new."""
        new = hold not in self._line
        self._line[hold] = self._line.get(hold, frozenset()) | frozenset(claims)
        return new

    def served(self, hold: Hold) -> bool:
        """Have it leave the line; whether it stood there."""
        return self._line.pop(hold, None) is not None

    @property
    def clear(self) -> bool:
        """Whether nothing is being deleted."""
        return not self.leaving and not self.dropping

    def sight(self) -> Sight:
        wishes = {place: flight.wish for place, flight in self.flights.items()}
        going = self.leaving | self.dropping.keys() | {p for p, flight in self.flights.items() if flight.leaving}
        return Sight(self.entries, self.known, wishes, going, self.gone)

    def shelf(self, counted: int, measures: Measures, hold: Hold | None, priority: Priority) -> Shelf:
        """The state as the plan wants it, for one who asks for room; without a hold for a transfer that grows."""
        entries, gone = self._staying()
        flights = {place: flight for place, flight in self.flights.items() if self._counts(flight)}
        left = {place: leftover.size for place, leftover in self.leftovers.items() if place not in flights}
        unwritten = sum(max(0, flight.reserved - flight.done) for flight in flights.values())
        before = [claims for other, claims in self._line.items() if hold is not None and other.rank < hold.rank]
        return Shelf(
            entries=entries,
            counted=counted - gone,
            reserved={place: flight.reserved for place, flight in flights.items()} | left,
            pinned=self._pins.keys(),
            loaded=self.loaded | self.released.keys(),
            cap=measures.cap,
            free=measures.free + gone + sum(self.dropping.values()) - unwritten,
            ceiling=measures.ceiling,
            idle=left.keys() | (self._idle(flights) if priority is not Priority.BACKGROUND else set()),
            kept=self.kept | self.stuck,
            behind=bool(before),
            claimed=frozenset[Place]().union(*before),
        )

    def _counts(self, flight: Flight) -> bool:
        """Whether its bytes are its own yet: not when it is given up, or its file is an entry already."""
        return not flight.leaving and not (flight.landing and flight.place in self.entries)

    def _staying(self) -> tuple[Mapping[Place, Entry], int]:
        """The entries that are not being deleted, and the bytes of those that are."""
        gone = [entry for place in self.leaving if (entry := self.entries.get(place)) is not None]
        size = sum(entry.size for entry in gone if not entry.baked)
        return (Without(self.entries, frozenset(self.leaving)) if gone else self.entries), size

    def _idle(self, flights: Mapping[Place, Flight]) -> set[Place]:
        """Transfers that nobody waits for, so that they may be given up."""
        return {place for place, flight in flights.items() if flight.priority is Priority.BACKGROUND}

    def transfers(self) -> tuple[InFlight, ...]:
        """What is on its way, then what was left."""
        flights = [flight.described() for flight in self.flights.values()]
        left = [InFlight(place, one.size, one.size) for place, one in self.leftovers.items()]
        return (*flights, *left)


class Without(Mapping[Place, Entry]):
    """Entries less a few, in their order, without a copy."""

    def __init__(self, entries: Mapping[Place, Entry], hidden: frozenset[Place]) -> None:
        self._entries = entries
        self._hidden = hidden

    def __getitem__(self, place: Place) -> Entry:
        if place in self._hidden:
            raise KeyError(place)
        return self._entries[place]

    def __iter__(self) -> Iterator[Place]:
        return (place for place in self._entries if place not in self._hidden)

    def __len__(self) -> int:
        return len(self._entries) - len(self._hidden & self._entries.keys())
