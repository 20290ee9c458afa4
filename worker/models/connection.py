"""One HTTP/1.1 connection whose bodies go straight into a file.

Waiting, receiving and writing are blocking calls in threads, over one buffer that is used again and again; the loop
only decides what comes next. Through httpx the same bytes cost more than half as much processor time again, since
each piece is allocated anew and copied twice (measured by ``benchmarks.models_download``). h11 reads heads and bodies
of unknown length, as it does for httpx.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import h11

from worker.models.threads import in_thread

T = TypeVar("T")
Headers = Sequence[tuple[str, str]]

BUFFER = 512 * 1024
"""Bytes that are received before they are written."""

TURN_S = 0.25
"""For which a thread works at most before it asks what to do next."""


class Broken(Exception):
    """The connection failed; the message says how, without a URL."""


class Unwritable(Exception):
    """The file cannot be written; ``error`` is the system's."""

    def __init__(self, error: OSError) -> None:
        super().__init__(error.strerror or str(error))
        self.error = error


@dataclass(frozen=True, slots=True)
class Route:
    """How a host is reached: addresses to try in turn, and what TLS calls it, None without TLS.

    ``tunnel``: the addresses are a proxy's, and this is the ``host:port`` behind it. With TLS the proxy is asked to
    connect there, with ``proxy_headers``; without it gets every request, with its whole URL and these headers.
    """

    addresses: tuple[str, ...]
    port: int
    server_name: str | None = None
    tunnel: str | None = None
    proxy_headers: Headers = ()

    @property
    def by_proxy(self) -> bool:
        """Whether the proxy itself is asked."""
        return self.tunnel is not None and self.server_name is None


@dataclass(frozen=True, slots=True)
class Head:
    """Status and headers of an answer, names in lower case."""

    status: int
    headers: Mapping[str, str]

    def get(self, name: str) -> str:
        return self.headers.get(name, "").strip()


class Connection:
    """Make one with `opened`. One request at a time; after an error it is good for `close` alone."""

    def __init__(self, sock: socket.socket, route: Route, key: object, threads: ThreadPoolExecutor) -> None:
        self.route = route
        self.key = key
        """What it is connected to, for whoever keeps it."""
        self.ended = True
        """Whether the body of the last answer has come to its end."""
        self._sock = sock
        self._threads = threads
        self._buffer = memoryview(bytearray(BUFFER))
        self._parser = h11.Connection(h11.CLIENT)
        self._framed = True
        self._left = 0
        self._spare = memoryview(b"")
        self._failure: Broken | None = None
        self._stays = False

    @property
    def is_reusable(self) -> bool:
        return self.ended and self._stays and self._failure is None

    async def ask(self, target: str, headers: Headers, timeout_s: float) -> Head:
        """Send a GET and wait for the head of its answer. Raises `Broken`."""
        return await self._in_thread(lambda: self._ask(target, headers, timeout_s))

    async def receive(self, fd: int, offset: int, at_most: int) -> int:
        """Write what comes of the body at this offset; how many bytes came, 0 after a short while without any.

        Raises `Broken`, also for a body that ends early, and `Unwritable`.
        """
        return await self._in_thread(lambda: self._receive(fd, offset, at_most))

    def close(self) -> None:
        self._stays = False
        with contextlib.suppress(OSError):
            self._sock.close()

    async def secure(self, context: Callable[[], ssl.SSLContext], timeout_s: float) -> None:
        """Speak TLS where the route asks for it, through the proxy where there is one. Raises `Broken`."""
        route = self.route
        if route.server_name is None:
            return
        if route.tunnel is not None:
            tunnel = route.tunnel
            await self._in_thread(lambda: self._connect(tunnel, route.proxy_headers, timeout_s))
        secured = context().wrap_socket(self._sock, server_hostname=route.server_name, do_handshake_on_connect=False)
        self._sock = secured
        await self._in_thread(lambda: _handshake(secured, timeout_s))

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await in_thread(self._threads, work, self._stop)

    def _stop(self) -> None:
        """Have the thread see the end of the stream."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def _connect(self, tunnel: str, headers: Headers, timeout_s: float) -> None:
        head = self._exchange(
            h11.Request(method="CONNECT", target=tunnel, headers=[("host", tunnel), *headers]), timeout_s
        )
        if head.status // 100 != 2:
            raise Broken(f"the proxy answers {head.status}")

    def _ask(self, target: str, headers: Headers, timeout_s: float) -> Head:
        try:
            request = h11.Request(method="GET", target=target, headers=list(headers))
        except h11.LocalProtocolError as error:
            raise Broken(f"the request is not valid HTTP ({error})") from None
        head = self._exchange(request, timeout_s)
        self._stays = head.get("connection").lower() != "close" and self._parser.their_http_version == b"1.1"
        length = head.get("content-length")
        self._spare = memoryview(b"")
        self.ended = False
        self._framed = length.isdecimal() and not head.get("transfer-encoding")
        if self._framed:
            self._left = int(length)
            self._spare = memoryview(self._parser.trailing_data[0])[: self._left]
            self.ended = self._left == 0
        return head

    def _exchange(self, request: h11.Request, timeout_s: float) -> Head:
        self._parser = parser = h11.Connection(h11.CLIENT)
        ends = time.monotonic() + timeout_s
        try:
            sent = (parser.send(request) or b"") + (parser.send(h11.EndOfMessage()) or b"")
            self._sock.settimeout(timeout_s)
            self._sock.sendall(sent)
            while True:
                event = parser.next_event()
                if isinstance(event, h11.Response):
                    return Head(event.status_code, _texts(event))
                if event is h11.NEED_DATA:
                    count = self._received(self._buffer, ends)
                    if count is None:
                        raise Broken("no answer in time")
                    parser.receive_data(bytes(self._buffer[:count]))
                elif not isinstance(event, h11.InformationalResponse):
                    raise Broken("closed the connection without an answer")
        except h11.ProtocolError:
            raise Broken("did not answer with valid HTTP") from None
        except OSError as error:
            raise Broken(_reason(error)) from None

    def _receive(self, fd: int, offset: int, at_most: int) -> int:
        if self._failure is not None:
            raise self._failure
        ends = time.monotonic() + TURN_S
        got = 0
        while got < at_most and not self.ended:
            try:
                data = self._direct(at_most - got, ends) if self._framed else self._parsed(at_most - got, ends)
            except Broken as failure:
                if got == 0:
                    raise
                self._failure = failure
                break
            if not data:
                break
            _write(fd, data, offset + got)
            got += len(data)
        return got

    def _direct(self, limit: int, ends: float) -> memoryview:
        """The next bytes of a body of known length; none when the time is over."""
        if self._spare:
            data, self._spare = self._spare[:limit], self._spare[limit:]
            self._took(len(data))
            return data
        limit = min(limit, self._left, BUFFER)
        filled = 0
        while filled < limit:
            try:
                count = self._received(self._buffer[filled:limit], ends)
                if count == 0:
                    raise Broken("the connection ended early")
            except (OSError, Broken) as error:
                failure = error if isinstance(error, Broken) else Broken(_reason(error))
                if filled == 0:
                    raise failure from None
                self._failure = failure
                break
            if count is None:
                break
            filled += count
        self._took(filled)
        return self._buffer[:filled]

    def _took(self, count: int) -> None:
        self._left -= count
        self.ended = self._left == 0

    def _parsed(self, limit: int, ends: float) -> memoryview:
        """The next bytes of a body whose end only its coding or the connection tells."""
        try:
            while not self._spare:
                event = self._parser.next_event()
                if isinstance(event, h11.Data):
                    self._spare = memoryview(bytes(event.data))
                elif isinstance(event, h11.EndOfMessage):
                    self.ended = True
                    break
                elif event is h11.NEED_DATA:
                    count = self._received(self._buffer, ends)
                    if count is None:
                        break
                    self._parser.receive_data(bytes(self._buffer[:count]))
                else:
                    raise Broken("the connection ended early")
        except h11.ProtocolError:
            raise Broken("the connection ended early") from None
        except OSError as error:
            raise Broken(_reason(error)) from None
        data, self._spare = self._spare[:limit], self._spare[limit:]
        return data

    def _received(self, into: memoryview, ends: float) -> int | None:
        """How many bytes came, 0 at the end of the stream, None when none came until then."""
        try:
            self._sock.settimeout(max(ends - time.monotonic(), 0.001))
            return self._sock.recv_into(into)
        except TimeoutError:
            return None


async def opened(
    route: Route, key: object, *, threads: ThreadPoolExecutor, context: Callable[[], ssl.SSLContext], timeout_s: float
) -> Connection:
    """Connect to the first address that takes us, each for its share of the time. Raises `Broken`."""
    loop = asyncio.get_running_loop()
    ends = loop.time() + timeout_s
    failure = Broken("has no address")
    for left, address in zip(range(len(route.addresses), 0, -1), route.addresses, strict=True):
        with contextlib.ExitStack() as undo:
            sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
            undo.callback(sock.close)
            try:
                sock.setblocking(False)
                async with asyncio.timeout(max(ends - loop.time(), 0.001) / left):
                    await loop.sock_connect(sock, (address, route.port))
            except OSError as error:
                failure = Broken(f"cannot be connected to: {_reason(error)}")
                continue
            connection = Connection(sock, route, key, threads)
            undo.callback(connection.close)
            await connection.secure(context, timeout_s)
            undo.pop_all()
            return connection
    raise failure


def _handshake(sock: ssl.SSLSocket, timeout_s: float) -> None:
    try:
        sock.settimeout(timeout_s)
        sock.do_handshake()
    except ssl.SSLCertVerificationError as error:
        raise Broken(f"its certificate is not valid: {error.verify_message}") from None
    except OSError as error:
        raise Broken(f"no TLS: {_reason(error)}") from None


def _write(fd: int, data: memoryview, offset: int) -> None:
    try:
        while data:
            count = os.pwrite(fd, data, offset)
            data, offset = data[count:], offset + count
    except OSError as error:
        raise Unwritable(error) from None


def _texts(event: h11.Response) -> dict[str, str]:
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in event.headers}


def _reason(error: OSError) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return error.strerror or str(error) or type(error).__name__
