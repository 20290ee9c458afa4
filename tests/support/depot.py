"""A model cache whose transfers take virtual time, and fail as a test says."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager

from tests.support.virtual import takes
from worker.errors import WorkerError
from worker.mentions import Place
from worker.models.base import Entry, InFlight, Priority, Provided, Wanted
from worker.models.manifest import Item, Manifest, When

GB = 1_000_000_000


def item(name: str, when: When = When.BEFORE_ENGINE, kind: str = "checkpoint") -> Item:
    return Item(Wanted(kind, name, f"https://models.example/{name}", field=f"LIST[{name}]"), when)


def manifest(*items: Item) -> Manifest:
    return Manifest(items)


class Depot:
    """``seconds`` of a transfer by name, a minute by default; ``errors`` are met by the next tries of a name.

    ``most`` is how many transfers ran at a time, ``begun`` the names in their order, ``cancelled`` those that were
    cut off. Of more files than ``holds`` the oldest give way.
    """

    def __init__(self) -> None:
        self.version = 0
        self.seconds: dict[str, float] = {}
        self.errors: dict[str, deque[WorkerError]] = {}
        self.refuse: Callable[[Wanted], WorkerError | None] = lambda wanted: None
        self.begun: list[str] = []
        self.cancelled: list[str] = []
        self.hints: list[Wanted] = []
        self.most = 0
        self.holds = 1000
        self._entries: dict[Place, Entry] = {}
        self._transfers: dict[str, InFlight] = {}

    async def fetch(self, wanted: Wanted, priority: Priority = Priority.START) -> Entry:
        self.begun.append(wanted.name)
        self._transfers[wanted.name] = InFlight(wanted.place, 2 * GB, GB, "https://models.example", priority)
        self.most = max(self.most, len(self._transfers))
        try:
            await takes(self.seconds.get(wanted.name, 60.0))
            if error := self.refuse(wanted) or next(iter(self.errors.get(wanted.name, ())), None):
                if wanted.name in self.errors:
                    self.errors[wanted.name].popleft()
                raise error
        except asyncio.CancelledError:
            self.cancelled.append(wanted.name)
            raise
        finally:
            del self._transfers[wanted.name]
        entry = self._entries[wanted.place] = Entry(wanted.place, 2 * GB, used=len(self._entries))
        while len(self._entries) > self.holds:
            del self._entries[next(iter(self._entries))]
        return entry

    def provided(self, wanted: Sequence[Wanted]) -> AbstractAsyncContextManager[Provided]:
        raise NotImplementedError

    def hint(self, wanted: Wanted, priority: Priority = Priority.BACKGROUND) -> None:
        self.hints.append(wanted)

    async def remove(self, place: Place) -> None:
        del self._entries[place]

    def entries(self) -> tuple[Entry, ...]:
        return tuple(self._entries.values())

    def transfers(self) -> tuple[InFlight, ...]:
        return tuple(self._transfers.values())

    async def space(self) -> None:
        return None

    async def aclose(self) -> None:
        return None
