"""Images, other files and result documents in S4, SaladCloud's temporary store.

It needs no secret: the node's identity token proves whose organization it works for. All files of an organization lie
together, whoever stored them, and each is deleted after 30 days. It has no conditional writes: the mark is looked up
right before it is written and read back after.
"""

from __future__ import annotations

import asyncio
import io
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from http import HTTPStatus
from typing import Any, Protocol, TypeVar
from urllib.parse import quote

import pydantic_core
import structlog

from worker import http
from worker.clock import CorrectedClock
from worker.errors import AuthFailed, ResultTooLarge, UploadFailed, WorkerError
from worker.job import Job
from worker.result import FileResult, ImageResult, Result
from worker.retry import Policy, retrying
from worker.storage.base import R, Storable
from worker.storage.keys import Keys, in_order, standing, told
from worker.tasks import gather_bare

log = structlog.get_logger(__name__)
T = TypeVar("T")
Named = TypeVar("Named", ImageResult, FileResult)
POLICY = Policy()

LARGEST = 100_000_000
"""Bytes of one file."""

SHORTEST_LINK, LONGEST_LINK = timedelta(seconds=60), timedelta(days=30)
PROBED = 10
_JSON = "application/json"
_TRIAL = b"written by sd-worker check\n"
_DOCUMENT_MOST = 64 * 1024 * 1024
_ANSWER_MOST = 64 * 1024
_SAID_MOST = 200


class TokenSource(Protocol):
    """Gives the token to send, or None; another one than was ``refused``, where there is one."""

    def __call__(self, refused: str | None = None) -> Awaitable[str | None]: ...


@dataclass(frozen=True, slots=True)
class Account:
    """The organization whose node this is, how it proves that, and where the store is."""

    organization: str
    token: TokenSource
    url: str


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to try: each wait for the network, an image, a document."""

    wait: timedelta = timedelta(seconds=60)
    image: timedelta = timedelta(minutes=5)
    document: timedelta = timedelta(minutes=1)
    policy: Policy = POLICY


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    body: bytes
    retry_after: timedelta | None


class S4Storage:
    """Raises `UploadFailed` for a store that fails or does not answer, and while the node has no token; `AuthFailed`
    for a 401 with a fresh token and for any 403, look-ups included; `ResultTooLarge` for more than `LARGEST` bytes.

    The ``ttl`` of links is brought within `SHORTEST_LINK` and `LONGEST_LINK`. ``concurrency`` bounds the requests that
    are under way.
    """

    name = "s4"

    def __init__(
        self,
        account: Account,
        keys: Keys,
        *,
        clock: CorrectedClock,
        rng: random.Random,
        ttl: timedelta = timedelta(hours=24),
        concurrency: int = 4,
        patience: Patience = Patience(),
    ) -> None:
        self._keys = keys
        self._rng = rng
        self._ttl = max(SHORTEST_LINK, min(ttl, LONGEST_LINK))
        self._patience = patience
        self._files = _Files(account, clock, concurrency, patience.wait)
        self._place = f"S4, organization {account.organization}"

    def accepts(self, job: Job, outputs: int) -> None:
        """Any job whose keys are not too long; how large its files are is known when they are made."""
        self._keys.mark(job)

    def marks(self, job: Job) -> bool:
        return True

    async def find_mark(self, job: Job) -> Result | None:
        """As `Storage.find_mark`, but that a 403 is told: here it never means that a file is absent."""
        return await self._retrying(partial(self._standing, job), self._patience.document)

    async def find_result(self, job_id: str) -> Result | None:
        """As `Archive.find_result`. Failures are found up to the `PROBED`th attempt, since listings have no prefix."""

        async def look_up() -> Result | None:
            body = await self._files.get(self._keys.mark_of(job_id))
            found = None if body is None else told(body)
            if found is None:
                return next(reversed(await self._failures(job_id)), None)
            return await self._relinked(found)

        return await self._retrying(look_up, self._patience.document)

    async def find_failures(self, job_id: str) -> tuple[Result, ...]:
        return await self._retrying(partial(self._failures, job_id), self._patience.document)

    async def put_artifact(self, job: Job, artifact: Storable[R]) -> R:
        key = self._keys.artifact(job, artifact)
        if len(artifact.data) > LARGEST:
            raise ResultTooLarge(
                f"{key}: has {len(artifact.data) / 10**6:.1f} MB, and S4 takes files of up to {LARGEST // 10**6} MB"
            )

        async def put() -> R:
            url = await self._files.put(key, artifact.data, artifact.media_type, self._ttl)
            return artifact.result(url=url, key=key)

        return await self._retrying(put, self._patience.image)

    async def put_mark(self, job: Job, result: Result) -> Result:
        return await self._retrying(partial(self._claim, job, result), self._patience.document)

    async def put_failure(self, job: Job, result: Result, attempt: int) -> None:
        key, body = self._keys.failure(job, attempt), result.to_json(base64=False)

        async def put() -> None:
            await self._files.put(key, body, _JSON)

        await self._retrying(put, self._patience.document)

    async def check(self) -> str:
        """Write, read back and sign; a small text stays until it is deleted with everything of its age."""
        key = self._keys.trial()
        await self._files.put(key, _TRIAL, "text/plain")
        if await self._files.get(key) != _TRIAL:
            raise UploadFailed(f"{self._place}: {key} does not hold what was written to it")
        if await self._files.link(key, self._ttl) is None:
            raise UploadFailed(f"{self._place}: {key} was written, and cannot be linked to")
        return f"{self._place}: written, read back and linked to; files are deleted after 30 days"

    async def aclose(self) -> None:
        await self._files.aclose()

    async def _standing(self, job: Job) -> Result | None:
        body = await self._files.get(self._keys.mark(job))
        found = None if body is None else standing(job, body)
        return None if found is None else await self._relinked(found)

    async def _claim(self, job: Job, result: Result) -> Result:
        """One try at making this result the mark; whatever success stands in the end is given back."""
        found = await self._standing(job)
        if found is not None:
            return found
        key, body = self._keys.mark(job), result.to_json(base64=False)
        await self._files.put(key, body, _JSON)
        if await self._files.get(key) == body:
            return result
        return await self._standing(job) or result

    async def _failures(self, job_id: str) -> tuple[Result, ...]:
        tries = [self._files.get(self._keys.failure_of(job_id, number)) for number in range(1, PROBED + 1)]
        return in_order(await gather_bare(tries, name="s4-failure"))

    async def _relinked(self, result: Result) -> Result:
        images = await gather_bare([self._linked(one) for one in result.images], name="s4-link")
        files = await gather_bare([self._linked(one) for one in result.files], name="s4-link")
        return result.model_copy(update={"images": tuple(images), "files": tuple(files)})

    async def _linked(self, output: Named) -> Named:
        """With a new link; without any where the file is not there any more."""
        if output.key is None:
            return output
        return output.model_copy(update={"url": await self._files.link(output.key, self._ttl)})

    async def _retrying(self, operation: Callable[[], Awaitable[T]], budget: timedelta) -> T:
        return await retrying(
            operation,
            self._patience.policy,
            budget=budget,
            rng=self._rng,
            retry_on=lambda error: isinstance(error, UploadFailed),
            on_retry=_log_retry,
            out_of_time=lambda message: UploadFailed(f"{self._place}: {message}"),
        )


class _Files:
    """The files of the organization by their keys, one request a call: two where the token was refused."""

    def __init__(self, account: Account, clock: CorrectedClock, concurrency: int, wait: timedelta) -> None:
        self._account = account
        self._clock = clock
        self._turns = asyncio.Semaphore(concurrency)
        loopback = http.is_loopback(account.url)
        self._client = http.client(timeout=wait, loopback=loopback, connections=concurrency)

    async def get(self, key: str) -> bytes | None:
        """What stands under the key; None where nothing does."""
        answer = await self._ask("GET", "files", key, limit=_DOCUMENT_MOST)
        return None if answer.status == HTTPStatus.NOT_FOUND else self._taken(answer, key).body

    async def put(self, key: str, data: bytes, media_type: str, ttl: timedelta | None = None) -> str:
        """Store it, whatever stands there; its address, which with ``ttl`` works for so long without a token."""
        signed = {} if ttl is None else {"sign": "true", "signatureExp": str(_seconds(ttl))}

        def form() -> dict[str, Any]:
            file = (key.rpartition("/")[2], io.BytesIO(data), media_type)
            return {"data": {"mimeType": media_type, **signed}, "files": {"file": file}}

        return self._address(await self._ask("PUT", "files", key, form), key)

    async def link(self, key: str, ttl: timedelta) -> str | None:
        """An address that works for so long without a token; None where nothing stands under the key."""
        document = {"json": {"method": "GET", "exp": _seconds(ttl)}}
        answer = await self._ask("POST", "file_tokens", key, lambda: document)
        return None if answer.status == HTTPStatus.NOT_FOUND else self._address(answer, key)

    async def aclose(self) -> None:
        await self._client.aclose()

    async def _ask(
        self,
        method: str,
        collection: str,
        key: str,
        content: Callable[[], dict[str, Any]] = dict,
        limit: int = _ANSWER_MOST,
    ) -> _Answer:
        """The answer, whatever it is; a refused token is asked for anew once."""
        url = f"{self._account.url.rstrip('/')}/organizations/{quote(self._account.organization, safe='')}"
        url = f"{url}/{collection}/{quote(key)}"
        async with self._turns:
            token = await self._account.token()
            if token is None:
                raise UploadFailed(f"{http.shown(url)}: the platform gives this node no identity token now")
            answer = await self._once(method, url, token, content(), limit)
            if answer.status == HTTPStatus.UNAUTHORIZED:
                fresh = await self._account.token(token)
                if fresh not in (None, token):
                    answer = await self._once(method, url, fresh, content(), limit)
        return answer

    async def _once(self, method: str, url: str, token: str, content: dict[str, Any], limit: int) -> _Answer:
        headers = {"authorization": f"Bearer {token}"}
        with http.translating(UploadFailed, url=url):
            async with self._client.stream(method, url, headers=headers, **content) as response:
                http.observe_date(response, self._clock)
                body = await http.read(response, limit=limit, too_large=UploadFailed)
                return _Answer(response.status_code, body, http.retry_after(response, self._clock.now()))

    def _address(self, answer: _Answer, key: str) -> str:
        document = _document(self._taken(answer, key).body)
        url = document.get("url")
        if not isinstance(url, str) or http.parsed(url) is None:
            raise UploadFailed(f"{self._said(answer, key)} without an address")
        return url

    def _taken(self, answer: _Answer, key: str) -> _Answer:
        """The answer, where it is a success."""
        match answer.status:
            case HTTPStatus.UNAUTHORIZED | HTTPStatus.FORBIDDEN:
                raise AuthFailed(self._said(answer, key))
            case HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
                raise ResultTooLarge(f"{self._said(answer, key)}: files may have up to {LARGEST // 10**6} MB")
            case status if not 200 <= status < 300:
                raise UploadFailed(self._said(answer, key), retry_after=answer.retry_after)
        return answer

    def _said(self, answer: _Answer, key: str) -> str:
        """In our words and, where it gives a reason, the store's own."""
        reason = _document(answer.body).get("error") if answer.status >= 400 else None
        detail = f" ({' '.join(reason.split())[:_SAID_MOST]})" if isinstance(reason, str) else ""
        return f"S4, organization {self._account.organization}, {key}: answered {answer.status}{detail}"


def _document(body: bytes) -> dict[str, Any]:
    try:
        document = pydantic_core.from_json(body)
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}


def _seconds(ttl: timedelta) -> int:
    return int(ttl.total_seconds())


def _log_retry(error: WorkerError, attempt: int, wait: timedelta) -> None:
    log.info("storage_retried", attempt=attempt, wait_s=round(wait.total_seconds(), 3), reason=error.message)
