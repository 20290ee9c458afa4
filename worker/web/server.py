"""The HTTP service: uvicorn's protocol inside our own event loop, on a socket for IPv6 and IPv4."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import uvicorn
from starlette.types import ASGIApp

from worker.errors import ConfigError, FieldError
from worker.tasks import cancel_all

GRACE_S = 0.5
"""How long running answers have to end when the service is cancelled."""

KEEP_ALIVE_S = 75
"""Idle connections are kept longer than proxies keep theirs, so that none is closed while a request is on its way."""

AT_ONCE, WAITING = 8, 2048
"""Connections that are taken in before others have their turn again, and those that wait for that in the kernel."""

Protocol = Literal["h11", "httptools"]
"""What reads requests: h11, which httpx brings anyway, or httptools, which takes a fraction of its time."""

_NO_IPV6 = frozenset({errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL, errno.EPROTONOSUPPORT, errno.ENOPROTOOPT})


async def serve(
    app: ASGIApp,
    host: str,
    port: int,
    *,
    on_listening: Callable[[int], None],
    prefix: str = "WORKER_HTTP_",
    protocol: Protocol = "h11",
) -> None:
    """Serve until cancelled; ``on_listening`` is told the port once connections are accepted.

    When cancelled it accepts no more, lets running answers end within `GRACE_S`, cuts the rest, and leaves
    nothing behind. Raises `ConfigError` when it cannot listen there, naming the variables that begin with
    ``prefix``. Port 0 takes any that is free. ``protocol`` httptools is a package of its own.
    """
    server = _Server(app, on_listening, protocol)
    with await _listening(host, port, prefix) as listener:
        try:
            await server.serve(sockets=[listener])
        finally:
            await server.aclose()


async def _listening(host: str, port: int, prefix: str) -> socket.socket:
    """A listening socket; ``::`` listens on both families, on IPv4 alone where the kernel has no IPv6."""
    if host == "::":
        try:
            return _bound(socket.AF_INET6, ("::", port), dual=True)
        except OSError as error:
            if error.errno not in _NO_IPV6:
                raise _refused(host, port, prefix, error) from None
        host = "0.0.0.0"  # noqa: S104 - what `::` stands for
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        family, *_, address = found[0]
        return _bound(family, address)
    except OSError as error:
        raise _refused(host, port, prefix, error) from None


def _bound(family: int, address: tuple[Any, ...], *, dual: bool = False) -> socket.socket:
    # asyncio sets TCP_NODELAY only where it sees the protocol; without it an answer waits some 40 ms
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not dual)
        listener.setblocking(False)
        listener.bind(address)
    except OSError:
        listener.close()
        raise
    return listener


def _refused(host: str, port: int, prefix: str, error: OSError) -> ConfigError:
    if error.errno == errno.EADDRINUSE:
        return ConfigError((FieldError(f"{prefix}PORT", f"port {port} is in use"),))
    if error.errno in (errno.EACCES, errno.EPERM):
        return ConfigError((FieldError(f"{prefix}PORT", f"this user may not listen on port {port}"),))
    return ConfigError((FieldError(f"{prefix}HOST", f"cannot listen on {host}: {error.strerror or error}"),))


class _Server(uvicorn.Server):
    """uvicorn's server, its signals and its ending taken away from it: both are ours."""

    def __init__(self, app: ASGIApp, on_listening: Callable[[int], None], protocol: Protocol) -> None:
        config = uvicorn.Config(
            app,
            http=protocol,
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="warning",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_S,
            backlog=AT_ONCE,
        )
        super().__init__(config)
        self.servers: list[asyncio.Server] = []
        self._on_listening = on_listening

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """None: uvicorn would raise each captured signal a second time."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for listener in sockets or ():
            listener.listen(WAITING)
        self._on_listening(self.servers[0].sockets[0].getsockname()[1])

    async def main_loop(self) -> None:
        """Only renews the `Date` header, once a second where uvicorn wakes up ten times."""
        while True:
            await self.on_tick(0)
            await asyncio.sleep(1)

    async def aclose(self) -> None:
        """Stop accepting, close idle connections, give running answers their grace, then cut what is left."""
        for server in self.servers:
            server.close()
        for connection in list(self.server_state.connections):
            connection.shutdown()
        if self.server_state.tasks:
            await asyncio.wait(self.server_state.tasks, timeout=GRACE_S)
        await cancel_all(set(self.server_state.tasks))
        for connection in list(self.server_state.connections):
            connection.transport.abort()
