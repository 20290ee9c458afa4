"""A port that a simulated server opens, closes and opens again: HTTP, and websockets where asked for."""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import Any, Literal

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

_QUIET = logging.getLogger("worker.simulators.http")
_QUIET.setLevel(logging.CRITICAL + 1)


class _State(ServerState):
    """What the connections of one opening share; ``closed``: none that is still being accepted may live."""

    closed = False


class _Protocol(H11Protocol):
    """Uvicorn's protocol without its log: faults that are asked for are no news."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.logger = _QUIET
        self.access_log = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if isinstance(self.server_state, _State) and self.server_state.closed:
            transport.abort()


class Listener:
    """Holds an address from `reserve` to `aclose`, and listens on it between `open` and `close`."""

    def __init__(self) -> None:
        self.url = ""
        self._reserved: socket.socket | None = None
        self._server: asyncio.Server | None = None
        self._state = _State()

    @property
    def listening(self) -> bool:
        """Whether the port is open."""
        return self._server is not None

    def reserve(self, host: str, port: int) -> None:
        """Take the address without listening: connections are refused, and nobody else gets it. Sets `url`."""
        self._reserved = bound(host, port)
        port = self._reserved.getsockname()[1]
        self.url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    async def open(
        self, app: ASGIApp, keep_alive_seconds: float, *, ws: Literal["none", "websockets-sansio"] = "none"
    ) -> None:
        """Listen; nothing happens when it does so already."""
        if self._server is not None or self._reserved is None:
            return
        config = uvicorn.Config(
            app,
            log_config=None,
            log_level=None,
            lifespan="off",
            ws=ws,
            ws_per_message_deflate=False,
            ws_ping_interval=None,
            proxy_headers=False,
            timeout_keep_alive=keep_alive_seconds,  # type: ignore[arg-type]
        )
        config.load()
        self._state = state = _State()
        state.default_headers = [(b"server", b"uvicorn")]
        listener = bound(*self._reserved.getsockname()[:2])
        self._server = await asyncio.get_running_loop().create_server(
            lambda: _Protocol(config=config, server_state=state, app_state={}), sock=listener
        )

    def close(self) -> None:
        """Stop listening and cut all connections at once; requests under way get no answer.

        A connection that asyncio is just accepting would be lost open with its server: that is closed after it.
        """
        if self._server is not None:
            loop = asyncio.get_running_loop()
            for listening in self._server.sockets:
                loop.remove_reader(listening)
            loop.call_soon(self._server.close)
            self._server = None
        self._state.closed = True
        for connection in list(self._state.connections):
            _abort(connection)
        for task in list(self._state.tasks):
            task.cancel()

    def cut(self, client: tuple[str, int]) -> None:
        """Cut the connection of the peer with this address, as ASGI's scope names it."""
        for connection in list(self._state.connections):
            peer = getattr(connection, "client", None)
            if peer is not None and tuple(peer[:2]) == tuple(client[:2]):
                _abort(connection)

    async def aclose(self) -> None:
        """Close, give the address back, and wait until requests under way have ended."""
        self.close()
        if self._reserved is not None:
            self._reserved.close()
        await asyncio.sleep(0)
        if tasks := list(self._state.tasks):
            await asyncio.wait(tasks)


def _abort(connection: Any) -> None:
    if connection.transport is not None:
        connection.transport.abort()


def bound(host: str, port: int) -> socket.socket:
    """A socket that has the address but does not listen yet: connections are refused, and nobody else gets it.

    The protocol is named because asyncio turns Nagle's delay off only for sockets that name it.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    try:
        sock.bind((host, port))
    except OSError:
        sock.close()
        raise
    return sock
