"""The queues of a workshop: each with its jobs' side, and what configures a worker to take from it."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing, nullcontext
from pathlib import Path
from typing import Literal, assert_never

from tests.support.lines_base import MOST, VISIBILITY_S, Line, Telling, away
from tests.support.lines_salad import on_salad
from tests.support.lines_served import Served
from tests.support.lines_sqs import on_sqs
from tests.support.redis import RedisServer
from tests.support.virtual import takes
from worker.clock import SystemClock
from worker.queues.redis import RedisProducer
from worker.queues.sqlite.driver import BUSY, SqliteProducer

Kind = Literal["sqlite", "availability", "redis", "sqs", "salad"]


class File(Telling):
    """The embedded queue."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.producer = SqliteProducer(path, SystemClock())

    def variables(self, worker: str) -> dict[str, str]:
        return {
            "WORKER_QUEUE": "sqlite",
            "WORKER_QUEUE_VISIBILITY": f"{VISIBILITY_S}s",
            "WORKER_QUEUE_MAX_DELIVERIES": str(MOST),
            "WORKER_SQLITE_PATH": str(self.path),
        }

    @asynccontextmanager
    async def quiet(self) -> AsyncIterator[None]:
        """Nobody is within a transaction, or the file's lock would stay his own."""
        with closing(sqlite3.connect(self.path, isolation_level=None, timeout=20)) as db:
            db.execute("BEGIN IMMEDIATE")
            yield
            db.execute("ROLLBACK")

    async def restart(self) -> None:
        """The file is locked for longer than anybody waits for it."""
        async with self.quiet():
            await takes(BUSY.total_seconds() + 0.5)


class Stream(Telling):
    """A Redis; it writes every order to disk before it answers."""

    def __init__(self, server: RedisServer) -> None:
        self.server, self.place = server, server.place()
        self.producer = RedisProducer(self.place)

    def variables(self, worker: str) -> dict[str, str]:
        return {
            "WORKER_QUEUE": "redis",
            "WORKER_QUEUE_VISIBILITY": f"{VISIBILITY_S}s",
            "WORKER_QUEUE_MAX_DELIVERIES": str(MOST),
            "WORKER_REDIS_URL": self.place.url,
            "WORKER_REDIS_STREAM": self.place.stream,
            "WORKER_REDIS_GROUP": self.place.group,
        }

    def quiet(self) -> AbstractAsyncContextManager[None]:
        return nullcontext()

    async def restart(self) -> None:
        """It is killed."""
        await asyncio.to_thread(self.server.stop)
        await away()
        await asyncio.to_thread(self.server.start)


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
            async with Served(folder, database) as served:
                yield served
        case "redis":
            with RedisServer(folder, "--appendonly", "yes", "--appendfsync", "always") as server:
                stream = Stream(server)
                try:
                    yield stream
                finally:
                    await stream.producer.aclose()
        case "sqs":
            async with on_sqs() as messages:
                yield messages
        case "salad":
            async with on_salad() as pushed:
                yield pushed
        case _:
            assert_never(kind)
