"""Requests from within: an application is asked without a socket, by whoever holds it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

import structlog
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message

from worker.tasks import cancel_all

log = structlog.get_logger()

_PATIENT = "sd-worker.patient"


@dataclass(frozen=True, slots=True)
class Answer:
    """What an application answered."""

    status: int
    headers: Headers
    body: bytes


def is_patient(scope: Mapping[str, Any]) -> bool:
    """Whether this caller waits for as long as it takes, whatever others may."""
    return _PATIENT in scope.get("extensions", {})


async def ask(app: ASGIApp, path: str, body: bytes, headers: Mapping[str, str], left: asyncio.Event) -> Answer:
    """POST a body; ``path`` may have a query. The caller waits for as long as it takes, or until he has ``left``.

    What breaks the application is logged, and answered with 500.
    """
    call = _Call(body, left)
    bare, _, query = path.partition("?")
    told = {"host": "localhost", "content-length": str(len(body)), **headers}
    scope: MutableMapping[str, Any] = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": bare if bare.startswith("/") else f"/{bare}",
        "raw_path": bare.encode("utf-8", "replace"),
        "root_path": "",
        "query_string": query.encode("utf-8", "replace"),
        "headers": [(name.lower().encode(), value.encode("latin-1", "replace")) for name, value in told.items()],
        "client": None,
        "server": ("localhost", None),
        "extensions": {_PATIENT: {}},
    }
    working = asyncio.create_task(_run(app, scope, call), name=f"ask-{bare}")
    try:
        await asyncio.wait({working})
    finally:
        await cancel_all({working})
    if not working.cancelled() and (error := working.exception()) is not None:
        log.error("endpoint_broke", path=bare, exc_info=error)
    return Answer(call.status, Headers(raw=call.headers), bytes(call.body))


async def _run(app: ASGIApp, scope: MutableMapping[str, Any], call: _Call) -> None:
    await app(scope, call.receive, call.send)


class _Call:
    """Both directions of one request."""

    def __init__(self, body: bytes, left: asyncio.Event) -> None:
        self._sent: bytes | None = body
        self._left = left
        self.status = 500
        self.headers: list[tuple[bytes, bytes]] = []
        self.body = bytearray()

    async def receive(self) -> Message:
        sent, self._sent = self._sent, None
        if sent is not None:
            return {"type": "http.request", "body": sent, "more_body": False}
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status, self.headers = message["status"], list(message.get("headers", ()))
        elif message["type"] == "http.response.body":
            self.body += message.get("body", b"")
