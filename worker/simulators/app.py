"""The ASGI application: routes by path, the dialect's error bodies, login, rate limit, compression, cut answers."""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive, Scope, Send

from worker.simulators.errors import HttpError, OtherAnswer, ServerError, error_answer
from worker.simulators.limits import RateLimiter
from worker.simulators.machine import Machine


class ConnectionCut(Exception):
    """Raised to have the connection cut in the middle of an answer."""


@dataclass
class Reply:
    """What a route answers: a JSON body unless ``content_type`` says otherwise. ``cut`` ends it in the middle."""

    body: Any
    status: int = 200
    content_type: str = "application/json"
    cut: bool = False

    def encoded(self) -> bytes:
        """The body's bytes."""
        if self.status == 204:
            return b""
        if self.content_type != "application/json":
            return str(self.body).encode()
        return json.dumps(self.body, ensure_ascii=False, separators=(",", ":")).encode()


Route = Callable[[Request], Awaitable[Reply]]


class Api:
    """One server's HTTP face. Routes are added by their modules."""

    def __init__(self, machine: Machine, auth: str | None) -> None:
        self.machine = machine
        self.auth = auth
        self._routes: dict[str, dict[str, tuple[Route, bool]]] = {}
        self._own: dict[tuple[str, str], Route] = {}
        self._limiter = RateLimiter()

    def get(self, path: str, route: Route, *, guarded: bool = True) -> None:
        """Answer GET; ``guarded`` asks for the login where there is one."""
        self._routes.setdefault(path, {})["GET"] = (route, guarded)

    def post(self, path: str, route: Route, *, guarded: bool = True) -> None:
        """Answer POST."""
        self._routes.setdefault(path, {})["POST"] = (route, guarded)

    def own(self, method: str, path: str, route: Route) -> None:
        """A route of the simulator, not of the server: never limited, guarded, counted or late."""
        self._own[method, path] = route

    def paths(self) -> dict[str, list[str]]:
        """The server's paths with their methods."""
        return {path: sorted(methods) for path, methods in self._routes.items()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        own = self._own.get((request.method, request.url.path))
        began = time.perf_counter()
        headers: dict[str, str] = {}
        try:
            if own is not None:
                reply = await own(request)
            else:
                reply, headers = await self._answered(request)
        except ClientDisconnect:
            return
        if self.machine.dialect.process_time and own is None:
            headers["x-process-time"] = f"{time.perf_counter() - began:.4f}"
        await self._send(request, reply, headers, send)

    async def _answered(self, request: Request) -> tuple[Reply, dict[str, str]]:
        self.machine.stats.requests[f"{request.method} {request.url.path}"] += 1
        try:
            return await self._routed(request), {}
        except (HttpError, ServerError, OtherAnswer) as error:
            status, body, headers = error_answer(self.machine.dialect, error)
            return Reply(body, status), headers

    async def _routed(self, request: Request) -> Reply:
        methods = self._routes.get(request.url.path)
        late = request.url.path.startswith("/sdapi/") and not self.machine.routes_ready
        if methods is None or late:
            raise OtherAnswer(404, {"detail": "Not Found"})
        if request.method not in methods:
            raise OtherAnswer(405, {"detail": "Method Not Allowed"}, {"allow": ", ".join(methods)})
        self.machine.notice_boot()
        route, guarded = methods[request.method]
        if guarded and self.auth is not None:
            self._authenticate(request, self.auth)
        async with self.machine.threads:
            reply = await route(request)
        self._limit(request)
        return reply

    def _authenticate(self, request: Request, wanted: str) -> None:
        """HTTP Basic. Only Forge keeps the header that browsers need."""
        scheme, _, value = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "basic":
            if secrets.compare_digest(value.strip(), base64.b64encode(wanted.encode()).decode()):
                return
            detail = "Unauthorized" if self.machine.dialect.sdnext else "Incorrect username or password"
        else:
            detail = "Not authenticated"
        if self.machine.dialect.errors == "forge":
            raise OtherAnswer(401, {"detail": detail}, {"www-authenticate": "Basic"})
        raise HttpError(401, detail)

    def _limit(self, request: Request) -> None:
        if not self.machine.dialect.current:
            return
        client = request.client.host if request.client else "unknown"
        limit = int(self.machine.options["server_rate_limit"] or 0)
        if self._limiter.exceeded(client, request.url.path, limit):
            raise HttpError(429, f"{client}:{request.url.path}: rate limit exceeded")

    async def _send(self, request: Request, reply: Reply, headers: dict[str, str], send: Send) -> None:
        data = await asyncio.to_thread(reply.encoded)
        dialect, knobs = self.machine.dialect, self.machine.knobs
        accepted = "gzip" in request.headers.get("accept-encoding", "")
        if knobs.gzip and accepted and len(data) >= dialect.gzip_over:
            data = await asyncio.to_thread(gzip.compress, data, 5)
            headers |= {"content-encoding": "gzip", "vary": "Accept-Encoding"}
        if reply.status != 204:
            headers |= {"content-type": reply.content_type, "content-length": str(len(data))}
        raw = [(k.encode("latin-1"), v.encode("latin-1")) for k, v in headers.items()]
        await send({"type": "http.response.start", "status": reply.status, "headers": raw})
        if reply.cut:
            await send({"type": "http.response.body", "body": data[: len(data) // 2], "more_body": True})
            raise ConnectionCut
        await send({"type": "http.response.body", "body": data})
