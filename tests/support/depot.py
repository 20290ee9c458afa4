"""A model cache whose transfers take virtual time and fail as told, and a node that begins with a list of models."""

from __future__ import annotations

import asyncio
import json
import random
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta

from tests.support.fakes import FakeProcess
from tests.support.virtual import takes
from tests.support.world import World
from worker import recovery, warmup
from worker.errors import WorkerError
from worker.intake import Intake
from worker.mentions import Place
from worker.models.base import Entry, InFlight, Priority, Provided, Wanted
from worker.models.manifest import Item, Manifest, When
from worker.provisioning import Provisioning, as_it_is
from worker.settings.units import Rate
from worker.status import Phase
from worker.supervisor import ExitCode, Supervisor

GB = 1_000_000_000
START_S = 300.0
"""The patience with the server's start."""


def item(name: str, when: When = When.BEFORE_ENGINE, kind: str = "checkpoint") -> Item:
    return Item(Wanted(kind, name, f"https://models.example/{name}", field=f"LIST[{name}]"), when)


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

    @asynccontextmanager
    async def provided(self, wanted: Sequence[Wanted], at_most: timedelta | None = None) -> AsyncIterator[Provided]:
        """As they are wanted: for the canary, which names none."""
        yield Provided(tuple(one.place for one in wanted))

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


class Node(World):
    """A worker with a server of its own that begins with a list of models."""

    def __init__(
        self,
        *items: Item,
        declared: Callable[[], Awaitable[Manifest]] | None = None,
        timeout: timedelta = timedelta(hours=1),
        never: bool = False,
        typed: Callable[[Wanted], Awaitable[Wanted]] | None = None,
    ) -> None:
        self.depot = Depot()
        self._list = Manifest(items)
        self._declares = (declared or self._declared) if items or declared else None
        self._timeout, self._typed = timeout, typed or as_it_is
        super().__init__(process=FakeProcess(owned=True), never=never)

    async def _declared(self) -> Manifest:
        return self._list

    def _services(
        self,
        more: dict[str, Callable[[], Awaitable[None]]],
        drain_s: float,
        leave: Callable[[str], Awaitable[bool]] | None,
        *,
        never: bool,
        stays: bool,
    ) -> None:
        self.provisioning = Provisioning(
            self.depot,
            self.status,
            self._declares,
            timeout=self._timeout,
            rng=random.Random(5),
            typed=self._typed,
            never=never,
        )
        service = recovery.EngineService(
            self.gate,
            warmup.Canary(
                warmup.canary_job(json.dumps(warmup.DEFAULT).encode(), self.limits),
                self.inputs,
                self.depot,
                timedelta(minutes=5),
            ),
            self.process,
            self.status,
            self.metrics,
            patience=recovery.Patience(timedelta(seconds=START_S), Rate(5, timedelta(minutes=10)), never=never),
            warm_at_start=True,
            on_ready=lambda: None,
            before_start=self.provisioning.before_engine,
            before_ready=self.provisioning.before_ready,
        )
        self.supervisor = Supervisor(
            self.status,
            self.drain,
            Intake(self.tools, self.status, window=self.window, parked=self.parked, rng=random.Random(4)),
            {"provisioning": self.provisioning.run, "engine": service.run, **more},
            _serve,
            drain_timeout=timedelta(seconds=drain_s),
            stop_at_once=lambda: self.exits.append("at once"),
            leave=leave,
            stays=stays,
        )

    async def ready(self) -> None:
        await self.status.reached(Phase.READY)

    async def exit_code(self) -> ExitCode:
        """How a start ends that never comes to READY."""
        async with self.running() as process:
            await asyncio.wait({process})
        return process.result()


async def _serve() -> None:
    await asyncio.Event().wait()
