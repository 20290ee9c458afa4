"""Asking the places that know models: bounded, retried, and left alone for as long as they ask for it.

Nothing here is fetched but what a place says of a file: documents of some megabytes, and headers.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Generic, TypeVar

import httpx
import pydantic_core

from worker import http
from worker.clock import Clock
from worker.errors import AuthFailed, DownloadFailed, ModelForbidden, ModelNotFound, Owner, WorkerError
from worker.retry import Policy, is_dependency, retrying
from worker.urls import Guard

T = TypeVar("T")

POLICY = Policy(attempts=3, first=timedelta(seconds=0.5), most=timedelta(seconds=5))
BUDGET = timedelta(seconds=30)
WAIT = timedelta(seconds=10)
REMEMBERED = timedelta(minutes=1)
ONE_BYTE = {"range": "bytes=0-0", "accept-encoding": "identity"}
"""Asks for a file's headers where HEAD is refused (Civitai answers 401 to it, presigned links allow only GET)."""

_DOCUMENT = 8_000_000
_COMPLAINT = 65_536
_MOST_REMEMBERED = 1000
_LATER = frozenset({408, 425, 429})
_EARLY_S = 0.001


@dataclass(frozen=True, slots=True)
class Answer:
    """What a place answered; ``body`` of a file that was only looked at is empty."""

    status: int
    headers: httpx.Headers
    url: str
    body: bytes = b""

    @property
    def target(self) -> str | None:
        """Where it redirects to, as an absolute URL."""
        there = self.headers.get("location")
        return str(httpx.URL(self.url).join(there)) if there and 300 <= self.status < 400 else None

    @property
    def is_page(self) -> bool:
        """Whether a page for people came where a file was asked for."""
        kind: str = self.headers.get("content-type", "").lower()
        return kind.startswith(("text/html", "application/xhtml"))

    @property
    def size(self) -> int | None:
        """Bytes of the whole file; rclone's S3 server sends a part of it with status 200."""
        _, _, total = self.headers.get("content-range", "").rpartition("/")
        if self.status in (206, 416) or total:
            return int(total) if total.isdecimal() else None
        length = self.headers.get("content-length", "")
        encoded = self.headers.get("content-encoding", "identity") != "identity"
        return int(length) if self.status == 200 and length.isdecimal() and not encoded else None

    @property
    def document(self) -> Mapping[str, Any] | None:
        """The JSON object in the body; None when there is none."""
        try:
            found = pydantic_core.from_json(self.body)
        except ValueError:
            return None
        return found if isinstance(found, dict) else None


class Web:
    """Asks over HTTP. What a job names is asked through the guard; ``budget`` holds for all tries of one question."""

    def __init__(
        self, *, guard: Guard, clock: Clock, rng: random.Random, policy: Policy = POLICY, budget: timedelta = BUDGET
    ) -> None:
        self._clock = clock
        self._rng = rng
        self._policy = policy
        self._budget = budget
        self._outside = http.client(timeout=WAIT)
        self._inside = http.client(timeout=WAIT, loopback=True)
        self._guarded = guard.client(timeout=WAIT)
        self._quiet: dict[str, float] = {}

    async def ask(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        owner: Owner = Owner.OPERATOR,
        guarded: bool = False,
        follow: bool = False,
        document: bool = False,
        retry_on: Callable[[Answer], WorkerError | None] = lambda _: None,
    ) -> Answer:
        """The answer, whatever its status but 408, 425, 429 and 5xx, which are tried again.

        The body is read of a ``document`` (up to 8 MB) and of what says no. ``retry_on`` gives the error for further
        answers that are tried again. Raises that, `DownloadFailed` of ``owner`` when no answer came, and
        `UrlForbidden` for a guarded address.
        """

        def failed(why: str, retry_after: timedelta | None = None) -> DownloadFailed:
            return DownloadFailed(why, owner=owner, retry_after=retry_after)

        async def once() -> Answer:
            self._mind(url, failed)
            with http.translating(failed, url=url):
                client = self._client(url, guarded)
                async with client.stream(method, url, headers=headers, follow_redirects=follow) as response:
                    self._judge(response, url, failed)
                    limit = _COMPLAINT if response.status_code >= 400 else _DOCUMENT if document else 0
                    body = await _beginning(response, limit)
            answer = Answer(response.status_code, response.headers, str(response.url), body)
            error = retry_on(answer)
            if error is not None:
                raise error
            return answer

        return await retrying(
            once,
            self._policy,
            budget=self._budget,
            rng=self._rng,
            retry_on=lambda error: is_dependency(error) or isinstance(error, ModelNotFound),
            out_of_time=lambda why: failed(f"{http.shown(url)}: {why}"),
        )

    async def aclose(self) -> None:
        for client in (self._outside, self._inside, self._guarded):
            await client.aclose()

    def _client(self, url: str, guarded: bool) -> httpx.AsyncClient:
        if guarded:
            return self._guarded
        return self._inside if http.is_loopback(url) else self._outside

    def _judge(
        self, response: httpx.Response, url: str, failed: Callable[[str, timedelta | None], DownloadFailed]
    ) -> None:
        if response.status_code < 500 and response.status_code not in _LATER:
            return
        asked = http.retry_after(response, self._clock.now())
        if asked is not None:
            now = asyncio.get_running_loop().time()
            self._quiet = {place: until for place, until in self._quiet.items() if until > now}
            self._quiet[http.origin(url)] = now + asked.total_seconds()
        raise failed(f"{http.shown(url)}: answered {response.status_code}", asked)

    def _mind(self, url: str, failed: Callable[[str, timedelta | None], DownloadFailed]) -> None:
        """Ask nothing of a place that wants to be left alone: Civitai counts by address, whichever job it was for."""
        left = self._quiet.get(http.origin(url), 0.0) - asyncio.get_running_loop().time()
        if left > _EARLY_S:
            raise failed(f"{http.origin(url)}: wants no requests for {left:.0f} s", timedelta(seconds=left))


async def _beginning(response: httpx.Response, limit: int) -> bytes:
    """As much of the body as may be read; the connection is closed on the rest."""
    body = bytearray()
    if limit:
        async for chunk in response.aiter_bytes():
            body += chunk
            if len(body) >= limit:
                break
    return bytes(body[:limit])


class Remembered(Generic[T]):
    """What was answered in the last minute, so that a job's models, resumed transfers and retries ask once."""

    def __init__(self, life: timedelta = REMEMBERED) -> None:
        self._life_s = life.total_seconds()
        self._known: dict[str, tuple[float, T]] = {}

    def get(self, key: str) -> T | None:
        until, value = self._known.get(key, (0.0, None))
        return value if until > asyncio.get_running_loop().time() else None

    def put(self, key: str, value: T) -> T:
        self._known.pop(key, None)
        self._known[key] = (asyncio.get_running_loop().time() + self._life_s, value)
        while len(self._known) > _MOST_REMEMBERED:
            del self._known[next(iter(self._known))]
        return value


class CredentialsRefused(AuthFailed):
    """A source refuses us altogether, and not only one of its files."""

    code = "auth_failed"


def forbidden(owner: Owner, why: str) -> WorkerError:
    """The error for a 401 or 403: the job's own fault for what the job named, else the operator's."""
    return ModelForbidden(why) if owner is Owner.JOB else AuthFailed(why, owner=owner)


def bearer(token: str | None) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"} if token else {}


def hex_digest(value: object) -> str | None:
    """A sha256 in lower-case hex; None for anything else."""
    text = value.strip().lower() if isinstance(value, str) else ""
    return text if len(text) == 64 and all(c in "0123456789abcdef" for c in text) else None
