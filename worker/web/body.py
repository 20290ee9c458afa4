"""The limit of request bodies, enforced while they are read, whatever their length claims to be."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from worker.web.problems import problem


class _TooLarge(Exception):
    """More bytes came than are allowed."""


class BodyLimit:
    """ASGI middleware: a body of more than ``max_body`` bytes is answered with 413, and no more of it is read.

    A declared length is refused before the first byte; an undeclared or untrue one as soon as it is exceeded.
    """

    def __init__(self, app: ASGIApp, max_body: int) -> None:
        self._app = app
        self._max_body = max_body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        read, answered = 0, False

        async def counted() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > self._max_body:
                raise _TooLarge
            return message

        async def noted(message: Message) -> None:
            nonlocal answered
            answered = True
            await send(message)

        try:
            if _declared(scope) > self._max_body:
                raise _TooLarge
            await self._app(scope, counted, noted)
        except _TooLarge:
            if answered:
                raise
            refusal = problem(413, f"the body has more than {self._max_body} bytes", headers={"connection": "close"})
            await refusal(scope, receive, send)


def _declared(scope: Scope) -> int:
    lengths = (value for name, value in scope["headers"] if name == b"content-length")
    return max((int(value) for value in lengths if value.isdigit()), default=0)
