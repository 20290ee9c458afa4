"""Connections to the server that has the queue's keys, each command on one of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from importlib.util import find_spec
from typing import Any

from worker.errors import ConfigError, FieldError, QueueUnavailable
from worker.queues.redis.failures import RedisMisused, translating
from worker.queues.redis.place import VARIABLE, RedisPlace

PATIENCE = timedelta(seconds=10)
KEPT = 4
"""Idle connections."""

_SLOWEST = 250_000
"""Bytes a second at which what is large may come or go, over and above the patience."""

_HOPS = 4


class Stale(QueueUnavailable):
    """A connection that had been idle was dead: whether the command came through is not known."""

    code = QueueUnavailable.code


class Client:
    """Runs commands on the server of the place, or on the one of its cluster that has the queue's slot.

    A connection on which anything went wrong is closed, and with it all idle ones.
    """

    def __init__(self, place: RedisPlace, *, patience: timedelta = PATIENCE) -> None:
        if find_spec("redis") is None:
            raise ConfigError((FieldError("WORKER_QUEUE", "is redis, which needs the extra: sd-worker[redis]"),))
        self.place = place
        self._patience_s = patience.total_seconds()
        self._idle: list[Any] = []
        self._used: set[Any] = set()
        self._moved: tuple[str, int] | None = None
        self._closed = False

    async def run(self, *command: str | bytes | int, wait: timedelta = timedelta(0), expected: int = 0) -> Any:
        """The answer; ``wait`` is how long the server itself may take, ``expected`` how many bytes are to come.

        Raises `Stale`, what `translating` makes of other errors, and redis-py's own `NoScriptError`.
        """
        size = expected + sum(len(part) for part in command if isinstance(part, bytes))
        patience_s = self._patience_s + wait.total_seconds() + size / _SLOWEST
        with translating(self.place):
            return await self._routed(command, patience_s)

    async def aclose(self) -> None:
        """Close every connection; commands under way fail."""
        self._closed = True
        for connection in [*self._idle, *self._used]:
            await connection.disconnect()
        self._idle.clear()

    async def _routed(self, command: tuple[str | bytes | int, ...], patience_s: float) -> Any:
        from redis.exceptions import MovedError

        for _ in range(_HOPS):
            try:
                return await self._sent(command, patience_s)
            except MovedError as moved:
                await self._drop_idle()
                self._moved = (moved.host, moved.port) if moved.host else self._moved
        raise QueueUnavailable(f"{self.place.shown}: the nodes of the cluster send us from one to the next")

    async def _sent(self, command: tuple[str | bytes | int, ...], patience_s: float) -> Any:
        try:
            async with self._connection() as connection, asyncio.timeout(patience_s):
                await connection.send_command(*command)
                return await connection.read_response()
        except TimeoutError:
            raise QueueUnavailable(f"{self.place.shown}: no answer within {patience_s:g} s") from None

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[Any]:
        """One for a single command; kept afterwards if the server answered, if only with an error."""
        from redis.exceptions import ConnectionError as Broken
        from redis.exceptions import ReadOnlyError, RedisError, ResponseError

        if self._closed:
            raise QueueUnavailable(f"{self.place.shown}: was closed")
        reused = bool(self._idle)
        connection = self._idle.pop() if reused else self._made()
        self._used.add(connection)
        is_usable = False
        try:
            yield connection
            is_usable = True
        except ResponseError as error:
            is_usable = not isinstance(error, ReadOnlyError)
            if not is_usable:
                await self._start_anew()
            raise
        except (RedisError, TimeoutError) as error:
            await self._start_anew()
            if reused and type(error) is Broken:
                raise Stale(f"{self.place.shown}: {error}") from None
            raise
        finally:
            self._used.discard(connection)
            if is_usable and not self._closed and len(self._idle) < KEPT:
                self._idle.append(connection)
            else:
                await connection.disconnect(nowait=True)

    async def _start_anew(self) -> None:
        """What comes next asks the DNS anew, and the cluster for its node."""
        self._moved = None
        await self._drop_idle()

    async def _drop_idle(self) -> None:
        idle, self._idle = self._idle, []
        for connection in idle:
            await connection.disconnect(nowait=True)

    def _made(self) -> Any:
        """A connection that connects with its first command."""
        from redis.asyncio.connection import Connection, parse_url
        from redis.exceptions import DataError

        try:
            options: dict[str, Any] = dict(parse_url(self.place.url))
            kind = options.pop("connection_class", Connection)
            if self._moved is not None:
                options["host"], options["port"] = self._moved
            return kind(
                **{**options, "protocol": 2, "socket_timeout": None, "socket_connect_timeout": self._patience_s}
            )
        except (DataError, TypeError, ValueError):
            raise RedisMisused(VARIABLE, "has an option that is not known or not understood") from None
