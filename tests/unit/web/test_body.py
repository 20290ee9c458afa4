"""The limit of bodies holds whatever a request claims."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from starlette.types import Message, Receive, Scope, Send

from tests.support.serving import serving
from tests.support.virtual import elapse, virtual
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


MB = 1_000_000


class Caller:
    """One request at the ASGI seam: its body comes in pieces of half a megabyte, then it waits for its answer."""

    def __init__(self, size: int, *, declared: bool = True, dries_up: bool = False) -> None:
        self.size, self.sent, self.dries_up = size, 0, dries_up
        length = [(b"content-length", str(size).encode())] if declared else []
        self.scope: Scope = {"type": "http", "method": "POST", "path": "/", "headers": length}
        self.status: int | None = None
        self.body = b""

    async def receive(self) -> Message:
        if self.sent == self.size or (self.dries_up and self.sent):
            await asyncio.Event().wait()
        piece = min(MB // 2, self.size - self.sent)
        self.sent += piece
        return {"type": "http.request", "body": bytes(piece), "more_body": self.sent < self.size}

    async def send(self, message: Message) -> None:
        self.status = message.get("status", self.status)
        self.body += message.get("body", b"")


class Slow:
    """An application that takes ten seconds over each body, then waits without it until it is told to answer."""

    def __init__(self) -> None:
        self.waiting = 0
        self.answer = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive()).get("more_body"):
            pass
        await elapse(10)
        away = asyncio.create_task(_taken(receive), name="away")
        self.waiting += 1
        await self.answer.wait()
        away.cancel()
        await send({"type": "http.response.start", "status": 200, "headers": []})


async def _taken(receive: Receive) -> Message:
    return await receive()


async def crowd(limit: BodyLimit, *callers: Caller) -> list[asyncio.Task[None]]:
    tasks: list[asyncio.Task[None]] = []
    for number, caller in enumerate(callers):
        tasks.append(asyncio.create_task(limit(caller.scope, caller.receive, caller.send), name=f"caller-{number}"))
        await elapse(0.001)
    return tasks


@virtual
async def test_a_crowd_of_large_bodies_waits_in_its_sockets() -> None:
    """No more is read at a time than may be, but for one body and the beginnings of the others; each has its turn once
    those before it are dealt with, though their callers still wait for their answers."""
    app = Slow()
    callers = [Caller(3 * MB, declared=number % 2 == 0) for number in range(6)]
    tasks = await crowd(BodyLimit(app, 4 * MB, together=4 * MB), *callers)
    assert sum(caller.sent for caller in callers) <= 8 * MB
    assert callers[0].sent == 3 * MB
    for passed in range(1, 14):
        await elapse(5)
        assert sum(caller.sent for caller in callers) - app.waiting * 3 * MB <= 8 * MB, passed
    assert [caller.sent for caller in callers] == [3 * MB] * 6
    assert app.waiting == 6
    app.answer.set()
    await asyncio.gather(*tasks)
    assert [caller.status for caller in callers] == [200] * 6


@virtual
async def test_small_bodies_never_wait() -> None:
    """A crowd of large ones is in nobody's way who asks for little."""
    app, small = Slow(), Caller(MB)
    tasks = await crowd(BodyLimit(app, 4 * MB, together=MB), Caller(4 * MB), Caller(4 * MB), small)
    assert small.sent == MB
    app.answer.set()
    await asyncio.gather(*tasks)


@virtual
async def test_a_body_that_does_not_come_on_is_given_up() -> None:
    """It would keep the others waiting; they go on at once."""
    app, dry, next_one = Slow(), Caller(4 * MB, dries_up=True), Caller(4 * MB)
    app.answer.set()
    tasks = await crowd(BodyLimit(app, 4 * MB, together=MB // 2, stall_s=60), dry, next_one)
    assert next_one.sent < MB
    await elapse(61)
    assert (dry.status, json.loads(dry.body)["code"]) == (408, "body_stalled")
    await asyncio.gather(*tasks)
    assert next_one.status == 200


@virtual
async def test_what_is_too_large_is_said_whatever_the_application_makes_of_it() -> None:
    """A framework takes a body that breaks off for a bad one: its word does not count."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            while (await receive()).get("more_body"):
                pass
        except Exception:
            await send({"type": "http.response.start", "status": 400, "headers": []})

    caller = Caller(2 * MB, declared=False)
    await BodyLimit(app, MB)(caller.scope, caller.receive, caller.send)
    found: dict[str, Any] = json.loads(caller.body)
    assert (caller.status, found["code"]) == (413, "body_too_large")
