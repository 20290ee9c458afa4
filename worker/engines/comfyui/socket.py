"""The socket on which ComfyUI tells how a prompt goes: opened anew, under a new name, whenever it breaks.

A name is never used twice: a server that notices late that the old socket is gone would make the new one deaf.
"""

from __future__ import annotations

import asyncio
from base64 import b64encode
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit
from uuid import uuid4

import structlog

from worker import http
from worker.engines.comfyui.pace import Pace
from worker.settings.groups import EngineSettings
from worker.tasks import cancel_all

if TYPE_CHECKING:
    from websockets.asyncio.client import ClientConnection, connect

log = structlog.get_logger(__name__)

OPEN_S = 5.0
CLOSE_S = 1.0
SLOWEST_S = 5.0


class Socket:
    """Hands every message to ``heard``; ``broke`` is called when the connection is lost."""

    def __init__(
        self,
        url: str,
        headers: dict[str, str],
        pace: Pace,
        heard: Callable[[str | bytes], None],
        broke: Callable[[], None],
    ) -> None:
        self._url, self._headers, self._pace = url, headers, pace
        self._heard, self._broke = heard, broke
        self.client_id = uuid4().hex
        """The name of the first connection: what is told to it is told to no later one."""
        self.drops = 0
        """How often the connection was lost, or could not be opened at first."""
        self._connection: ClientConnection | None = None

    async def open(self) -> None:
        """Make the connection that the prompt will name, unless the server, or a proxy, refuses it."""
        from websockets.exceptions import WebSocketException

        try:
            self._connection = await self._connect(self.client_id)
        except (WebSocketException, OSError, TimeoutError) as error:
            log.warning("engine_socket_refused", error=type(error).__name__)
            self.drops += 1

    async def aclose(self) -> None:
        if self._connection is not None:
            await self._connection.close()

    def _connect(self, client_id: str) -> connect:
        from websockets.asyncio.client import connect

        return connect(
            f"{socket_url(self._url)}?clientId={client_id}",
            additional_headers=self._headers,
            proxy=None if http.is_loopback(self._url) else True,
            ssl=http.tls() if self._url.startswith("https:") else None,
            compression=None,
            max_size=None,
            open_timeout=OPEN_S,
            close_timeout=CLOSE_S,
            ping_interval=self._pace.heartbeat_s,
            ping_timeout=self._pace.heartbeat_s,
        )

    async def read(self) -> None:
        """For ever: read, and connect again under a new name with growing pauses whenever that ends."""
        from websockets.exceptions import WebSocketException

        pause = self._pace.reconnect_s
        while True:
            try:
                if self._connection is None:
                    self._connection = await self._connect(uuid4().hex)
                    pause = self._pace.reconnect_s
                async for message in self._connection:
                    self._heard(message)
            except (WebSocketException, OSError, TimeoutError) as error:
                log.debug("engine_socket_broke", error=type(error).__name__)
            self._connection = None
            self.drops += 1
            self._broke()
            await asyncio.sleep(pause)
            pause = min(pause * 2, SLOWEST_S)


@asynccontextmanager
async def opened(
    settings: EngineSettings, url: str, pace: Pace, heard: Callable[[str | bytes], None], broke: Callable[[], None]
) -> AsyncIterator[Socket]:
    """A socket that is read until the end of the block. Where it cannot be opened the history has to do."""
    socket = Socket(url, credentials(settings), pace, heard, broke)
    await socket.open()
    reader = asyncio.create_task(socket.read(), name="comfyui-socket")
    try:
        yield socket
    finally:
        await cancel_all({reader})
        await socket.aclose()


def socket_url(url: str) -> str:
    """The address of the socket beside the routes."""
    parts = urlsplit(url)
    return urlunsplit(("wss" if parts.scheme == "https" else "ws", parts.netloc, f"{parts.path}/ws", "", ""))


def credentials(settings: EngineSettings) -> dict[str, str]:
    """What the server's own credentials are as headers."""
    headers = {}
    if settings.username is not None or settings.password is not None:
        password = settings.password.get_secret_value() if settings.password is not None else ""
        both = f"{settings.username or ''}:{password}".encode()
        headers["authorization"] = f"Basic {b64encode(both).decode()}"
    if settings.api_key is not None:
        headers["x-api-key"] = settings.api_key.get_secret_value()
    return headers
