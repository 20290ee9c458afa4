"""One scheduling server over HTTP: who we are, how long we wait, and what its refusals mean."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol
from urllib.parse import quote

import httpx
import pydantic_core

from worker import http
from worker.clock import Clock
from worker.errors import AuthFailed, QueueUnavailable


class TokenSource(Protocol):
    """Gives the token to send; another one than was ``refused``, where there is one."""

    def __call__(self, refused: str | None = None) -> Awaitable[str | None]: ...


LARGEST = 256_000_000
"""Bytes of one answer; a job document may hold images."""

CONNECTIONS = 32
ABSENT = frozenset({404, 405})
"""How a server says that it knows no such endpoint."""

_PASSING = frozenset({408, 425, 429})
_WORD = re.compile(r"[a-z][a-z0-9_]{0,63}")


class QueueRefused(AuthFailed, QueueUnavailable):
    """The scheduling server refuses our token: the queue is paused until the operator has mended it."""

    code = AuthFailed.code


@dataclass(frozen=True, slots=True)
class Reply:
    """What the server answered; ``body`` is whole."""

    status: int
    body: bytes

    @property
    def is_success(self) -> bool:
        return 200 <= self.status < 300

    @property
    def is_conflict(self) -> bool:
        return self.status == 409

    @property
    def is_absent(self) -> bool:
        return self.status in ABSENT

    def document(self) -> Any:
        """The JSON that it holds, None where it holds nothing; `QueueUnavailable` where it is something else."""
        if not self.body.strip():
            return None
        try:
            return pydantic_core.from_json(self.body, allow_inf_nan=False)
        except ValueError:
            raise QueueUnavailable("the scheduling server answered with what is no JSON") from None

    def problem(self) -> Mapping[str, Any]:
        """The problem document of a refusal; empty where there is none."""
        try:
            found = pydantic_core.from_json(self.body)
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}


class Client:
    """Speaks to the one configured host and follows no redirect, so that the token goes nowhere else.

    ``token`` is asked before each request, and anew when the server says that it is not valid. ``url`` is the server's
    root, or that of its ``/availability``.
    """

    def __init__(
        self, url: str, token: TokenSource, clock: Clock, transport: httpx.AsyncBaseTransport | None = None
    ) -> None:
        self.base = url.rstrip("/").removesuffix("/availability")
        self._token = token
        self._clock = clock
        self._http = http.client(loopback=http.is_loopback(url), connections=CONNECTIONS, transport=transport)

    async def call(self, method: str, path: str, body: bytes | None = None, *, patience: timedelta) -> Reply:
        """One request; gives back a 2xx, or a 4xx that is none of those below.

        Raises `QueueUnavailable` when there is no usable answer within ``patience``, for redirects, 408, 425, 429 and
        from 500 on, with what the server says of when to come again; `QueueRefused` for 401 and 403.
        """
        token = await self._token()
        response, reply = await self._once(method, path, body, token, patience)
        if reply.status == 401 and (fresh := await self._token(token)) not in (None, token):
            response, reply = await self._once(method, path, body, fresh, patience)
        said = f"{self.place(path)}: {_said(reply)}"
        if reply.status in (401, 403):
            raise QueueRefused(said)
        if reply.status in _PASSING or not (reply.is_success or 400 <= reply.status < 500):
            raise QueueUnavailable(said, retry_after=http.retry_after(response, self._clock.now()))
        return reply

    def place(self, path: str = "") -> str:
        """An address as messages show it."""
        return http.shown(self.base + path)

    async def _once(
        self, method: str, path: str, body: bytes | None, token: str | None, patience: timedelta
    ) -> tuple[httpx.Response, Reply]:
        seconds = patience.total_seconds()
        headers = {"content-type": "application/json"} if body is not None else {}
        if token is not None:
            headers["authorization"] = f"Bearer {token}"
        waits = httpx.Timeout(seconds, connect=min(seconds, http.CONNECT_MOST.total_seconds()))
        url = self.base + path
        try:
            with http.translating(QueueUnavailable, url=url):
                async with (
                    asyncio.timeout(seconds),
                    self._http.stream(method, url, content=body, headers=headers, timeout=waits) as response,
                ):
                    data = await http.read(response, limit=LARGEST, too_large=QueueUnavailable)
        except TimeoutError:
            raise QueueUnavailable(f"{self.place(path)}: no answer in time") from None
        return response, Reply(response.status_code, data)

    async def aclose(self) -> None:
        await self._http.aclose()


def job_path(job_id: str, verb: str = "") -> str:
    """Where a job is to be found."""
    return f"/jobs/{quote(job_id, safe='')}{verb}"


def _said(reply: Reply) -> str:
    """The status, and the code of the problem where the server names one."""
    code = reply.problem().get("code")
    named = isinstance(code, str) and _WORD.fullmatch(code)
    return f"answered {reply.status} ({code})" if named else f"answered {reply.status}"
