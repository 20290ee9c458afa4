"""The server's websockets: who gets which message, in one row, with the server's own mistakes about client ids."""

from __future__ import annotations

import asyncio
import io
import json
import struct
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect

from worker.simulators.comfyui.state import Stats

PREVIEW = 1
PREVIEW_WITH_METADATA = 4
_FORMATS = {"JPEG": 1, "PNG": 2}
_MIME = {"JPEG": "image/jpeg", "PNG": "image/png"}


@dataclass
class _Socket:
    websocket: WebSocket
    deaf: bool = False
    flags: dict[str, Any] = field(default_factory=dict)


class Hub:
    """All open sockets by client id. One loop sends everything in turn, so a slow reader delays all others.

    A second socket under the same id replaces the first; when the first one closes, the id is forgotten
    and the second stays open without ever hearing anything again.
    """

    def __init__(self, stats: Stats, features: Callable[[], dict[str, Any]]) -> None:
        self._stats = stats
        self._features = features
        self._sockets: dict[str, _Socket] = {}
        self._all: set[WebSocket] = set()
        self._messages: asyncio.Queue[tuple[str | bytes, str | None]] = asyncio.Queue()
        self.on_cut: Callable[[tuple[str, int]], None] = lambda _: None

    def post(self, event: str, data: Mapping[str, Any], client_id: str | None) -> None:
        """Queue a message for one client, or for all when there is none."""
        self._messages.put_nowait((json.dumps({"type": event, "data": data}), client_id))

    def post_preview(self, image: tuple[str, bytes], client_id: str | None) -> None:
        """Queue a picture as a binary frame of the old kind."""
        frame = struct.pack(">II", PREVIEW, _FORMATS[image[0]]) + image[1]
        self._messages.put_nowait((frame, client_id))

    def post_described_preview(
        self, image: tuple[str, bytes], metadata: Mapping[str, Any], client_id: str | None
    ) -> None:
        """Queue a picture as a binary frame that says what it belongs to."""
        described = json.dumps({**metadata, "image_type": _MIME[image[0]]}).encode()
        out = io.BytesIO()
        out.write(struct.pack(">II", PREVIEW_WITH_METADATA, len(described)))
        out.write(described + image[1])
        self._messages.put_nowait((out.getvalue(), client_id))

    def described_previews(self, client_id: str | None) -> bool:
        """Whether the client has said that it takes frames with metadata."""
        socket = self._sockets.get(client_id or "")
        return socket is not None and socket.flags.get("supports_preview_metadata") is True

    def deafen(self, client_id: str | None) -> None:
        """The client's socket gets nothing any more, and does not notice."""
        if socket := self._sockets.get(client_id or ""):
            socket.deaf = True

    def cut(self, client_id: str | None) -> None:
        """The client's connection is lost without a word."""
        socket = self._sockets.get(client_id or "")
        if socket is not None and socket.websocket.client is not None:
            self.on_cut((socket.websocket.client.host, socket.websocket.client.port))

    async def publish(self) -> None:
        """Send what is queued, for ever."""
        while True:
            message, client_id = await self._messages.get()
            await self._send(message, client_id)

    async def serve(self, websocket: WebSocket, greeting: Callable[[str], list[tuple[str, dict[str, Any]]]]) -> None:
        """Hold one connection until it ends; ``greeting`` gives its first messages."""
        await websocket.accept()
        client_id = websocket.query_params.get("clientId", "") or uuid.uuid4().hex
        self._sockets[client_id] = _Socket(websocket)
        self._all.add(websocket)
        self._count(opened=1)
        try:
            for event, data in greeting(client_id):
                await self._send(json.dumps({"type": event, "data": data}), client_id)
            await self._listen(websocket, client_id)
        except WebSocketDisconnect:
            return
        finally:
            self._sockets.pop(client_id, None)
            self._all.discard(websocket)
            self._count()

    def _count(self, opened: int = 0) -> None:
        self._stats.sockets_opened += opened
        self._stats.sockets = len(self._all)

    async def _listen(self, websocket: WebSocket, client_id: str) -> None:
        first = True
        while (message := await websocket.receive())["type"] != "websocket.disconnect":
            document = _document(message.get("text"))
            if document is None:
                continue
            if first and document.get("type") == "feature_flags" and client_id in self._sockets:
                self._sockets[client_id].flags = document.get("data") or {}
                reply = {"type": "feature_flags", "data": self._features()}
                await self._send(json.dumps(reply), client_id)
            first = False

    async def _send(self, message: str | bytes, client_id: str | None) -> None:
        if client_id is None:
            targets = list(self._sockets.values())
        else:
            targets = [self._sockets[client_id]] if client_id in self._sockets else []
        for target in targets:
            if target.deaf:
                continue
            try:
                if isinstance(message, str):
                    await target.websocket.send_text(message)
                else:
                    await target.websocket.send_bytes(message)
            except (WebSocketDisconnect, RuntimeError):
                continue


def _document(text: object) -> dict[str, Any] | None:
    try:
        document = json.loads(text) if isinstance(text, str) else None
    except ValueError:
        return None
    return document if isinstance(document, dict) else None
