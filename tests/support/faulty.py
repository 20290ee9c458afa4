"""An HTTP proxy that does to single requests what networks and stores do to them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import urlsplit


@dataclass(frozen=True, slots=True)
class Asked:
    """A request as the proxy saw it; header names are in lower case."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class Answer:
    """Answered by the proxy itself."""

    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


Deed = Answer | Literal["forward", "cut", "hang", "lose"]
"""``cut``: the connection ends in the middle of the request; ``hang``: no answer ever comes; ``lose``: the request
is carried out, and its answer is lost."""


def refusal(status: int, code: str, **headers: str) -> Answer:
    """S3's way to say no."""
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>by the test</Message></Error>"
    return Answer(status, body.encode(), {"Content-Type": "application/xml", **headers})


class FaultyProxy:
    """``deed`` decides about each request once its headers are there; one at a time reaches the server behind."""

    def __init__(self, upstream: str) -> None:
        self._upstream = urlsplit(upstream)
        self._turn = asyncio.Lock()
        self._over = asyncio.Event()
        self.deed: Callable[[Asked], Deed] = lambda asked: "forward"
        self.seen: list[Asked] = []
        self.cut_bytes = 0
        self.url = ""

    def methods(self, containing: str = "") -> list[str]:
        return [asked.method for asked in self.seen if containing in asked.path]

    def first(self, count: int, deed: Deed, *, method: str = "PUT") -> None:
        """Do this to the first requests of the method from now on, and let the rest pass."""
        left = [deed] * count

        def decide(asked: Asked) -> Deed:
            return left.pop() if left and asked.method == method else "forward"

        self.deed = decide

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            await self._serve(reader, writer)
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()

    def release(self) -> None:
        self._over.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = head.rstrip().split("\r\n")
        method, path, _ = first.split(" ")
        headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
        deed = self.deed(Asked(method, path, headers))
        if "expect" in headers:
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            del headers["expect"]
        length = int(headers.get("content-length", "0"))
        if deed == "cut":
            self.cut_bytes += len(await reader.readexactly(length // 2))
            self.seen.append(Asked(method, path, headers))
            return
        body = await reader.readexactly(length)
        self.seen.append(Asked(method, path, headers, body))
        if isinstance(deed, Answer):
            writer.write(_response(deed))
            await writer.drain()
        elif deed == "hang":
            await self._over.wait()
        else:
            answer = await self._forwarded(f"{method} {path} HTTP/1.1", headers, body)
            if deed == "forward":
                writer.write(answer)
                await writer.drain()

    async def _forwarded(self, first: str, headers: dict[str, str], body: bytes) -> bytes:
        lines = [first, *(f"{k}: {v}" for k, v in {**headers, "connection": "close"}.items())]
        async with self._turn:
            reader, writer = await asyncio.open_connection(self._upstream.hostname, self._upstream.port)
            try:
                writer.write("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body)
                return await reader.read()
            finally:
                writer.close()
                await writer.wait_closed()


def _response(answer: Answer) -> bytes:
    headers = {"Content-Length": str(len(answer.body)), "Connection": "close", **answer.headers}
    lines = [f"HTTP/1.1 {answer.status} -", *(f"{k}: {v}" for k, v in headers.items())]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + answer.body


@asynccontextmanager
async def faulty_proxy(upstream: str) -> AsyncIterator[FaultyProxy]:
    proxy = FaultyProxy(upstream)
    async with AsyncExitStack() as stack:
        server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
        await stack.enter_async_context(server)
        stack.callback(proxy.release)
        proxy.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        yield proxy
