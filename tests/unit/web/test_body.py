"""The limit of bodies holds whatever a request claims."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest
from starlette.types import Message, Receive, Scope, Send

from tests.support.serving import serving
from worker.web.body import BodyLimit


class Reader:
    """An application that reads its body and says how long it was; begins its answer before that when told to."""

    def __init__(self) -> None:
        self.read = 0
        self.scopes: list[str] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scopes.append(scope["type"])
        start: Message = {"type": "http.response.start", "status": 200, "headers": []}
        if scope["path"] == "/early":
            await send(start)
        more = True
        while more:
            message = await receive()
            self.read += len(message["body"])
            more = message["more_body"]
        if scope["path"] != "/early":
            await send(start)
        await send({"type": "http.response.body", "body": str(self.read).encode()})


async def chunks(count: int) -> AsyncIterator[bytes]:
    for _ in range(count):
        yield bytes(100)


async def post(app: Reader, content: bytes | AsyncIterator[bytes], path: str = "/") -> httpx.Response:
    async with (
        serving(BodyLimit(app, max_body=1000)) as service,
        httpx.AsyncClient(trust_env=False, timeout=10) as client,
    ):
        return await client.post(service.url(path), content=content)


@pytest.mark.parametrize("chunked", [False, True])
async def test_bodies_up_to_the_limit_pass(chunked: bool) -> None:
    """The limit itself is allowed, with and without a declared length."""
    response = await post(Reader(), chunks(10) if chunked else bytes(1000))
    assert (response.status_code, response.text) == (200, "1000")


async def test_a_declared_length_is_refused_before_reading() -> None:
    """The application never hears of it."""
    app = Reader()
    response = await post(app, bytes(1001))
    assert response.status_code == 413
    assert app.scopes == []


async def test_an_undeclared_length_is_refused_while_reading() -> None:
    """Chunks are counted as they come; what is over the limit never reaches the application."""
    app = Reader()
    response = await post(app, chunks(11))
    assert response.status_code == 413
    assert response.json()["code"] == "body_too_large"
    assert app.read <= 1000


async def test_an_answer_already_begun_is_cut() -> None:
    """Nothing true can be said any more: the connection breaks, so that the client does not take it for success."""
    with pytest.raises(httpx.TransportError):
        await post(Reader(), chunks(11), "/early")


async def test_other_protocols_pass() -> None:
    """Only HTTP has bodies."""
    seen: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["type"])

    async def never() -> Message:
        raise AssertionError

    async def ignored(message: Message) -> None:
        raise AssertionError(message)

    await BodyLimit(app, max_body=1)({"type": "lifespan"}, never, ignored)
    assert seen == ["lifespan"]
