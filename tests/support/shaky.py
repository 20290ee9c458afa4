"""Things around a worker that fail every so often, by a seeded chance: a store, and a receiver of webhooks.

Some failures come before the deed, some after it: it is done, and whoever asked for it never hears so.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Literal
from urllib.parse import urlsplit

from tests.support.faulty import refusal
from tests.support.receiver import Answer, Request
from tests.support.workshop import Hook

Mishap = Literal["error_500", "error_503", "cut", "lost", "belied"]
"""What befalls a request.

error_500  refused with that status, and not done
error_503  the same; the store says `SlowDown`, the receiver 429 with a ``Retry-After`` of a second
cut        the connection ends in the middle of the request, which is not done
lost       it is done, and the connection ends before the answer
belied     it is done, and the answer is a 500
"""
MISHAPS: tuple[Mishap, ...] = ("error_500", "error_503", "cut", "lost", "belied")
DONE = ("lost", "belied")
SHARE = 0.05
_NO_BODY = (b" 204 ", b" 304 ", b" 100 ")
_LIMIT = 2**20


class Chance:
    """``share`` of the requests meet with a mishap; ``met`` counts them by kind, ``asked`` are all."""

    def __init__(self, seed: int, share: float = SHARE) -> None:
        self._rng = random.Random(seed)
        self._share = share
        self.asked = 0
        self.met: Counter[str] = Counter()

    def next(self) -> Mishap | None:
        self.asked += 1
        if self._rng.random() >= self._share:
            return None
        mishap = self._rng.choice(MISHAPS)
        self.met[mishap] += 1
        return mishap


class ShakyHook(Hook):
    """The receiver of these tests; ``ended`` grows with each job that it was told has ended."""

    def __init__(self, chance: Chance) -> None:
        super().__init__()
        self.chance = chance
        self._ended: set[str] = set()

    def answer(self, request: Request) -> Answer:
        mishap = self.chance.next()
        if mishap is None or mishap in DONE:
            taken = super().answer(request)
            if self.told:
                self._ended.add(self.told[-1].data["id"])
            return taken if mishap is None else Answer(500) if mishap == "belied" else Answer(raw=b"")
        if mishap == "cut":
            return Answer(raw=b"")
        return Answer(500) if mishap == "error_500" else Answer(429, {"retry-after": "1"})

    def ended(self) -> set[str]:
        return self._ended


class ShakyStore:
    """Stands before an S3 server, whose connections it keeps; ``url`` is where it listens."""

    def __init__(self, upstream: str, chance: Chance) -> None:
        self._upstream = urlsplit(upstream)
        self._serving: set[asyncio.Task[None]] = set()
        self.chance = chance
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One client's connection, with one of its own to the server behind."""
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        there, back = await asyncio.open_connection(self._upstream.hostname, self._upstream.port, limit=_LIMIT)
        try:
            with suppress(ConnectionError, asyncio.IncompleteReadError):
                while await self._exchange(reader, writer, there, back):
                    pass
        except asyncio.CancelledError:
            writer.transport.abort()
        finally:
            self._serving.discard(task)
            for end in (writer, back):
                end.close()

    async def aclose(self) -> None:
        for task in self._serving:
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)

    async def _exchange(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        there: asyncio.StreamReader,
        back: asyncio.StreamWriter,
    ) -> bool:
        """One request; whether the connection lasts."""
        head = await reader.readuntil(b"\r\n\r\n")
        mishap = self.chance.next()
        fields = _fields(head)
        if b"expect" in fields:
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            head = _without(head, b"expect")
        length = int(fields.get(b"content-length", b"0"))
        if mishap == "cut":
            await reader.readexactly(length // 2)
            return False
        body = await reader.readexactly(length)
        if mishap in ("error_500", "error_503"):
            writer.write(REFUSALS[mishap])
            return True
        back.write(head + body)
        answer = await _whole(there, is_head=head.startswith(b"HEAD "))
        if mishap == "lost":
            return False
        writer.write(answer if mishap is None else REFUSALS["error_500"])
        await writer.drain()
        return True


def _refusal(status: int, code: str) -> bytes:
    """S3's, on a connection that lasts."""
    said = refusal(status, code)
    lines = [f"HTTP/1.1 {status} -", f"Content-Length: {len(said.body)}", "Content-Type: application/xml"]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + said.body


REFUSALS = {"error_500": _refusal(500, "InternalError"), "error_503": _refusal(503, "SlowDown")}


def _fields(head: bytes) -> dict[bytes, bytes]:
    lines = head.split(b"\r\n")[1:]
    return {name.lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines)}


def _without(head: bytes, name: bytes) -> bytes:
    return b"\r\n".join(line for line in head.split(b"\r\n") if not line.lower().startswith(name + b":"))


async def _whole(reader: asyncio.StreamReader, *, is_head: bool) -> bytes:
    """An answer as it came, to its end."""
    head = await reader.readuntil(b"\r\n\r\n")
    first, fields = head.partition(b"\r\n")[0], _fields(head)
    if is_head or any(status in first for status in _NO_BODY):
        return head
    if fields.get(b"transfer-encoding", b"").lower() != b"chunked":
        return head + await reader.readexactly(int(fields[b"content-length"]))
    whole = [head]
    size = -1
    while size != 0:
        line = await reader.readuntil(b"\r\n")
        size = int(line, 16)
        whole += [line, await reader.readexactly(size + 2)]
    return b"".join(whole)


@asynccontextmanager
async def shaky_store(upstream: str, chance: Chance) -> AsyncIterator[ShakyStore]:
    store = ShakyStore(upstream, chance)
    server = await asyncio.start_server(store.serve, "127.0.0.1", 0, limit=_LIMIT)
    store.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield store
    finally:
        server.close()
        await store.aclose()
        await server.wait_closed()
