"""Drivers whose time stands still while their peer is asked, for a loop whose time jumps."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from tests.support.virtual import VirtualLoop, takes
from worker.clock import Clock
from worker.errors import QueueUnavailable
from worker.queues.base import Received
from worker.queues.redis import RedisPlace, RedisQueue
from worker.queues.redis.client import Client
from worker.queues.redis.ledger import Ledger
from worker.queues.sqlite import SqliteQueue
from worker.queues.sqlite.thread import SqliteThread
from worker.queues.sqs import SqsQueue

T = TypeVar("T")
PAUSE_S = 5.0
"""Between two looks at a queue that has nothing."""


@contextmanager
def standing_still() -> Iterator[None]:
    """No time passes within; something has to happen that ends it."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    loop.threads += 1
    try:
        yield
    finally:
        loop.threads -= 1


class _Client(Client):
    async def run(self, *command: Any, **more: Any) -> Any:
        with standing_still():
            return await super().run(*command, **more)


class _Ledger(Ledger):
    async def rung(self, wait: timedelta) -> None:
        """Nobody rings: whoever waits looks again when the time is over."""
        await takes(wait.total_seconds())


class StandingRedis(RedisQueue):
    def __init__(self, place: RedisPlace, *, clock: Clock, **more: Any) -> None:
        super().__init__(place, clock=clock, **more)
        self._client = _Client(place)
        self._ledger = _Ledger(self._client, self._policy, clock)


class StandingSqs(SqsQueue):
    """It asks without waiting, and waits before it asks again."""

    def __init__(self, url: str, *given: Any, **more: Any) -> None:
        super().__init__(url, *given, wait=timedelta(0), **more)

    async def receive(self) -> Received:
        received = await super().receive()
        if received.delivery is None:
            await takes(PAUSE_S)
        return received


class _Inline(SqliteThread):
    """Everything happens in the loop's own thread; while it is ``cut`` nothing does."""

    is_cut = False
    _is_over = False

    def submit(self, operation: Callable[[sqlite3.Connection], T]) -> Future[T]:
        done: Future[T] = Future()
        try:
            if self.is_cut or self._is_over:
                raise QueueUnavailable(f"{self.path} cannot be read")
            done.set_result(self._perform(operation))
        except Exception as error:
            done.set_exception(error)
        return done

    async def aclose(self) -> None:
        self._is_over = True
        self._drop()
        await super().aclose()


class StandingSqlite(SqliteQueue):
    """A locked file is not waited for."""

    def __init__(self, path: Path, *given: Any, **more: Any) -> None:
        super().__init__(path, *given, **more)
        self._inline = self._thread = _Inline(path, timedelta(0))

    def sever(self) -> None:
        self._inline.is_cut = True

    def mend(self) -> None:
        self._inline.is_cut = False
