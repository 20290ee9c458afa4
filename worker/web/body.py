"""The limits of request bodies, enforced while they are read, whatever their length claims to be."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from worker.web.problems import problem

SMALL = 1_000_000
"""Bytes of a body that never has to wait for others."""

TOGETHER = 256_000_000
"""Bytes of bodies that may be under way into the application at a time."""

STALL_S = 60.0
"""Seconds in which something more of a body has to come."""


LINGER_S, LINGER_BYTES = 1.0, 64_000_000
"""How long, and how much of it, a refused body is still taken in and thrown away."""


class _Refused(Exception):
    """The body is none that is read to its end."""

    def __init__(self, status: int, said: str, code: str | None = None) -> None:
        super().__init__(said)
        self.status = status
        self.said = said
        self.code = code


class BodyLimit:
    """ASGI middleware: a body of more than ``max_body`` bytes is answered with 413, and no more of it is kept.

    A declared length is refused before the first byte; an undeclared or untrue one as soon as it is exceeded. One that
    does not come on within ``stall_s`` is answered with 408. Of all large bodies no more than ``together`` bytes are
    read before the application has done with them, however many callers send at once: the others wait in their
    sockets. The one that came first always goes on, so that all come to an end.
    """

    def __init__(self, app: ASGIApp, max_body: int, *, together: int = TOGETHER, stall_s: float = STALL_S) -> None:
        self._app = app
        self._max_body = max_body
        self._stall_s = stall_s
        self._crowd = _Crowd(together)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body, answered = _Body(_declared(scope)), False

        async def counted() -> Message:
            if body.over:
                self._crowd.leave(body)
                return await receive()
            try:
                return await self._next(body, receive)
            except _Refused as refusal:
                body.refusal = refusal
                raise

        async def noted(message: Message) -> None:
            nonlocal answered
            self._crowd.leave(body)
            if body.refusal is not None and not answered:
                raise body.refusal
            answered = True
            await send(message)

        try:
            if body.declared > self._max_body:
                raise self._too_large()
            await self._app(scope, counted, noted)
        except _Refused as refusal:
            if answered:
                raise
            await _answered(refusal, receive, send)
        finally:
            self._crowd.leave(body)

    async def _next(self, body: _Body, receive: Receive) -> Message:
        """The next piece, once there is room for it."""
        await self._crowd.turn(body)
        try:
            async with asyncio.timeout(self._stall_s):
                message = await receive()
        except TimeoutError:
            raise _Refused(408, f"nothing more of the body came for {self._stall_s:g} s", "body_stalled") from None
        body.over = not message.get("more_body", False)
        self._crowd.read(body, len(message.get("body", b"")))
        if body.read > self._max_body:
            raise self._too_large()
        return message

    def _too_large(self) -> _Refused:
        return _Refused(413, f"the body has more than {self._max_body} bytes")


async def _answered(refusal: _Refused, receive: Receive, send: Send) -> None:
    """Refuse, and listen a moment longer: the answer would be lost with a connection that is cut while the caller
    still sends."""
    answer = problem(refusal.status, refusal.said, code=refusal.code, headers={"connection": "close"})
    await send({"type": "http.response.start", "status": answer.status_code, "headers": answer.raw_headers})
    await send({"type": "http.response.body", "body": answer.body, "more_body": True})
    ignored, more = 0, True
    with suppress(TimeoutError):
        async with asyncio.timeout(LINGER_S):
            while more and ignored < LINGER_BYTES:
                message = await receive()
                ignored += len(message.get("body", b""))
                more = message.get("more_body", False)
    await send({"type": "http.response.body"})


class _Body:
    """One body on its way: ``declared`` bytes, 0 where it does not say; ``held`` of those ``read`` are still in use."""

    def __init__(self, declared: int) -> None:
        self.declared = declared
        self.read = 0
        self.held = 0
        self.over = False
        self.refusal: _Refused | None = None


class _Crowd:
    """All bodies that are on their way, in the order of their coming.

    A whole one is soon let go of, so that the others wait for it; among halves the first one goes on.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._bytes = 0
        self._coming: dict[_Body, None] = {}
        self._whole: set[_Body] = set()
        self._changed = asyncio.Event()

    async def turn(self, body: _Body) -> None:
        """Until a piece more of it may be read."""
        if max(body.declared, body.read) <= SMALL:
            return
        self._coming.setdefault(body)
        while self._bytes >= self._most and (self._whole or next(iter(self._coming)) is not body):
            await self._changed.wait()

    def read(self, body: _Body, count: int) -> None:
        body.read += count
        body.held += count
        self._bytes += count
        if body.over and body.held:
            self._whole.add(body)
        if body.over:
            self._come(body)

    def leave(self, body: _Body) -> None:
        """The application has done with it, or there is no more to come."""
        self._bytes -= body.held
        body.held = 0
        self._whole.discard(body)
        self._come(body)

    def _come(self, body: _Body) -> None:
        self._coming.pop(body, None)
        self._changed.set()
        self._changed = asyncio.Event()


def _declared(scope: Scope) -> int:
    lengths = (value for name, value in scope["headers"] if name == b"content-length")
    return max((int(value) for value in lengths if value.isdigit()), default=0)
