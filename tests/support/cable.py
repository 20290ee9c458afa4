"""A way over TCP to a server on loopback, that can be cut and mended."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.support.redis_relay import Relay


class Cable(Relay):
    """While it is cut, connections end as soon as they are made."""

    def __init__(self, target: int) -> None:
        super().__init__(target)
        self._is_cut = False

    def sever(self) -> None:
        self._is_cut = True
        self.cut()

    def mend(self) -> None:
        self._is_cut = False

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._is_cut:
            writer.close()
        else:
            await super().serve(reader, writer)


@asynccontextmanager
async def cabled(target: int) -> AsyncIterator[Cable]:
    cable = Cable(target)
    async with await asyncio.start_server(cable.serve, "127.0.0.1", 0) as server:
        cable.port = server.sockets[0].getsockname()[1]
        try:
            yield cable
        finally:
            server.close()
            await cable.aclose()
