"""What has to happen before a job's models are all on disk: decided from the state of the cache, without I/O.

Whoever owns the state calls `plan` under its lock and acts on the answer; nothing here changes anything. The cost
grows with what is evicted and with what is pinned, loaded or on its way, not with the number of files that are there.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from worker.errors import DiskFull, ModelTooLarge, WorkerError
from worker.mentions import Place
from worker.models.base import Entry

STEP = 256_000_000
"""Bytes set aside first for a file whose size nobody knows; less where the cap is small."""

_STEPS = 16
"""A step is at most this part of the cap."""


@dataclass(frozen=True, slots=True)
class Need:
    """A file of a job's set: ``size`` in bytes in all, None while nobody knows it."""

    place: Place
    size: int | None = None


@dataclass(frozen=True, slots=True)
class Shelf:
    """The cache as it is, in bytes; read only, and never read whole.

    ``entries`` are in the order of their use, the least recently used first; an `OrderedDict` keeps that cheaply.
    ``counted`` is the size of those that count (baked ones do not). ``reserved`` is set aside for transfers under way
    and for partial files that were left; a place is in one of the two mappings. ``idle`` names those of the reserved
    that no job waits for: they may be given up. ``loaded`` is held by the server or configured there, and ``kept`` is
    what it held on to when it was asked to let go, and what could not be deleted. ``cap`` is what models may take now,
    ``ceiling`` what they may take once all else that is written has gone; ``free`` is what the disk has left when every
    reservation has been written.

    ``behind``: somebody waits who came before. ``claimed``: the places that those before have waited for, each
    `Wait.for_` (and `UnloadFirst.places`) of theirs joined to the earlier ones until they are served.
    """

    entries: Mapping[Place, Entry]
    counted: int
    reserved: Mapping[Place, int]
    pinned: Collection[Place]
    loaded: Collection[Place]
    cap: int
    free: int
    ceiling: int | None = None
    idle: Collection[Place] = ()
    kept: Collection[Place] = ()
    behind: bool = False
    claimed: Collection[Place] = ()

    @property
    def taken(self) -> int:
        """Bytes that count against the cap."""
        return self.counted + sum(self.reserved.values())


@dataclass(frozen=True, slots=True)
class Ready:
    """All of the set is on disk."""


@dataclass(frozen=True, slots=True)
class Fetch:
    """Delete the files ``evict``, give up the transfers and partial files ``drop``, then have ``download`` come.

    ``reserve`` holds what to set aside in all for each of ``download``, at once; a place that already had less of it
    grows. A place in both ``drop`` and ``download`` is begun anew.
    """

    evict: tuple[Place, ...] = ()
    drop: tuple[Place, ...] = ()
    download: tuple[Need, ...] = ()
    reserve: Mapping[Place, int] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Wait:
    """Hold nothing and ask again when pins, transfers or those who wait before have changed.

    Once nobody holds ``for_`` any more, there is room; it is empty for one who only has to let others go first.
    """

    for_: frozenset[Place] = frozenset()


@dataclass(frozen=True, slots=True)
class UnloadFirst:
    """Have the server let go of these, then ask again; nothing is evicted before."""

    places: tuple[Place, ...]


@dataclass(frozen=True, slots=True)
class Refuse:
    """It does not fit: ``error`` is a `ModelTooLarge`, or a `DiskFull` when the node and not the job is at fault."""

    error: WorkerError


Plan = Ready | Fetch | Wait | UnloadFirst | Refuse


def plan(needs: Sequence[Need], shelf: Shelf) -> Plan:
    """What to do so that all of ``needs`` are on disk together, or why that cannot be.

    A set is all or nothing: unless everything can be had now, nothing is evicted or reserved. The least recently used
    files go first, never a pinned or loaded one, one of this set or one that came with the image; partial files that
    nobody waits for go before them. Of those the ones that turn out to be too much are spared, the most recently used
    first: small old files stay when a large one that is needed anyway makes room enough.

    Refused only for what cannot be helped by waiting: `ModelTooLarge` when the set alone is more than the ceiling,
    else `DiskFull`. A file of unknown size counts with a step. To grow a reservation, ask with the file's place and
    the bytes that it takes in all; such a one is behind nobody.

    While somebody waits, whoever came later takes no room and pins nothing that is waited for, so that everybody is
    served in order; what is on disk or on its way already may be used meanwhile.
    """
    own = _sizes(needs)
    missing = {place: size for place, size in own.items() if place not in shelf.entries}
    if not missing:
        return Wait() if _claimed(own, shelf) else Ready()
    fresh = _fresh(own, missing, shelf)
    reserve = {place: _set_aside(place, missing[place], size, shelf) for place, size in fresh.items()}
    extra = sum(size - shelf.reserved.get(place, 0) for place, size in reserve.items())
    download = tuple(Need(place, size) for place, size in missing.items())
    if not extra:
        return Wait() if _claimed(own, shelf) else Fetch(download=download, reserve=reserve)
    short = max(shelf.taken + extra - shelf.cap, extra - shelf.free)
    stock = _stock(own, fresh, shelf)
    if short > stock.now + _total(stock.loaded) + _total(stock.held):
        return Refuse(_refusal(_least(own, fresh, shelf), extra, stock, shelf))
    if shelf.behind:
        return Wait()
    if short > stock.now + _total(stock.loaded):
        return Wait(frozenset(_enough(stock.held.items(), short - stock.now - _total(stock.loaded))))
    if short > stock.now:
        return UnloadFirst(tuple(_enough(stock.loaded.items(), short - stock.now)))
    evict, drop = _victims(short, stock, shelf)
    return Fetch(evict, drop, download, reserve | {place: fresh[place] for place in drop if place in fresh})


def trim(shelf: Shelf) -> Fetch:
    """What to give up because more is there than may be: a file that somebody else put there, a cap that shrank.

    As much as can be had without waiting for anybody, which may be too little or nothing.
    """
    short = max(shelf.taken - shelf.cap, -shelf.free)
    stock = _stock({}, {}, shelf)
    return Fetch(*_victims(min(short, stock.now), stock, shelf))


@dataclass(frozen=True, slots=True)
class _Stock:
    """Bytes that could come free, by what has to happen before: least recently used first, each without the next.

    ``now`` is all of the entries that may go at once and of ``idle``; ``bound`` are the entries that may not.
    """

    now: int
    idle: Mapping[Place, int]
    loaded: Mapping[Place, int]
    held: Mapping[Place, int]
    bound: Collection[Place]


def _stock(own: Mapping[Place, int | None], fresh: Mapping[Place, int], shelf: Shelf) -> _Stock:
    bound = dict.fromkeys([*own, *shelf.pinned, *shelf.kept, *shelf.loaded])
    sizes = {entry.place: entry.size for entry in _counting(bound, shelf)}
    pinned, kept = set(shelf.pinned), set(shelf.kept)
    others = {place: size for place, size in sizes.items() if place not in own}
    left = {place: size - fresh.get(place, 0) for place, size in shelf.reserved.items()}
    idle = {place: size for place, size in left.items() if size > 0 and place in shelf.idle}
    flights = {place: size for place, size in left.items() if size > 0 and place not in idle}
    return _Stock(
        now=shelf.counted - sum(sizes.values()) + _total(idle),
        idle=idle,
        loaded={place: size for place, size in others.items() if place not in pinned and place not in kept},
        held={place: size for place, size in others.items() if place in pinned} | flights,
        bound=bound,
    )


def _counting(places: Iterable[Place], shelf: Shelf) -> list[Entry]:
    """The entries at these places whose bytes count, the least recently used first."""
    entries = (shelf.entries.get(place) for place in places)
    return sorted((e for e in entries if e is not None and not e.baked), key=lambda entry: entry.used)


def _victims(short: int, stock: _Stock, shelf: Shelf) -> tuple[tuple[Place, ...], tuple[Place, ...]]:
    """The entries to evict and the partial files to drop for so many bytes."""
    entries = (
        (place, entry.size) for place, entry in shelf.entries.items() if not entry.baked and place not in stock.bound
    )
    chosen = _enough(itertools.chain(stock.idle.items(), entries), short)
    return tuple(p for p in chosen if p not in stock.idle), tuple(p for p in chosen if p in stock.idle)


def _enough(candidates: Iterable[tuple[Place, int]], short: int) -> list[Place]:
    """The first of the candidates that make up ``short`` bytes, less those that the later ones make needless."""
    chosen: list[tuple[Place, int]] = []
    surplus = -short
    remaining = iter(candidates)
    while surplus < 0 and (candidate := next(remaining, None)) is not None:
        chosen.append(candidate)
        surplus += candidate[1]
    kept: list[Place] = []
    for place, size in reversed(chosen):
        if size <= surplus:
            surplus -= size
        else:
            kept.append(place)
    return kept[::-1]


def _sizes(needs: Sequence[Need]) -> dict[Place, int | None]:
    """Each place once, with the largest size that is told of it."""
    own: dict[Place, int | None] = {}
    for need in needs:
        known = [size for size in (own.get(need.place), need.size) if size is not None]
        own[need.place] = max(known, default=None)
    return own


def _fresh(own: Mapping[Place, int | None], missing: Mapping[Place, int | None], shelf: Shelf) -> dict[Place, int]:
    """What each missing file takes when it is begun: its size, else a step, which shrinks to what the others leave."""
    known = sum(entry.size for entry in _counting(own, shelf)) + sum(size for size in missing.values() if size)
    unknown = sum(size is None for size in missing.values())
    step = max(1, min(_step(shelf.cap), (shelf.cap - known) // unknown)) if unknown else 0
    return {place: step if size is None else size for place, size in missing.items()}


def _set_aside(place: Place, told: int | None, fresh: int, shelf: Shelf) -> int:
    """What is set aside for a missing file from now on: a transfer of unknown size that goes on knows best itself."""
    reserved = shelf.reserved.get(place, 0)
    return reserved if told is None and reserved and place not in shelf.idle else max(fresh, reserved)


def _step(cap: int) -> int:
    return max(1, min(STEP, cap // _STEPS))


def _claimed(own: Iterable[Place], shelf: Shelf) -> bool:
    return any(place in shelf.claimed for place in own)


def _total(stock: Mapping[Place, int]) -> int:
    return sum(stock.values())


def _least(own: Mapping[Place, int | None], fresh: Mapping[Place, int], shelf: Shelf) -> int:
    """What the set takes when nothing else is there."""
    return sum(entry.size for entry in _counting(own, shelf)) + sum(fresh.values())


def _refusal(least: int, extra: int, stock: _Stock, shelf: Shelf) -> WorkerError:
    ceiling = shelf.cap if shelf.ceiling is None else shelf.ceiling
    if least > ceiling:
        return ModelTooLarge(f"the models take {_text(least)} at once, and this node's cache holds {_text(ceiling)}")
    room = max(0, min(shelf.free, shelf.cap - shelf.taken))
    gone = stock.now + _total(stock.loaded) + _total(stock.held)
    kept = sorted(str(place) for place in shelf.kept if place in shelf.entries)
    why = f"; {', '.join(kept)} cannot be" if kept else ""
    return DiskFull(
        f"{_text(extra)} more of models are wanted, the disk has {_text(room)} for them "
        f"and {_text(gone)} could be given up{why}"
    )


def _text(size: int) -> str:
    """Bytes as people read them."""
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size} bytes"
