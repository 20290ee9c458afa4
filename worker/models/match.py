"""Which file on disk, or on its way, is the model that somebody wants; decided without I/O, in constant time."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass

from worker.errors import InvalidJob, Owner
from worker.mentions import Place, stem_of
from worker.models.base import Entry, Wanted
from worker.models.identity import Match, apart, identity, matches, origin


@dataclass(frozen=True, slots=True)
class Wish:
    """A model that is wanted, with what was found out about it.

    ``key`` is its identity as it was first wanted, the same in every run. ``own`` is the canonical URL that it was
    wanted by, ``urls`` are that and the one that a source gave. ``asked``: a source was asked. ``vouched``: not only a
    job says that its URL gives what its hash names. ``landed`` is where a transfer for it has put it.
    """

    wanted: Wanted
    key: str
    own: frozenset[str] = frozenset()
    urls: frozenset[str] = frozenset()
    asked: bool = False
    vouched: bool = False
    landed: Place | None = None

    @property
    def by_name(self) -> bool:
        """Whether any file of its name will do."""
        return self.wanted.url is None and self.wanted.sha256 is None

    @property
    def vague(self) -> bool:
        """Whether a source might tell more of it."""
        wanted = self.wanted
        return not self.asked and (not wanted.name or wanted.sha256 is None or wanted.size is None)


def wish_of(wanted: Wanted) -> Wish:
    """Raises `InvalidJob` for a URL that names no file."""
    try:
        urls = frozenset([origin(wanted.url, wanted.auth)]) if wanted.url else frozenset[str]()
        return Wish(wanted, identity(wanted), urls, urls, vouched=wanted.owner is Owner.OPERATOR and not wanted.claimed)
    except ValueError as error:
        raise InvalidJob(str(error), field=wanted.field) from None


@dataclass(frozen=True, slots=True)
class Here:
    """It is this file. ``ours`` unless it is one that only the server knows."""

    place: Place
    ours: bool = True


@dataclass(frozen=True, slots=True)
class Unsure:
    """It may be this file, whose bytes nobody has hashed yet."""

    place: Place


@dataclass(frozen=True, slots=True)
class Coming:
    """A transfer to this place brings it."""

    place: Place


@dataclass(frozen=True, slots=True)
class Going:
    """What it is, or the place where it belongs, is just being cleared."""


@dataclass(frozen=True, slots=True)
class Missing:
    """It is not here and belongs to this place, which is free."""

    place: Place


Found = Here | Unsure | Coming | Going | Missing


class Known:
    """The entries by what they hold and by what people call them; follows ``entries`` by `refresh`."""

    def __init__(self, entries: Mapping[Place, Entry]) -> None:
        self._entries = entries
        self._seen: dict[Place, Entry] = {}
        self._by: dict[tuple[str, str], dict[Place, None]] = {}
        self.rebuild()

    def rebuild(self) -> None:
        """Follow whatever changed."""
        for place in {*self._seen, *self._entries}:
            self.refresh(place)

    def refresh(self, place: Place) -> None:
        """Follow the entry of this place, which came, went or changed."""
        entry, seen = self._entries.get(place), self._seen.pop(place, None)
        if entry is not None:
            self._seen[place] = entry
        old, new = _keys(seen), _keys(entry)
        for key in old - new:
            places = self._by[key]
            del places[place]
            if not places:
                del self._by[key]
        for key in new - old:
            self._by.setdefault(key, {})[place] = None

    def by_sha256(self, kind: str, sha256: str) -> Entry | None:
        return self._first(kind, f"sha256:{sha256.lower()}")

    def by_url(self, kind: str, url: str) -> Entry | None:
        """The one that learned this URL last."""
        return self._last(kind, f"url:{url}")

    def by_short_name(self, place: Place) -> Entry | None:
        """The only entry that has this name without its folder or extension."""
        places = self._by.get((place.kind, f"name:{place.name}"), {})
        return self._entries.get(next(iter(places))) if len(places) == 1 else None

    def _first(self, kind: str, key: str) -> Entry | None:
        places = self._by.get((kind, key))
        return self._entries.get(next(iter(places))) if places else None

    def _last(self, kind: str, key: str) -> Entry | None:
        places = self._by.get((kind, key))
        return self._entries.get(next(reversed(places))) if places else None


def _keys(entry: Entry | None) -> set[tuple[str, str]]:
    if entry is None:
        return set()
    kind, name = entry.place
    base = name.rpartition("/")[2]
    keys = {f"name:{short}" for short in (name, stem_of(name), base, stem_of(base))}
    keys |= {f"url:{url}" for url in entry.urls}
    if entry.sha256:
        keys.add(f"sha256:{entry.sha256.lower()}")
    return {(kind, key) for key in keys}


@dataclass(frozen=True, slots=True)
class Sight:
    """All that there is: files, and transfers by the place that they fill.

    ``going`` is being cleared. ``gone`` was: what the server said before of a file there tells nothing any more.
    """

    entries: Mapping[Place, Entry]
    known: Known
    flights: dict[Place, Wish]
    going: Container[Place]
    gone: Container[Place] = frozenset()

    def find(self, wish: Wish) -> Found:
        """What the wish comes to. A file of its name with another identity is never it."""
        if wish.wanted.known and wish.wanted.place in self.gone:
            wish = dataclasses.replace(wish, wanted=dataclasses.replace(wish.wanted, known=False))
        found = self._on_disk(wish)
        if isinstance(found, Here | Unsure) and found.place in self.going:
            return Going()
        if found is not None:
            return found
        coming = next((place for place, other in self.flights.items() if same(wish, other, place)), None)
        if coming is not None:
            return Going() if coming in self.going else Coming(coming)
        if wish.by_name and wish.wanted.known and wish.wanted.place not in self.going:
            return Here(wish.wanted.place, ours=False)
        return self._free(wish)

    def _on_disk(self, wish: Wish) -> Here | Unsure | None:
        for entry in self._candidates(wish):
            match self._match(entry, wish):
                case Match.YES:
                    return Here(entry.place)
                case Match.UNKNOWN if wish.wanted.sha256:
                    return Unsure(entry.place)
        return None

    def _candidates(self, wish: Wish) -> Iterator[Entry]:
        """Those that it may be, the likeliest first."""
        wanted, place = wish.wanted, wish.wanted.place
        found: list[Entry | None] = [self.entries.get(wish.landed) if wish.landed else None]
        if wanted.sha256:
            found.append(self.known.by_sha256(place.kind, wanted.sha256))
        found += [self.known.by_url(place.kind, url) for url in sorted(wish.urls)]
        found.append(self.entries.get(place))
        if wish.by_name and not wanted.known:
            found.append(self.known.by_short_name(place))
        return (entry for entry in found if entry is not None)

    def _match(self, entry: Entry, wish: Wish) -> Match:
        wanted = wish.wanted
        if wanted.sha256 is None and (entry.place == wish.landed or wish.urls & entry.urls):
            return Match.YES
        if wish.by_name:
            return matches(entry, dataclasses.replace(wanted, name=entry.place.name))
        return matches(entry, wanted)

    def _free(self, wish: Wish) -> Missing | Going:
        """Where to put it: a place that no other file has."""
        wanted = wish.wanted
        names = itertools.chain([] if wanted.known else [wanted.name], _names_apart(wanted.name, wish.key))
        places = (Place(wanted.place.kind, name) for name in names)
        place = next(place for place in places if place not in self.entries and place not in self.flights)
        return Going() if place in self.going else Missing(place)


def same(wish: Wish, other: Wish, place: Place) -> bool:
    """Whether a transfer of the other to this place brings what is wished, as far as anybody knows."""
    if wish.wanted.place.kind != place.kind:
        return False
    if wish.wanted.sha256 and other.wanted.sha256:
        return wish.wanted.sha256.lower() == other.wanted.sha256.lower()
    return bool(wish.urls & other.urls) or (wish.by_name and wish.wanted.place == place)


def alike(wish: Wish, other: Wish) -> bool:
    """Whether what fails for the one fails for the other too: both were wanted by the same words of the same party."""
    return (wish.key, wish.own, wish.wanted.owner) == (other.key, other.own, other.wanted.owner)


def _names_apart(name: str, key: str) -> Iterable[str]:
    yield apart(name, key)
    for number in itertools.count(2):
        yield apart(name, f"{key} {number}")
