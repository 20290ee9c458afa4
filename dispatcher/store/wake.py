"""Waking those who wait for jobs: within a process at once, between processes by the database."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Protocol

import psycopg
from psycopg import AsyncConnection

from dispatcher.store.base import StoreUnavailable
from dispatcher.store.database import SERVER
from dispatcher.store.rows import CHANNEL
from worker.tasks import cancel_all

POLL_S = 0.5
AGAIN_FIRST_S, AGAIN_MOST_S = 0.2, 5.0


class Bell:
    """Counts what came; whoever remembers the count misses nothing."""

    def __init__(self) -> None:
        self.count = 0
        self._next = asyncio.Event()

    def ring(self) -> None:
        self.count += 1
        self._next.set()
        self._next = asyncio.Event()

    async def wait(self, since: int, seconds: float) -> bool:
        """Whether it rang since the count, or rings within the time."""
        if self.count != since:
            return True
        rung = self._next
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await rung.wait()
        return self.count != since


class Ear(Protocol):
    """Rings the bell for what other processes do, from `listen` to `aclose`."""

    async def listen(self) -> None: ...

    async def aclose(self) -> None: ...


class _Running(ABC):
    """One task that goes on until it is closed."""

    def __init__(self, bell: Bell) -> None:
        self._bell = bell
        self._task: asyncio.Task[None] | None = None

    async def listen(self) -> None:
        self._task = asyncio.create_task(self._run(), name="store-ear")

    async def aclose(self) -> None:
        if self._task is not None:
            await cancel_all({self._task})

    @abstractmethod
    async def _run(self) -> None: ...


class Listener(_Running):
    """PostgreSQL tells: one connection of its own, opened again when it is lost."""

    def __init__(self, bell: Bell, conninfo: str) -> None:
        super().__init__(bell)
        self._conninfo = conninfo

    async def _run(self) -> None:
        pause_s = AGAIN_FIRST_S
        while True:
            with suppress(psycopg.Error):
                async with await AsyncConnection.connect(self._conninfo, autocommit=True, **SERVER) as connection:
                    await connection.execute(f"LISTEN {CHANNEL}".encode())
                    pause_s = AGAIN_FIRST_S
                    self._bell.ring()
                    async for _ in connection.notifies():
                        self._bell.ring()
            await asyncio.sleep(pause_s)
            self._bell.ring()
            pause_s = min(AGAIN_MOST_S, 2 * pause_s)


class Poller(_Running):
    """An SQLite file is looked at twice a second; ``news`` counts what came, by whomever."""

    def __init__(self, bell: Bell, news: Callable[[], Awaitable[int]]) -> None:
        super().__init__(bell)
        self._news = news

    async def _run(self) -> None:
        known: int | None = None
        while True:
            with suppress(StoreUnavailable):
                news = await self._news()
                if known is not None and news != known:
                    self._bell.ring()
                known = news
            await asyncio.sleep(POLL_S)
