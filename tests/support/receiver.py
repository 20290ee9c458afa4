"""HTTP servers on real sockets that answer by script: a plain one, and a receiver that verifies webhooks."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from standardwebhooks.webhooks import Webhook, WebhookVerificationError


@dataclass(frozen=True)
class Answer:
    """What to answer. ``hang``: nothing until the server closes; ``stall``: the head, then nothing; ``raw``: these
    bytes instead of a response; ``chunked``: no content-length."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    hang: bool = False
    stall: bool = False
    chunked: bool = False
    raw: bytes | None = None

    def head(self) -> bytes:
        length = {"transfer-encoding": "chunked"} if self.chunked else {"content-length": str(len(self.body))}
        lines = [f"{name}: {value}" for name, value in {**length, **self.headers}.items()]
        return "\r\n".join([f"HTTP/1.1 {self.status} Scripted", *lines, "", ""]).encode()

    def payload(self) -> bytes:
        if not self.chunked:
            return self.body
        size = 4096
        parts = [self.body[i : i + size] for i in range(0, len(self.body), size)]
        return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in [*parts, b""])


@dataclass(frozen=True)
class Request:
    method: str
    target: str
    headers: dict[str, str]
    body: bytes
    connection: int

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]


class ScriptedServer:
    """Listens on ``[::1]``; answers from ``script`` in turn, then from ``routes`` by path, then with ``otherwise``.

    ``port`` 0 takes any that is free, and is the one that was taken from then on.
    """

    def __init__(self, *script: Answer, tls: ssl.SSLContext | None = None, port: int = 0) -> None:
        self.script: deque[Answer] = deque(script)
        self.routes: dict[str, Answer] = {}
        self.otherwise = Answer()
        self.requests: list[Request] = []
        self.port = port
        self._tls = tls
        self._connections: set[asyncio.Task[Any]] = set()
        self._count = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "::1", self.port, ssl=self._tls)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        await self._server.wait_closed()

    def url(self, path: str = "/", host: str = "[::1]") -> str:
        return f"{'https' if self._tls else 'http'}://{host}:{self.port}{path}"

    def answer(self, request: Request) -> Answer:
        if self.script:
            return self.script.popleft()
        return self.routes.get(request.path, self.otherwise)

    async def reply(self, request: Request) -> Answer:
        """What is answered, however long that takes."""
        return self.answer(request)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        self._count += 1
        number = self._count
        try:
            while await self._exchange(reader, writer, number):
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        except asyncio.CancelledError:
            writer.transport.abort()
        finally:
            self._connections.discard(task)
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> bool:
        request = await _read(reader, number)
        self.requests.append(request)
        answer = await self.reply(request)
        if answer.hang:
            await asyncio.Event().wait()
        writer.write(answer.raw if answer.raw is not None else answer.head())
        await writer.drain()
        if answer.stall:
            await asyncio.Event().wait()
        if answer.raw is None and request.method != "HEAD":
            writer.write(answer.payload())
        await writer.drain()
        return answer.raw is None


async def _read(reader: asyncio.StreamReader, number: int) -> Request:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *lines = head.rstrip("\r\n").split("\r\n")
    method, target, _ = first.split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    return Request(method, target, headers, body, number)


class Receiver(ScriptedServer):
    """A webhook receiver. With a secret, what does not verify is answered 401 and kept in ``refused``."""

    def __init__(self, *script: Answer, secret: str | None = None, tls: ssl.SSLContext | None = None) -> None:
        super().__init__(*script, tls=tls)
        self._verifier = Webhook(secret) if secret else None
        self.refused: list[str] = []
        self.taken: list[Request] = []
        """What was answered 2xx."""

    def answer(self, request: Request) -> Answer:
        if self._verifier is not None and request.method == "POST":
            try:
                self._verifier.verify(request.body, request.headers)
            except WebhookVerificationError as error:
                self.refused.append(str(error))
                return Answer(401)
        answer = super().answer(request)
        if 200 <= answer.status < 300 and not answer.hang:
            self.taken.append(request)
        return answer

    @property
    def ids(self) -> list[str]:
        """``webhook-id`` of every try, in order."""
        return [request.headers["webhook-id"] for request in self.requests if request.method == "POST"]

    @property
    def documents(self) -> list[dict[str, Any]]:
        """The bodies of what was taken."""
        return [json.loads(request.body) for request in self.taken]
