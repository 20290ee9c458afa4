"""Images, other files and the result document under URLs that the job brings, so that the node needs no credentials.

Without ``result_urls`` there is no commit mark. No redirect is followed; the client given connects to what the
URL guard lets pass only.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TypeVar

import httpx
import structlog

from worker import http
from worker.errors import InvalidJob, Owner, UploadFailed, UploadForbidden, WorkerError
from worker.job import Job, ResultUrls
from worker.result import Result
from worker.retry import Policy, retrying
from worker.storage.base import R, Storable
from worker.storage.keys import standing
from worker.urls import Guard, named

log = structlog.get_logger(__name__)
T = TypeVar("T")

RESULT_MAX = 64 * 1024 * 1024
_PIECE = 1024 * 1024
_SIGNED_HEADERS = ("x-amz-signedheaders", "x-goog-signedheaders")
_PASSING = (408, 409, 425, 429)
_RACED = (409, 412)


class PresignedStorage:
    """Raises `UploadForbidden` for a URL that refuses us, `UploadFailed` of the job's for one that fails."""

    name = "presigned"

    def __init__(
        self,
        client: httpx.AsyncClient,
        guard: Guard,
        *,
        rng: random.Random,
        policy: Policy = Policy(),  # noqa: B008 - frozen
        image_budget: timedelta = timedelta(minutes=5),
        document_budget: timedelta = timedelta(minutes=1),
    ) -> None:
        self._client = client
        self._guard = guard
        self._rng = rng
        self._policy = policy
        self._image_budget = image_budget
        self._document_budget = document_budget

    def accepts(self, job: Job, outputs: int) -> None:
        """Raises `InvalidJob` unless there is a URL for each image and file, `UrlForbidden` for one of a wrong form."""
        urls = job.output.upload_urls
        if len(urls) < outputs:
            raise InvalidJob(f"{outputs} outputs need as many URLs, {len(urls)} are given", field="output.upload_urls")
        if len(set(urls)) < len(urls):
            raise InvalidJob("a URL is given twice", field="output.upload_urls")
        for index, url in enumerate(urls):
            self._check(url, f"output.upload_urls.{index}")
        if job.output.result_urls is not None:
            self._check(job.output.result_urls.put, "output.result_urls.put")
            self._check(job.output.result_urls.get, "output.result_urls.get")

    def marks(self, job: Job) -> bool:
        return job.output.result_urls is not None

    async def find_mark(self, job: Job) -> Result | None:
        urls = job.output.result_urls
        if urls is None:
            return None
        return await self._retrying(partial(self._look_up, job, urls), self._document_budget)

    async def put_artifact(self, job: Job, artifact: Storable[R]) -> R:
        """The result's ``url`` is the object's address without its signature, which only allowed the upload."""
        self.accepts(job, artifact.index + 1)
        url, field = job.output.upload_urls[artifact.index], f"output.upload_urls.{artifact.index}"

        async def put() -> R:
            response = await self._send("PUT", url, field, artifact.data, artifact.media_type)
            _raise_unless_taken(response, field)
            return artifact.result(url=http.shown(url))

        return await self._retrying(put, self._image_budget)

    async def put_mark(self, job: Job, result: Result) -> Result:
        urls = job.output.result_urls
        if urls is None:
            return result
        return await self._retrying(partial(self._claim, job, result, urls), self._document_budget)

    async def put_failure(self, job: Job, result: Result, attempt: int) -> None:
        """Goes nowhere: the job's only URL for a document is that of its success."""

    async def check(self) -> str:
        return "presigned: each job brings its own URLs"

    async def aclose(self) -> None:
        """The client belongs to whoever gave it."""

    def _check(self, url: str, field: str) -> None:
        with named(field):
            self._guard.parsed(url)

    async def _look_up(self, job: Job, urls: ResultUrls) -> Result | None:
        field = "output.result_urls.get"
        response = await self._send("GET", urls.get, field)
        if response.status_code in (404, 410):
            return None
        _raise_unless_taken(response, field)
        return standing(job, response.content)

    async def _claim(self, job: Job, result: Result, urls: ResultUrls) -> Result:
        found = await self._look_up(job, urls)
        if found is not None:
            return found
        field, body = "output.result_urls.put", result.to_json(base64=False)
        condition = {"if-none-match": "*"} if _is_signed_for(urls.put, "if-none-match") else {}
        response = await self._send("PUT", urls.put, field, body, "application/json", condition)
        if response.status_code in _RACED:
            found = await self._look_up(job, urls)
            if found is None:
                raise _failed(f"{field}: answered {response.status_code}, yet no success stands there")
            return found
        _raise_unless_taken(response, field)
        return await self._look_up(job, urls) or result

    async def _send(
        self,
        method: str,
        url: str,
        field: str,
        body: bytes | None = None,
        media_type: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> httpx.Response:
        """The response with its body, which for a GET may be as long as a result document."""
        kind = {} if media_type is None else {"content-type": media_type}
        length = {} if body is None else {"content-length": str(len(body))}
        content = None if body is None else _pieces(body)
        with named(field):
            await self._guard.check(url)
        with http.translating(lambda message: _failed(f"{field}: {message}"), url=url):
            sent = {**kind, **length, **(headers or {})}
            async with self._client.stream(method, url, content=content, headers=sent) as response:
                answer = await http.read(response, limit=RESULT_MAX, too_large=lambda m: InvalidJob(m, field=field))
        return httpx.Response(response.status_code, headers=_plain(response), content=answer)

    async def _retrying(self, operation: Callable[[], Awaitable[T]], budget: timedelta) -> T:
        return await retrying(
            operation,
            self._policy,
            budget=budget,
            rng=self._rng,
            on_retry=_log_retry,
            out_of_time=_failed,
        )


async def _pieces(body: bytes) -> AsyncIterator[bytes]:
    """The body in pieces, since the client's timeout is of each piece: a long video on a slow line takes longer."""
    for at in range(0, len(body), _PIECE):
        yield body[at : at + _PIECE]


def _failed(message: str) -> UploadFailed:
    return UploadFailed(message, owner=Owner.JOB)


def _plain(response: httpx.Response) -> dict[str, str]:
    return {name: response.headers[name] for name in ("retry-after", "date") if name in response.headers}


def _raise_unless_taken(response: httpx.Response, field: str) -> None:
    status = response.status_code
    if 200 <= status < 300:
        return
    if status in (401, 403):
        raise UploadForbidden(f"{field}: answered {status}; is it expired, or signed for other headers or rights?")
    if status >= 500 or status in _PASSING:
        wait = http.retry_after(response, datetime.min.replace(tzinfo=UTC))
        raise UploadFailed(f"{field}: answered {status}", owner=Owner.JOB, retry_after=wait)
    raise InvalidJob(f"answered {status}", field=field)


def _is_signed_for(url: str, header: str) -> bool:
    """Whether the signature covers a header, which then has to be sent; S3 and GCS list them in the query."""
    query = {name.lower(): value for name, value in httpx.URL(url).params.items()}
    return any(header in query.get(name, "").lower().split(";") for name in _SIGNED_HEADERS)


def _log_retry(error: WorkerError, attempt: int, wait: timedelta) -> None:
    log.info("storage_retried", attempt=attempt, wait_s=round(wait.total_seconds(), 3), reason=error.message)
