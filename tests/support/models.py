"""A model cache that fetches nothing: every file is there, but for what a test says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta

from worker.errors import ModelNotFound, WorkerError
from worker.mentions import Place
from worker.models.base import Entry, InFlight, Priority, Provided, Wanted


class FakeModels:
    """``missing`` and ``errors`` by place; ``renamed`` gives a file another name; ``held`` waits for `release`.

    ``pinned`` are those of jobs at work, ``provisions`` what was wanted at each call, ``at_most`` for how long it may
    be waited for.
    """

    def __init__(self) -> None:
        self.version = 0
        self.missing: set[Place] = set()
        self.errors: dict[Place, list[WorkerError]] = {}
        self.renamed: dict[Place, Place] = {}
        self.held: dict[Place, asyncio.Event] = {}
        self.pinned: list[Place] = []
        self.provisions: list[tuple[Wanted, ...]] = []
        self.at_most: list[timedelta | None] = []
        self.hints: list[Wanted] = []
        self.full: WorkerError | None = None

    @asynccontextmanager
    async def provided(self, wanted: Sequence[Wanted], at_most: timedelta | None = None) -> AsyncIterator[Provided]:
        self.provisions.append(tuple(wanted))
        self.at_most.append(at_most)
        for one in wanted:
            if one.place in self.held:
                await self.held[one.place].wait()
            if self.errors.get(one.place):
                raise self.errors[one.place].pop(0)
            if one.place in self.missing:
                raise ModelNotFound(f"{one.field}: no source has {one.name}")
        places = tuple(self.renamed.get(one.place, one.place) for one in wanted)
        self.pinned += places
        try:
            yield Provided(places, self.version)
        finally:
            for place in places:
                self.pinned.remove(place)

    def hint(self, wanted: Wanted, priority: Priority = Priority.BACKGROUND) -> None:
        self.hints.append(wanted)

    async def fetch(self, wanted: Wanted, priority: Priority = Priority.START) -> Entry:
        async with self.provided([wanted]) as provided:
            return Entry(provided.places[0], size=1, used=1)

    async def remove(self, place: Place) -> None:
        self.missing.add(place)

    def entries(self) -> tuple[Entry, ...]:
        return ()

    def transfers(self) -> tuple[InFlight, ...]:
        return ()

    async def space(self) -> None:
        if self.full is not None:
            raise self.full

    async def aclose(self) -> None:
        return None
