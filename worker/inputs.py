"""Fetches what a job names beside its models: the document behind ``job_url``, and input images; and says beforehand
whether what it makes may be sent to where it names.

Contract: what the job named wrongly is `InvalidJob` with the field, what could not be had now is a
`DownloadFailed` of the job's, an address it may not visit is `UrlForbidden`. Nothing is held in memory beyond
the limits.
"""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from datetime import timedelta
from io import BytesIO
from typing import TYPE_CHECKING, Protocol

import httpx

from worker import http
from worker.clock import Clock
from worker.errors import DownloadFailed, InvalidJob, Owner, WorkerError
from worker.images import BROKEN
from worker.job import Job
from worker.retry import Policy, retrying
from worker.tasks import cancel_all
from worker.urls import HTTP, HTTP_OR_S3, Guard, named

if TYPE_CHECKING:
    from PIL.ImageFile import ImageFile

MAX_PIXELS = 8192 * 8192
POLICY = Policy(attempts=4, first=timedelta(seconds=0.5), most=timedelta(seconds=5))
DOCUMENT = "job_url"

FetchS3 = Callable[[str, int], Awaitable[bytes]]
"""The object of an ``s3://bucket/key`` URL, of at most so many bytes. Raises `DownloadFailed`, or `InvalidJob` for
the field ``job_url`` when there is no such object, it may not be read, or it is larger."""

_IN_THREAD = 1_000_000
_AT_ONCE = 4
_LATER = frozenset({408, 425, 429})
_DATA_URI = re.compile(r"data:[^,]{0,255};base64,", re.IGNORECASE)
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]{1,31}:", re.IGNORECASE)


class Ref(Protocol):
    """An input that the job names: ``value`` is a URL, a data URI or base64, ``field`` where it stands."""

    @property
    def field(self) -> str: ...
    @property
    def value(self) -> str: ...


class Inputs:
    """Fetches for jobs. ``budget`` holds for all tries of one thing; ``max_bytes`` for all inputs of a job."""

    def __init__(
        self,
        guard: Guard,
        *,
        clock: Clock,
        rng: random.Random,
        max_bytes: int = 100_000_000,
        max_pixels: int = MAX_PIXELS,
        timeout: timedelta = timedelta(seconds=30),
        budget: timedelta = timedelta(minutes=2),
        fetch_s3: FetchS3 | None = None,
        policy: Policy = POLICY,
    ) -> None:
        self._guard = guard
        self._clock = clock
        self._rng = rng
        self._max_bytes = max_bytes
        self._max_pixels = max_pixels
        self._budget = budget
        self._fetch_s3 = fetch_s3
        self._policy = policy
        self._client = guard.client(timeout=timeout)

    async def document(self, url: str) -> bytes:
        """The body that a ``job_url`` points at; errors name the field ``job_url``."""
        with named(DOCUMENT):
            scheme = self._guard.parsed(url, schemes=HTTP_OR_S3).scheme
        if scheme in HTTP:
            return await self._fetched(url, DOCUMENT)
        if self._fetch_s3 is None:
            raise InvalidJob("this worker reads no s3:// documents", field=DOCUMENT)
        read = self._fetch_s3
        return await self._retried(lambda: read(url, self._max_bytes), url)

    async def allows(self, job: Job) -> None:
        """Refuse a job that names places which nothing may be sent to, before anything is made for it.

        Raises `UrlForbidden` with the field. A host that cannot be resolved now may be there when the job is done;
        before each connection the guard stands all the same.
        """
        for field, url in targets_of(job):
            with named(field), suppress(DownloadFailed):
                await self._guard.check(url)

    async def images(self, refs: Sequence[Ref]) -> dict[str, bytes]:
        """The bytes of each input image by its field, each a picture of a format that the servers read.

        The same value in two fields is fetched once. Headers are checked, pixels are not decoded.
        """
        values = {ref.value: ref.field for ref in reversed(refs)}
        gate = asyncio.Semaphore(_AT_ONCE)

        async def one(field: str, value: str) -> bytes:
            async with gate:
                return await self._image(field, value)

        tasks = {
            value: asyncio.create_task(one(field, value), name=f"input-{field}") for value, field in values.items()
        }
        try:
            await self._within_limit(tasks, values)
        finally:
            await cancel_all(set(tasks.values()))
        return {ref.field: tasks[ref.value].result() for ref in refs}

    async def aclose(self) -> None:
        await self._client.aclose()

    async def _within_limit(self, tasks: dict[str, asyncio.Task[bytes]], fields: dict[str, str]) -> None:
        """Wait for every task; the first error, or too many bytes in all, ends it."""
        total, fields_left = 0, {task: fields[value] for value, task in tasks.items()}
        while fields_left:
            done, _ = await asyncio.wait(fields_left, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                field = fields_left.pop(task)
                total += len(task.result())
                if total > self._max_bytes:
                    raise InvalidJob(f"the inputs have more than {self._max_bytes} bytes together", field=field)

    async def _image(self, field: str, value: str) -> bytes:
        if value[:8].lower().startswith(("http://", "https://")):
            data = await self._fetched(value, field)
        elif len(value) > _IN_THREAD:
            data = await asyncio.to_thread(self._decoded, field, value)
        else:
            data = self._decoded(field, value)
        await asyncio.to_thread(check_image, data, field=field, max_pixels=self._max_pixels)
        return data

    def _decoded(self, field: str, value: str) -> bytes:
        if len(value) // 4 * 3 > self._max_bytes + 1024:
            raise InvalidJob(f"has more than {self._max_bytes} bytes", field=field)
        return decode_base64(value, field=field)

    async def _fetched(self, url: str, field: str) -> bytes:
        with named(field):
            self._guard.parsed(url)
            return await self._retried(lambda: self._get(url, field), url)

    async def _retried(self, fetch: Callable[[], Awaitable[bytes]], url: str) -> bytes:
        return await retrying(
            fetch,
            self._policy,
            budget=self._budget,
            rng=self._rng,
            out_of_time=lambda why: _unavailable(f"{http.shown(url)}: {why}"),
        )

    async def _get(self, url: str, field: str) -> bytes:
        """One try. Redirects are followed: the guard stands before every connection."""
        headers = {"accept-encoding": "identity"}
        with http.translating(_unavailable, url=url):
            async with self._client.stream("GET", url, headers=headers, follow_redirects=True) as response:
                if not response.is_success:
                    raise self._refusal(response, url, field)
                return await http.read(
                    response, limit=self._max_bytes, too_large=lambda why: InvalidJob(why, field=field)
                )

    def _refusal(self, response: httpx.Response, url: str, field: str) -> WorkerError:
        said = f"{http.shown(url)}: answered {response.status_code}"
        if response.status_code >= 500 or response.status_code in _LATER:
            return _unavailable(said, http.retry_after(response, self._clock.now()))
        return InvalidJob(said, field=field)


def targets_of(job: Job) -> Iterator[tuple[str, str]]:
    """Where a job says that its results go: the field and the URL of each place."""
    output = job.output
    for index, url in enumerate(output.upload_urls):
        yield f"output.upload_urls.{index}", url
    if output.result_urls is not None:
        yield "output.result_urls.put", output.result_urls.put
        yield "output.result_urls.get", output.result_urls.get


def _unavailable(why: str, retry_after: timedelta | None = None) -> DownloadFailed:
    return DownloadFailed(why, owner=Owner.JOB, retry_after=retry_after)


def decode_base64(value: str, *, field: str) -> bytes:
    """The bytes of base64 or a base64 data URI, line breaks allowed; `InvalidJob` for anything else."""
    import pybase64

    head = _DATA_URI.match(value)
    if head is None and _SCHEME.match(value):
        raise InvalidJob("is neither an http or https URL nor base64", field=field)
    text = value[head.end() :] if head else value
    try:
        data = pybase64.b64decode_as_bytearray(_without_breaks(text), validate=True)
    except ValueError:
        raise InvalidJob("is not valid base64", field=field) from None
    if not data:
        raise InvalidJob("is empty", field=field)
    return bytes(data)


def _without_breaks(text: str) -> str:
    return "".join(text.split()) if any(space in text for space in "\r\n\t ") else text


def check_image(data: bytes, *, field: str, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Width and height by the image's header alone; `InvalidJob` for no image, or for too many pixels."""
    from PIL import Image

    try:
        with _opened(data) as image:
            width, height = image.size
    except (*BROKEN, Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise InvalidJob("is no image in png, jpeg, webp, gif or bmp", field=field) from None
    if width * height > max_pixels:
        raise InvalidJob(f"has {width}x{height} pixels, more than {max_pixels}", field=field)
    return width, height


def _opened(data: bytes) -> ImageFile:
    """By the plugin that the magic bytes call for: `PIL.Image.open` would load them all, and judge by its own
    limit."""
    from PIL import BmpImagePlugin, GifImagePlugin, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

    file = BytesIO(data)
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return PngImagePlugin.PngImageFile(file)
    if data.startswith(b"\xff\xd8\xff"):
        return JpegImagePlugin.JpegImageFile(file)
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return WebPImagePlugin.WebPImageFile(file)
    if data.startswith((b"GIF87a", b"GIF89a")):
        return GifImagePlugin.GifImageFile(file)
    if data.startswith(b"BM"):
        return BmpImagePlugin.BmpImageFile(file)
    raise ValueError("unknown magic bytes")
