"""A way over TCP to a server on loopback, that can be cut and mended."""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager

from tests.support.redis_relay import Relay, served


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


def cabled(target: int) -> AbstractAsyncContextManager[Cable]:
    return served(Cable(target))
