"""A server of model files on a real socket, and everything such servers do wrong."""

from __future__ import annotations

import asyncio
import gzip
import socket
import ssl
import struct
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import Literal
from urllib.parse import parse_qs

from tests.support.receiver import Request, ScriptedServer, _read

CHUNK = 65536
BEGAN = 1_700_000_000
"""Seconds since the epoch at which files were last changed, unless a test says otherwise."""


@dataclass(frozen=True)
class Twist:
    """How one answer differs from the right one.

    ``status`` with ``headers`` and ``body`` answers that instead of the file; headers alone are set on the right
    answer, an empty one is left out. After ``cut`` bytes of the body comes the ``end``: the connection is closed,
    reset, silent for ever, or goes on when the test sets `HostedFile.released`. ``whole``: 200 to a range request.
    ``chunked``: no length. ``gzipped``: compressed though nobody asked for that. ``drip``: that many bytes at a time
    with ``drip_s`` between them. ``shift``: the range begins so many bytes off, and says so.
    ``leaves``: the connection is closed after the answer, without a word.
    """

    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    cut: int | None = None
    end: Literal["close", "reset", "silence", "hold"] = "close"
    whole: bool = False
    chunked: bool = False
    gzipped: bool = False
    drip: int | None = None
    drip_s: float = 0.01
    shift: int = 0
    leaves: bool = False


RIGHT = Twist()
UNAUTHORIZED = Twist(401, {"content-type": "application/json"}, b'{"error": "Unauthorized"}')
FORBIDDEN = Twist(403, {"content-type": "application/xml"}, b"<Error><Code>AccessDenied</Code></Error>")
NOT_FOUND = Twist(404, {"content-type": "application/json"}, b'{"error": "Not found"}')
GONE = Twist(410, {"content-type": "application/json"}, b'{"error": "Archived"}')
BROKEN = Twist(500, {"content-type": "text/html"}, b"<html>oops</html>")
LOGIN_PAGE = Twist(200, {"content-type": "text/html; charset=utf-8"}, b"<!doctype html><title>Sign in</title>")


def busy(seconds: int | str = 0, status: int = 429) -> Twist:
    """The server wants less, and says for how long."""
    return Twist(status, {"retry-after": str(seconds)})


def redirect(url: str, status: int = 302) -> Twist:
    return Twist(status, {"location": url})


@dataclass
class HostedFile:
    """A file and how it is served; may be changed at any time.

    ``twists`` are taken by its requests in turn, None or none left: ``twist``; ``chosen`` may choose by request
    before both. ``etag`` with its quotes, None for none.
    ``conditional``: ``If-Range`` is heard. ``token``: asked for as Bearer, else 401. ``signature``: what
    ``?sig=`` must be, else 403. ``rate``: bytes a second of each connection.
    """

    body: bytes
    etag: str | None = '"v1"'
    modified: float | None = BEGAN
    content_type: str = "application/octet-stream"
    disposition: str | None = None
    ranges: bool = True
    conditional: bool = True
    token: str | None = None
    signature: str | None = None
    rate: float | None = None
    twist: Twist = RIGHT
    twists: deque[Twist | None] = field(default_factory=deque)
    chosen: Callable[[Request], Twist | None] = lambda request: None
    requests: list[Request] = field(default_factory=list)
    released: asyncio.Event = field(default_factory=asyncio.Event)
    sent: int = 0
    """Bytes of its body that went out in all."""

    @property
    def ranges_asked(self) -> list[str]:
        """The ``Range`` of every request, in order, empty where there was none."""
        return [request.headers.get("range", "") for request in self.requests]

    def twist_for(self, request: Request) -> Twist:
        query = parse_qs(request.target.partition("?")[2])
        if self.token is not None and request.headers.get("authorization") != f"Bearer {self.token}":
            return UNAUTHORIZED
        if self.signature is not None and query.get("sig") != [self.signature]:
            return FORBIDDEN
        found = self.chosen(request)
        if found is None and self.twists:
            found = self.twists.popleft()
        return self.twist if found is None else found


class ModelHost(ScriptedServer):
    """Serves files by path, in ranges as real servers do; for other paths it answers by script."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        super().__init__(tls=tls)
        self.files: dict[str, HostedFile] = {}
        self.receiving = 0
        """Bodies of files under way now."""
        self.most_at_once = 0

    def host(self, path: str, file: HostedFile | bytes) -> HostedFile:
        """Serve it from now on under this path."""
        hosted = file if isinstance(file, HostedFile) else HostedFile(file)
        self.files[path] = hosted
        return hosted

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> bool:
        request = await _read(reader, number)
        self.requests.append(request)
        file = self.files.get(request.path)
        if file is None:
            answer = self.answer(request)
            if answer.hang:
                await asyncio.Event().wait()
            writer.write(answer.raw if answer.raw is not None else answer.head())
            writer.write(answer.payload() if answer.raw is None and request.method != "HEAD" else b"")
            await writer.drain()
            return answer.raw is None
        file.requests.append(request)
        self.receiving += 1
        self.most_at_once = max(self.most_at_once, self.receiving)
        try:
            return await _answer(file, request, file.twist_for(request), writer)
        finally:
            self.receiving -= 1


async def _answer(file: HostedFile, request: Request, twist: Twist, writer: asyncio.StreamWriter) -> bool:
    status, headers, body = _response(file, request, twist)
    if twist.gzipped:
        body = gzip.compress(body, 1)
        headers["content-encoding"] = "gzip"
    headers["transfer-encoding" if twist.chunked else "content-length"] = "chunked" if twist.chunked else str(len(body))
    headers.update(twist.headers)
    lines = [f"{name}: {value}" for name, value in headers.items() if value]
    writer.write("\r\n".join([f"HTTP/1.1 {status} Hosted", *lines, "", ""]).encode())
    await writer.drain()
    stays = headers.get("connection") != "close" and not twist.leaves
    return stays if request.method == "HEAD" else await _send(file, body, twist, writer) and stays


def _response(file: HostedFile, request: Request, twist: Twist) -> tuple[int, dict[str, str], bytes]:
    if twist.status is not None:
        return twist.status, {}, twist.body
    headers = {
        "content-type": file.content_type,
        "etag": file.etag or "",
        "last-modified": "" if file.modified is None else formatdate(file.modified, usegmt=True),
        "content-disposition": file.disposition or "",
        "accept-ranges": "bytes" if file.ranges else "none",
    }
    span = None if twist.whole or not file.ranges or not _is_same(file, request) else _range(file, request)
    if span is None:
        return 200, headers, file.body
    start, end = span[0] + twist.shift, span[1] + twist.shift
    if span[0] >= len(file.body):
        return 416, {"content-range": f"bytes */{len(file.body)}"}, b""
    headers["content-range"] = f"bytes {start}-{min(end, len(file.body)) - 1}/{len(file.body)}"
    return 206, headers, file.body[start:end]


def _is_same(file: HostedFile, request: Request) -> bool:
    """What ``If-Range`` asks: a weak tag never agrees."""
    asked = request.headers.get("if-range")
    if asked is None or not file.conditional:
        return True
    if asked.startswith(('"', "W/")):
        return asked == file.etag and not asked.startswith("W/")
    return file.modified is not None and asked == formatdate(file.modified, usegmt=True)


def _range(file: HostedFile, request: Request) -> tuple[int, int] | None:
    unit, _, asked = request.headers.get("range", "").partition("=")
    first, _, last = asked.partition("-")
    if unit != "bytes" or "," in asked or not first:
        return None
    return int(first), min(int(last) + 1, len(file.body)) if last else len(file.body)


async def _send(file: HostedFile, body: bytes, twist: Twist, writer: asyncio.StreamWriter) -> bool:
    step = twist.drip or (CHUNK if file.rate is None else max(1, int(file.rate / 50)))
    pause = twist.drip_s if twist.drip else 0.02 if file.rate is not None else 0.0
    for part, is_cut in _parts(body, step, twist.cut):
        if is_cut and not await _cut(file, twist, writer):
            return False
        writer.write(b"%x\r\n%b\r\n" % (len(part), part) if twist.chunked else part)
        await writer.drain()
        file.sent += len(part)
        if pause:
            await asyncio.sleep(pause)
    writer.write(b"0\r\n\r\n" if twist.chunked else b"")
    await writer.drain()
    return True


def _parts(body: bytes, step: int, cut: int | None) -> Iterator[tuple[bytes, bool]]:
    """The pieces to send; with the flag the one before which the answer is cut."""
    edge = len(body) if cut is None else min(cut, len(body))
    for start in range(0, edge, step):
        yield body[start : min(start + step, edge)], False
    for start in range(edge, len(body), step):
        yield body[start : start + step], start == edge


async def _cut(file: HostedFile, twist: Twist, writer: asyncio.StreamWriter) -> bool:
    """Whether the answer goes on after all."""
    if twist.end == "hold":
        await file.released.wait()
        return True
    if twist.end == "silence":
        await asyncio.Event().wait()
    if twist.end == "reset":
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()
    return False
