"""A proxy that holds one request in the middle of its body until it is let go, as a stalled network does.

The server behind sees a request only when it is whole, so that nothing here depends on what it makes of half ones.
"""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from urllib.parse import urlsplit

from tests.support.waiting import wait_until

Wanted = Callable[[str, str], bool]


class Turnstile:
    """``hold`` names the next request to be held, by method and path; ``passed`` counts them."""

    def __init__(self, upstream: str) -> None:
        self._upstream = urlsplit(upstream)
        self._wanted: Wanted | None = None
        self._going = asyncio.Event()
        self._under_way = 0
        self.passed = 0
        self.held = asyncio.Event()
        self.url = ""

    def hold(self, wanted: Wanted) -> None:
        """Hold the first request that is wanted; `held` is set once half of its body has been read."""
        self._wanted = wanted

    def release(self) -> None:
        self._going.set()

    async def idle(self) -> None:
        """Wait until nothing is under way."""
        await wait_until(lambda: self._under_way == 0, timeout=30)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One request, then the connection ends."""
        self._under_way += 1
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            writer.write(await self._answered(reader, writer))
            await writer.drain()
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()
        self._under_way -= 1
        self.passed += 1

    async def _answered(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").rstrip().split("\r\n")
        method, path, _ = first.split(" ")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        if headers.pop("expect", None):
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        length = int(headers.get("content-length", "0"))
        body = await reader.readexactly(length // 2)
        if self._wanted is not None and self._wanted(method, path):
            self._wanted = None
            self.held.set()
            await self._going.wait()
        body += await reader.readexactly(length - len(body))
        return await self._forwarded(first, headers, body)

    async def _forwarded(self, first: str, headers: dict[str, str], body: bytes) -> bytes:
        lines = [first, *(f"{name}: {value}" for name, value in {**headers, "connection": "close"}.items())]
        reader, writer = await asyncio.open_connection(self._upstream.hostname, self._upstream.port)
        try:
            writer.write("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body)
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
            if first.startswith("HEAD "):
                return head
            return head + await (reader.read() if length is None else reader.readexactly(int(length[1])))
        finally:
            writer.close()
            await writer.wait_closed()


@asynccontextmanager
async def turnstile(upstream: str) -> AsyncIterator[Turnstile]:
    """In front of an HTTP server. Its receive buffer is small, so that a held sender really stands in its body."""
    proxy = Turnstile(upstream)
    listener = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    listener.bind(("::1", 0))
    server = await asyncio.start_server(proxy.serve, sock=listener, limit=8192)
    proxy.url = f"http://[::1]:{listener.getsockname()[1]}"
    try:
        yield proxy
    finally:
        proxy.release()
        server.close()
        await server.wait_closed()
