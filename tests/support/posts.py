"""Dispatchers as real processes that may be killed, over one database, and what stands in that database at the end."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import Row, func, select

from dispatcher.store.database import connected
from dispatcher.store.schema import attempts, backlog, jobs, leases, letters, results
from dispatcher.store.sql import url_of
from tests.support.dispatching import NODE, USER
from tests.support.virtual import takes
from tests.support.waiting import wait_until
from tests.support.workshop import SECRET, Life, living
from worker.result import Result

OPEN = ("waiting", "delayed", "leased")
AnyRow = Row[*tuple[Any, ...]]


class Post:
    """One dispatcher process after another. ``url`` is the latest one's, also when that was killed; empty: deserted."""

    def __init__(self, name: str, folder: Path, environment: Mapping[str, str]) -> None:
        self.name = name
        self.url = ""
        self.lives = 0
        self.kills = 0
        self.freezes = 0
        self._folder = folder
        self._environment = environment
        self._stack = AsyncExitStack()
        self._life: Life | None = None

    async def begin(self) -> None:
        """Start a process; it serves when this returns."""
        self.lives += 1
        log = self._folder / f"{self.name}-{self.lives}.log"
        life = await self._stack.enter_async_context(
            living("dispatcher", "serve", environment=self._environment, log=log)
        )
        await wait_until(lambda: life.over or life.events("listening"), timeout=60)
        assert not life.over, f"it ended with {life.process.returncode}\n{life.tail()}"
        self._life = life
        self.url = f"http://[::1]:{life.events('listening')[0]['port']}"

    @property
    def life(self) -> Life:
        assert self._life is not None
        return self._life

    async def kill(self) -> None:
        """SIGKILL; it was serving until then."""
        assert not self.life.over, f"it ended with {self.life.process.returncode}\n{self.life.tail()}"
        await self.life.kill()
        self.kills += 1

    async def freeze(self, seconds: float) -> None:
        """Have it stand still as it is, whatever it is about, and go on."""
        self.life.process.send_signal(signal.SIGSTOP)
        await wait_until(self.life.stands_still)
        await takes(seconds)
        self.life.process.send_signal(signal.SIGCONT)
        self.freezes += 1

    def desert(self) -> None:
        """Nobody is sent to its address any more."""
        self.url = ""

    async def aclose(self) -> None:
        """Drain the last process, which must end well."""
        if self._life is not None and not self._life.over:
            assert await self._life.stop() == 0, self._life.tail()
        await self._stack.aclose()


@asynccontextmanager
async def posted(url: str, folder: Path, *names: str, **variables: str) -> AsyncIterator[list[Post]]:
    """Dispatchers that serve over the database; ``variables`` without their prefix."""
    inherited = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}
    given = {
        "DATABASE_URL": url,
        "HOST": "::1",
        "PORT": "0",
        "USER_TOKENS": USER,
        "NODE_TOKENS": NODE,
        "URLS_ALLOW_PRIVATE": "true",
        "WEBHOOK_SECRET": SECRET,
        "LOG_FORMAT": "json",
        **variables,
    }
    environment = {**inherited, **{f"DISPATCHER_{name}": value for name, value in given.items()}}
    posts = [Post(name, folder, environment) for name in names]
    async with AsyncExitStack() as stack:
        for post in posts:
            stack.push_async_callback(post.aclose)
        await asyncio.gather(*(post.begin() for post in posts))
        yield posts


@dataclass(frozen=True, slots=True)
class Books:
    """Everything in the database that has to do with jobs. ``tried`` and ``results`` are by the job's id."""

    jobs: dict[str, AnyRow]
    tried: dict[str, list[AnyRow]]
    results: dict[str, Result]
    leased: int
    owed: int
    uneven: dict[str, int] = field(default_factory=dict)
    """Models whose count of waiting jobs is not what waits."""


def read_books(url: str) -> Books:
    engine = connected(url_of(url))
    try:
        with engine.connect() as db:
            rows = {row.place: row for row in db.execute(select(jobs))}
            tried: dict[str, list[AnyRow]] = defaultdict(list)
            for row in db.execute(select(attempts).order_by(attempts.c.token)):
                tried[rows[row.place].id].append(row)
            found = {rows[row.place].id: Result.model_validate_json(row.result) for row in db.execute(select(results))}
            waits: dict[str, int] = defaultdict(int)
            for row in rows.values():
                waits[row.key] += row.status == "waiting"
            for key, count in db.execute(select(backlog.c.key, func.sum(backlog.c.waiting)).group_by(backlog.c.key)):
                waits[key] -= int(count)
            leased, owed = (
                db.execute(select(func.count()).select_from(table)).scalar_one() for table in (leases, letters)
            )
            uneven = {key: count for key, count in waits.items() if count}
            return Books({row.id: row for row in rows.values()}, tried, found, leased, owed, uneven)
    finally:
        engine.dispose()


class Watch:
    """Looks at the database beside those that use it."""

    def __init__(self, url: str) -> None:
        self._engine = connected(url_of(url))

    async def left(self) -> tuple[int, int]:
        """Jobs that are not over, and webhooks that are owed."""
        return await asyncio.to_thread(self._left)

    def _left(self) -> tuple[int, int]:
        with self._engine.connect() as db:
            left = db.execute(select(func.count()).where(jobs.c.status.in_(OPEN))).scalar_one()
            return left, db.execute(select(func.count()).select_from(letters)).scalar_one()

    def close(self) -> None:
        self._engine.dispose()
