"""The wire to an image server, whatever its kind: one request, one fresh connection, one answer.

Connections are not kept: SD.Next closes idle ones after 5 s, and a request on such a one fails before any answer.
Bodies are asked for uncompressed, since base64 hardly shrinks and costs the server CPU.
"""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

import httpx
import pydantic_core

from worker import http
from worker.engines.answer import Answer
from worker.engines.base import NativeCall
from worker.errors import EngineCrashed, ResultTooLarge
from worker.settings.groups import EngineSettings

CONNECT = timedelta(seconds=5)
LIGHT = timedelta(seconds=10)
"""For what the servers answer in milliseconds, also while they generate."""

JSON = "application/json"
RELAYED_MOST = 256_000_000
"""Bytes of an answer that is passed on to a caller."""


class Client:
    """Requests to one server. Every method raises `EngineCrashed` when there is no whole answer."""

    def __init__(self, settings: EngineSettings) -> None:
        auth = None
        if settings.username is not None or settings.password is not None:
            password = settings.password.get_secret_value() if settings.password is not None else ""
            auth = (settings.username or "", password)
        headers = {"accept-encoding": "identity", "connection": "close"}
        if settings.api_key is not None:
            headers["x-api-key"] = settings.api_key.get_secret_value()
        self._candidates = _candidates(settings.address)
        self.url = self._candidates[0]
        self._http = http.client(loopback=http.is_loopback(self.url), headers=headers, auth=auth)

    async def locate(self) -> bool:
        """Whether the port is open; where ``[::1]`` refuses, ``127.0.0.1`` is tried, and kept when it answers."""
        for url in (self.url, *self._candidates):
            if await _accepts(url):
                self.url = url
                return True
        return False

    async def get(self, path: str, *, timeout: timedelta = LIGHT) -> Answer:
        return await self.send("GET", path, timeout=timeout)

    async def post(self, path: str, body: Any = None, *, timeout: timedelta | None = LIGHT) -> Answer:
        """A JSON body, or none. Without a timeout the answer may take for ever."""
        if body is None:
            return await self.send("POST", path, timeout=timeout)
        data = await asyncio.to_thread(pydantic_core.to_json, body)
        return await self.send("POST", path, data, JSON, timeout=timeout)

    async def send(
        self,
        method: str,
        path: str,
        data: bytes | None = None,
        media_type: str | None = None,
        *,
        timeout: timedelta | None = LIGHT,
    ) -> Answer:
        """Any request; ``data`` of the type given."""
        seconds = timeout.total_seconds() if timeout is not None else None
        with http.translating(EngineCrashed):
            response = await self._http.request(
                method,
                f"{self.url}{path}",
                content=data,
                headers={"content-type": media_type} if media_type is not None else None,
                timeout=httpx.Timeout(seconds, connect=CONNECT.total_seconds()),
            )
        return Answer(response.status_code, response.headers, response.content)

    async def relay(self, call: NativeCall, *, most: int = RELAYED_MOST) -> Answer:
        """A caller's request with our credentials. Raises `ResultTooLarge` for more than ``most`` bytes of answer."""
        try:
            async with asyncio.timeout(call.timeout.total_seconds()):
                return await self._relay(call, most)
        except TimeoutError:
            raise EngineCrashed(f"{call.path}: no answer in time") from None

    async def _relay(self, call: NativeCall, most: int) -> Answer:
        request = self._http.build_request(
            call.method,
            f"{self.url}{call.path}",
            params=dict(call.query) or None,
            content=call.body,
            headers={"content-type": call.media_type} if call.media_type is not None else None,
            timeout=httpx.Timeout(None, connect=CONNECT.total_seconds()),
        )
        with http.translating(EngineCrashed):
            response = await self._http.send(request, stream=True)
            try:
                body = await http.read(response, limit=most, too_large=_too_large)
            finally:
                await response.aclose()
        return Answer(response.status_code, response.headers, body)

    async def aclose(self) -> None:
        await self._http.aclose()


def _too_large(said: str) -> ResultTooLarge:
    return ResultTooLarge(f"the server's answer {said}")


def _candidates(url: str) -> tuple[str, ...]:
    if urlsplit(url).hostname == "::1":
        return url, url.replace("[::1]", "127.0.0.1", 1)
    return (url,)


async def _accepts(url: str) -> bool:
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        async with asyncio.timeout(CONNECT.total_seconds()):
            _, writer = await asyncio.open_connection(parts.hostname, port)
    except (OSError, TimeoutError):
        return False
    writer.close()
    return True
