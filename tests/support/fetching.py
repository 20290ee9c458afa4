"""A fetcher of model files, the server that it asks, and what it was told."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import random
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from tests.support.model_host import HostedFile, ModelHost, Twist
from tests.support.waiting import wait_until
from worker.clock import SystemClock
from worker.errors import WorkerError
from worker.models.base import Fetched, Location, Priority, Tempo, Wanted
from worker.models.download import Downloads
from worker.models.pieces import Sizes
from worker.settings.models import ModelsSettings
from worker.urls import Guard

KIB = 1024
NAME = "model.dat"
TEMPO = Tempo(
    stall=timedelta(seconds=5), stall_bytes=1, first=timedelta(milliseconds=1), most=timedelta(milliseconds=5)
)
SIZES = Sizes(piece_least=64 * KIB, piece_most=128 * KIB, turn=32 * KIB, step=128 * KIB)


def made(size: int, seed: int = 1) -> bytes:
    """Bytes that begin as no page or document does."""
    return b"\x00model" + random.Random(seed).randbytes(size - 6)


BODY = made(1000 * KIB + 123)


def digest(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


@dataclass
class Rig:
    """A fetcher and what it was asked and told."""

    downloads: Downloads
    host: ModelHost
    partial: Path
    rooms: list[int] = field(default_factory=list)
    seen: list[tuple[int, int | None]] = field(default_factory=list)
    priority: Priority = Priority.JOB
    refuses: Callable[[int], WorkerError | None] = lambda total: None

    async def room(self, total: int) -> None:
        self.rooms.append(total)
        refusal = self.refuses(total)
        if refusal is not None:
            raise refusal

    def at(self, path: str = "/m", **changes: Any) -> Location:
        return Location(**{"url": self.host.url(path), "source": "the mirror", **changes})

    async def fetch(self, *locations: Location, name: str = NAME, **wanted: Any) -> Fetched:
        return await self.located(lambda: _each(*(locations or (self.at(),))), name=name, **wanted)

    async def located(self, locate: Callable[[], AsyncIterator[Location]], name: str = NAME, **wanted: Any) -> Fetched:
        return await self.downloads.fetch(
            locate,
            self.partial,
            Wanted("checkpoint", name, **wanted),
            room=self.room,
            on_bytes=lambda there, size: self.seen.append((there, size)),
            priority=lambda: self.priority,
        )

    def arrived(self, fetched: Fetched, body: bytes = BODY) -> None:
        """The file is there, whole, and its record gone."""
        assert fetched.path == self.partial
        assert self.partial.read_bytes() == body
        assert (fetched.size, fetched.sha256) == (len(body), digest(body))
        assert sorted(path.name for path in self.partial.parent.iterdir()) == [self.partial.name]

    async def cut_off(self, file: HostedFile, after: int, **wanted: Any) -> None:
        """Have a first try brought so many bytes at least, and cancelled then."""
        file.twist = Twist(cut=after, end="hold")
        fetching = asyncio.create_task(self.fetch(**wanted), name="first-try")
        await wait_until(lambda: self.seen and self.seen[-1][0] >= after)
        fetching.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await fetching
        file.twist = Twist()
        file.requests.clear()
        file.sent = 0


async def _each(*locations: Location) -> AsyncIterator[Location]:
    for location in locations:
        yield location


@contextlib.asynccontextmanager
async def rigged(folder: Path, **changes: Any) -> AsyncIterator[Rig]:
    settings = ModelsSettings(**{"connections": 4, **changes.pop("settings", {})})
    given: dict[str, Any] = {"tempo": TEMPO, "sizes": SIZES, "checkpoint": timedelta(milliseconds=5), **changes}
    guard = given.pop("guard", Guard())
    downloads = Downloads(settings, guard, clock=SystemClock(), rng=random.Random(1), **given)
    async with ModelHost() as host:
        try:
            yield Rig(downloads, host, folder / "parts" / "one.part")
        finally:
            await downloads.aclose()
