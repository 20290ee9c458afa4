"""The queues of a workshop: each with its jobs' side, and what configures a worker to take from it."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing, nullcontext
from pathlib import Path
from typing import Literal, Protocol, assert_never

from tests.support.dispatching import NODE, USER, dispatching
from tests.support.redis import RedisServer
from worker.clock import SystemClock
from worker.queues.availability import AvailabilityProducer
from worker.queues.base import JobState, Producer
from worker.queues.redis import RedisProducer
from worker.queues.sqlite.driver import SqliteProducer

VISIBILITY_S = 2
MOST = 1000
Kind = Literal["sqlite", "availability", "redis"]


class Line(Protocol):
    """A queue on which several workers may be."""

    @property
    def producer(self) -> Producer: ...

    @property
    def variables(self) -> Mapping[str, str]:
        """What configures a worker for it."""
        ...

    async def states(self, job_ids: Iterable[str]) -> list[JobState]:
        """Every job there is, with its result; ``job_ids`` are those that should be."""
        ...

    def quiet(self) -> AbstractAsyncContextManager[None]:
        """A time in which a worker may be stopped without keeping all others from the queue."""
        ...


class File:
    """The embedded queue."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.producer = SqliteProducer(path, SystemClock())
        self.variables = {
            "WORKER_QUEUE": "sqlite",
            "WORKER_QUEUE_VISIBILITY": f"{VISIBILITY_S}s",
            "WORKER_QUEUE_MAX_DELIVERIES": str(MOST),
            "WORKER_SQLITE_PATH": str(path),
        }

    async def states(self, job_ids: Iterable[str]) -> list[JobState]:
        return await self.producer.jobs(limit=1_000_000)

    @asynccontextmanager
    async def quiet(self) -> AsyncIterator[None]:
        """Nobody is within a transaction, or the file's lock would stay his own."""
        with closing(sqlite3.connect(self.path, isolation_level=None, timeout=20)) as db:
            db.execute("BEGIN IMMEDIATE")
            yield
            db.execute("ROLLBACK")


class Served:
    """A dispatcher; its workers have nodes' tokens."""

    def __init__(self, url: str) -> None:
        self.producer = AvailabilityProducer(url, SystemClock(), token=USER)
        self.variables = {
            "WORKER_QUEUE": "availability",
            "WORKER_AVAILABILITY_URL": url,
            "WORKER_AVAILABILITY_TOKEN": NODE,
        }

    async def states(self, job_ids: Iterable[str]) -> list[JobState]:
        """One by one, since the list has no results; what is there beside them comes from the list."""
        wanted = set(job_ids)
        others = [one for one in await self.producer.jobs(limit=1000) if one.id not in wanted]
        found = [await self.producer.state(job_id) for job_id in sorted(wanted)]
        return [*(state for state in found if state is not None), *others]

    def quiet(self) -> AbstractAsyncContextManager[None]:
        return nullcontext()


class Stream:
    """A Redis; it writes every order to disk before it answers."""

    def __init__(self, server: RedisServer) -> None:
        self.server, place = server, server.place()
        self.producer = RedisProducer(place)
        self.variables = {
            "WORKER_QUEUE": "redis",
            "WORKER_QUEUE_VISIBILITY": f"{VISIBILITY_S}s",
            "WORKER_QUEUE_MAX_DELIVERIES": str(MOST),
            "WORKER_REDIS_URL": place.url,
            "WORKER_REDIS_STREAM": place.stream,
            "WORKER_REDIS_GROUP": place.group,
        }

    async def states(self, job_ids: Iterable[str]) -> list[JobState]:
        return await self.producer.jobs(limit=1_000_000)

    def quiet(self) -> AbstractAsyncContextManager[None]:
        return nullcontext()


@asynccontextmanager
async def lined(kind: Kind, folder: Path, database: str | None = None) -> AsyncIterator[Line]:
    """A queue of its own for the time of a context; ``database`` of its dispatcher, else it is a file."""
    match kind:
        case "sqlite":
            file = File(folder / "queue.db")
            try:
                yield file
            finally:
                await file.producer.aclose()
        case "availability":
            lease, most = f"{VISIBILITY_S}s", str(MOST)
            async with dispatching(database or folder, LEASE=lease, MAX_DELIVERIES=most, MAX_STEPS="100000") as talk:
                served = Served(talk.url)
                try:
                    yield served
                finally:
                    await served.producer.aclose()
        case "redis":
            with RedisServer(folder, "--appendonly", "yes", "--appendfsync", "always") as server:
                stream = Stream(server)
                try:
                    yield stream
                finally:
                    await stream.producer.aclose()
        case _:
            assert_never(kind)
