"""What may stand between a worker and its Redis, and what may stand there instead."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import Any, TypeVar

from tests.support.virtual import takes

_COMMAND = re.compile(rb"\*\d+\r\n\$")


class Relay:
    """Passes bytes on to a port of loopback. ``silent``: what the server answers is lost, the connection with it.

    ``bytes_per_s``: how fast answers come, where that is bounded.
    """

    def __init__(self, target: int) -> None:
        self.target = target
        self.port = 0
        self.silent = False
        self.bytes_per_s: float | None = None
        self.connections = 0
        self._writers: set[asyncio.StreamWriter] = set()
        self._serving: set[asyncio.Task[Any]] = set()

    def url(self, host: str = "127.0.0.1") -> str:
        return f"redis://{host}:{self.port}"

    @property
    def open(self) -> int:
        """Connections that are."""
        return len(self._writers) // 2

    def cut(self) -> None:
        """Close every connection, as a proxy does with idle ones."""
        for writer in self._writers:
            writer.close()

    async def aclose(self) -> None:
        """Close every connection, and those that are still being made."""
        while serving := {task for task in self._serving if not task.done()}:
            self.cut()
            await asyncio.wait(serving, timeout=0.05)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        self.connections += 1
        there, back = await asyncio.open_connection("127.0.0.1", self.target)
        self._writers |= {writer, back}
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(self._pass(reader, back), name="relay-there")
                both.create_task(self._pass(there, writer, answers=True), name="relay-back")
        finally:
            self._writers -= {writer, back}
            for one in (writer, back):
                one.close()

    async def _pass(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, answers: bool = False) -> None:
        with suppress(ConnectionError):
            while (some := await source.read(65536)) and not (answers and self.silent):
                if answers and self.bytes_per_s is not None:
                    await takes(len(some) / self.bytes_per_s)
                sink.write(some)
                await sink.drain()
        sink.close()


AnyRelay = TypeVar("AnyRelay", bound=Relay)


@asynccontextmanager
async def served(relay: AnyRelay) -> AsyncIterator[AnyRelay]:
    """It listens for the time of a context, on its ``port``."""
    async with await asyncio.start_server(relay.serve, "127.0.0.1", 0) as server:
        relay.port = server.sockets[0].getsockname()[1]
        try:
            yield relay
        finally:
            server.close()
            await relay.aclose()


def relaying(target: int) -> AbstractAsyncContextManager[Relay]:
    return served(Relay(target))


@asynccontextmanager
async def saying(answer: bytes) -> AsyncIterator[int]:
    """The port of something that gives this answer to each command."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with suppress(ConnectionError):
                while asked := await reader.read(65536):
                    writer.write(answer * len(_COMMAND.findall(asked)))
                    await writer.drain()
        finally:
            writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]
