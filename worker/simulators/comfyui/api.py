"""The HTTP face of the server: paths with and without `/api`, its odd statuses, and the websocket."""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, Iterable
from typing import Any
from urllib.parse import urlsplit

from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket

from worker.simulators.comfyui.machine import Machine

TROUBLE = "500 Internal Server Error\n\nServer got itself in trouble"
STUMBLES = (TypeError, ValueError, KeyError, IndexError, AttributeError, RecursionError)
"""What the server's routes raise over documents of a wrong shape; it answers all of them alike."""

Route = Callable[[Request], Awaitable[Response]]
_LOOPBACK = re.compile(r"^(localhost|127\.\d+\.\d+\.\d+|::1)$")


class ConnectionLost(Exception):
    """Raised to have the connection cut without an answer."""


class TooLarge(Exception):
    """The body is larger than the server takes."""


def document(body: Any, status: int = 200) -> Response:
    """JSON as the server writes it."""
    return Response(json.dumps(body), status, headers={"content-type": "application/json; charset=utf-8"})


def empty(status: int = 200) -> Response:
    """An answer without a body."""
    return Response(status_code=status)


def absent(request: Request, allowed: Iterable[str] = ()) -> Response:
    """What a path without a route answers: the server looks for a file of its web page there."""
    if request.method == "GET":
        return Response(status_code=404, headers={"content-type": "application/octet-stream"})
    allow = ",".join(sorted({"GET", "HEAD", *allowed}))
    return PlainTextResponse("405: Method Not Allowed", 405, headers={"allow": allow})


class Api:
    """Routes are added by their modules."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self._routes: list[tuple[str, re.Pattern[str], Route]] = []
        self._own: dict[tuple[str, str], Route] = {}

    def add(self, method: str, path: str, route: Route, *, api: str = "(?:/api)?") -> None:
        """Answer a path; ``{name}`` stands for one part of it. ``api`` is the pattern of what may stand before."""
        pattern = re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", path)
        self._routes.append((method, re.compile(f"^{api}{pattern}$"), route))

    def own(self, method: str, path: str, route: Route) -> None:
        """A route of the simulator, not of the server: never counted."""
        self._own[method, path] = route

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await self._websocket(WebSocket(scope, receive, send))
            return
        request = Request(scope, receive)
        try:
            response = await self._answered(request)
        except ClientDisconnect:
            return
        except ConnectionLost:
            if request.client is not None:
                self.machine.hub.on_cut((request.client.host, request.client.port))
            return
        await response(scope, receive, send)

    async def _websocket(self, websocket: WebSocket) -> None:
        if websocket.url.path in ("/ws", "/api/ws"):
            await self.machine.hub.serve(websocket, self.machine.greeting)
        else:
            await websocket.close()

    async def _answered(self, request: Request) -> Response:
        own = self._own.get((request.method, request.url.path))
        if own is not None:
            return await own(request)
        self.machine.stats.requests[f"{request.method} {request.url.path}"] += 1
        if _foreign(request):
            return empty(403)
        try:
            return await self._routed(request)
        except TooLarge as error:
            return PlainTextResponse(str(error), 413)
        except STUMBLES:
            return PlainTextResponse(TROUBLE, 500)

    async def _routed(self, request: Request) -> Response:
        found = [(method, route, match) for method, route, match in self._matching(request.url.path)]
        for method, route, match in found:
            if method == request.method:
                request.scope["path_params"] = match.groupdict()
                return await route(request)
        return absent(request, {method for method, _, _ in found})

    def _matching(self, path: str) -> list[tuple[str, Route, re.Match[str]]]:
        matches = [(method, route, pattern.match(path)) for method, pattern, route in self._routes]
        return [(method, route, match) for method, route, match in matches if match]

    async def body(self, request: Request) -> bytes:
        """The whole body. Raises `TooLarge`."""
        limit = self.machine.knobs.max_upload_size
        data = bytearray()
        async for chunk in request.stream():
            data += chunk
            if len(data) > limit:
                raise TooLarge(f"Maximum request body size {limit} exceeded, actual body size {len(data)}")
        return bytes(data)

    async def json(self, request: Request) -> Any:
        """The body as JSON. Raises `ValueError`, `TooLarge`."""
        return json.loads(await self.body(request))


def _foreign(request: Request) -> bool:
    """Whether a page of another site asks a server on the loopback, which is refused."""
    host, origin = request.headers.get("host"), request.headers.get("origin")
    if not host or not origin:
        return False
    own, other = urlsplit(f"//{host}"), urlsplit(origin)
    if not _LOOPBACK.match(own.hostname or ""):
        return False
    ports = (own.port, other.port) if own.port and other.port else (None, None)
    return (own.hostname, ports[0]) != (other.hostname, ports[1])
