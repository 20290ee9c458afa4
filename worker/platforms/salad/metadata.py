"""The instance metadata service: plain HTTP on a link-local address, which answers this container alone.

It wants the header ``Metadata: true`` and answers 403 to whatever a proxy has touched (``X-Forwarded-*``), so that
the environment's proxies are not used. It may be away: on the machine of a developer it always is.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import httpx
import pydantic_core
import structlog

from worker import http
from worker.errors import DependencyFailed
from worker.retry import Policy, retrying

log = structlog.get_logger()

HEADERS = {"metadata": "true"}
PATIENCE = timedelta(seconds=2)
"""For one exchange: the service is on the machine itself."""

LARGEST = 65_536
REST_FIRST_S, REST_MOST_S = 2.0, 60.0
"""How long a service that failed is left alone; doubled each time."""

ONCE = Policy(attempts=1)
_ALL = ""


class MetadataFailed(DependencyFailed):
    """The service did not do as it was asked; ``status`` of its answer, None where there was none."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status

    @property
    def is_away(self) -> bool:
        """Whether the service as a whole fails, as opposed to this request."""
        return self.status is None or self.status >= 500


@dataclass(frozen=True, slots=True)
class _Rest:
    """From a failure until a time of the loop."""

    until: float
    seconds: float


class Metadata:
    """The service at one address. What fails is told once, and when it is over.

    After a failure it is left alone for a while, so that nobody waits for a service that is away again and again:
    as a whole when it does not answer or fails, else just for what was refused.
    """

    def __init__(self, url: str, *, rng: random.Random, transport: httpx.AsyncBaseTransport | None = None) -> None:
        self._url = url.rstrip("/")
        self._rng = rng
        self._http = http.client(timeout=PATIENCE, loopback=True, headers=HEADERS, connections=4, transport=transport)
        self._rests: dict[str, _Rest] = {}
        self.answered: bool | None = None
        """Whether it did when it was last asked; None before."""

    async def ask(
        self,
        method: str,
        path: str,
        document: dict[str, Any] | None = None,
        *,
        tries: Policy = ONCE,
        budget: timedelta = PATIENCE,
        urgent: bool = False,
    ) -> Any:
        """What it answers, None where that is nothing. Raises `MetadataFailed`, at once while it is left alone.

        What is ``urgent`` is asked all the same. Only a service that is away is tried again.
        """
        if not urgent and self._is_left_alone(path):
            raise MetadataFailed(f"{http.shown(self._url + path)}: is left alone after a failure")
        try:
            answer = await retrying(
                lambda: self._asked(method, path, document),
                tries,
                budget=budget,
                rng=self._rng,
                retry_on=lambda error: isinstance(error, MetadataFailed) and error.is_away,
                out_of_time=MetadataFailed,
            )
        except MetadataFailed as error:
            self._failed(path, error)
            raise
        self._succeeded(path)
        return answer

    async def aclose(self) -> None:
        await self._http.aclose()

    async def _asked(self, method: str, path: str, document: dict[str, Any] | None) -> Any:
        url = self._url + path
        try:
            with http.translating(MetadataFailed, url=url):
                async with (
                    asyncio.timeout(PATIENCE.total_seconds()),
                    self._http.stream(method, url, json=document) as response,
                ):
                    body = await http.read(response, limit=LARGEST, too_large=MetadataFailed)
        except TimeoutError:
            raise MetadataFailed(f"{http.shown(url)}: no answer in time") from None
        if not response.is_success:
            raise MetadataFailed(f"{http.shown(url)}: answered {response.status_code}", response.status_code)
        if not body.strip():
            return None
        try:
            return pydantic_core.from_json(body)
        except ValueError:
            raise MetadataFailed(f"{http.shown(url)}: answered with what is no JSON", response.status_code) from None

    def _is_left_alone(self, path: str) -> bool:
        now = asyncio.get_running_loop().time()
        return any(key in self._rests and now < self._rests[key].until for key in (_ALL, path))

    def _failed(self, path: str, error: MetadataFailed) -> None:
        self.answered = not error.is_away
        key = _ALL if error.is_away else path
        if (before := self._rests.get(key)) is None:
            log.warning("metadata_unavailable", error=error.message)
        seconds = REST_FIRST_S if before is None else min(before.seconds * 2, REST_MOST_S)
        self._rests[key] = _Rest(asyncio.get_running_loop().time() + seconds, seconds)

    def _succeeded(self, path: str) -> None:
        self.answered = True
        ended = [self._rests.pop(key, None) for key in (_ALL, path)]
        if any(ended):
            log.info("metadata_available")
