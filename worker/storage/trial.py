"""How fast the bucket takes what this node sends, by writing some megabytes to it and deleting them again.

It sends several objects at a time over the connections of the S3 driver's kind, as images go. The store is asked for
something small first: one that does not answer is away, which says nothing of the node; one that answers, and then
takes the bytes slowly, is at the end of a slow line.
"""

from __future__ import annotations

import asyncio
import io
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import structlog

from worker import aws
from worker.aws import Refusal, Service
from worker.clock import CorrectedClock
from worker.errors import AuthFailed, ConfigError, FieldError, UploadFailed, WorkerError
from worker.settings.storage import StorageSettings
from worker.storage.keys import joined
from worker.tasks import cancel_all, gather_bare

if TYPE_CHECKING:
    from types_boto3_s3.client import S3Client

log = structlog.get_logger(__name__)

SIZE = 16_000_000
"""Bytes that are sent in all, where the line brings them out in time."""

WINDOW_S = 8.0
END_S = 5.0
"""For what was cut off to end, so that nothing of it comes after it was deleted."""

CLEAR_S = 15.0

STALL, ANSWER = timedelta(seconds=5), timedelta(seconds=15)
"""For which a connection may take no byte, and an answer to what was taken may take to come."""

_TEXT = b"written by sd-worker to measure the line; may be deleted\n"


@dataclass(frozen=True, slots=True)
class Sent:
    """So many bytes in so many seconds, of which ``late`` in the second half of the time that there was."""

    bytes: int
    late: int
    seconds: float
    whole: bool

    @property
    def rate(self) -> float:
        """Bytes a second; too favourable, if anything, since what waits in this machine's buffers counts as sent.

        Raises `UploadFailed` for a store that took nothing any more.
        """
        if not self.whole and self.late == 0:
            raise UploadFailed(f"the store stopped taking bytes after {self.bytes}")
        return self.bytes / max(self.seconds, 1e-6)


class _Body(io.BytesIO):
    """An object's bytes, counted as they go out; after ``stop`` none do any more.

    Going back, as who signs them does who has read them all, begins the count anew.
    """

    def __init__(self, data: bytes, stop: threading.Event, now: Callable[[], float]) -> None:
        super().__init__(data)
        self._stop = stop
        self._now = now
        self.began: float | None = None

    def read(self, size: int | None = -1) -> bytes:
        if self._stop.is_set():
            raise OSError("the time is up")
        if self.began is None:
            self.began = self._now()
        return super().read(size)

    def seek(self, offset: int, whence: int = 0) -> int:
        self.began = None
        return super().seek(offset, whence)


class UploadTrial:
    """Over its own connections to the operator's bucket; close it with ``aclose``. ``name`` tells nodes apart.

    Raises `UploadFailed` for a store that fails or does not answer, `AuthFailed` for one that refuses us.
    """

    def __init__(
        self,
        settings: StorageSettings,
        *,
        clock: CorrectedClock,
        name: str,
        size: int = SIZE,
        window_s: float = WINDOW_S,
        stall: timedelta = STALL,
    ) -> None:
        if settings.bucket is None:
            raise ConfigError((FieldError("WORKER_S3_BUCKET", "is needed to measure uploads"),))
        self._bucket = settings.bucket
        self._window_s = window_s
        count = settings.upload_concurrency
        self._data = os.urandom(max(1, size // count))
        self._keys = [joined(settings.prefix, "sd-worker-fitness", f"{name}-{i}.bin") for i in range(count)]
        self._service: Service[S3Client] = Service(
            lambda: aws.s3_client(
                endpoint_url=settings.endpoint_url,
                region=settings.region,
                connections=count,
                connect_timeout=stall,
                read_timeout=ANSWER,
            ),
            clock=clock,
            threads=count,
            unavailable=UploadFailed,
            name="s3-trial",
        )

    async def measure(self) -> Sent:
        """Send the bytes, or as many as go out in time; nothing of them stays."""
        await self._put(self._keys[0], _TEXT)
        try:
            return await self._sent()
        finally:
            await self._clear()

    async def aclose(self) -> None:
        await self._service.aclose()

    async def _sent(self) -> Sent:
        loop, stop = asyncio.get_running_loop(), threading.Event()
        bodies = [_Body(self._data, stop, loop.time) for _ in self._keys]
        failures: list[WorkerError] = []
        puts = [self._try(*one, stop, failures) for one in zip(self._keys, bodies, strict=True)]
        sending = asyncio.create_task(gather_bare(puts, name="upload-trial"), name="upload-trial")
        try:
            await asyncio.wait({sending}, timeout=self._window_s / 2)
            half = _gone(bodies)
            if not sending.done():
                await asyncio.wait({sending}, timeout=self._window_s / 2)
            gone, ended, is_whole = _gone(bodies), loop.time(), sending.done()
            if failures:
                raise failures[0]
        finally:
            stop.set()
            await asyncio.wait({sending}, timeout=END_S)
            await cancel_all({sending})
        began = min((body.began for body in bodies if body.began is not None), default=ended)
        return Sent(gone, gone - half, ended - began, is_whole)

    async def _try(self, key: str, body: _Body, stop: threading.Event, failures: list[WorkerError]) -> None:
        """Send one object; a failure ends the others too, which are waited for."""
        try:
            await self._put(key, body)
        except WorkerError as error:
            failures.append(error)
            stop.set()

    async def _put(self, key: str, body: Any) -> None:
        answer = await self._service.ask(lambda s3: s3.put_object(Bucket=self._bucket, Key=key, Body=body)["ETag"])
        if isinstance(answer, Refusal):
            if answer.of_credentials or answer.status == 403:
                raise AuthFailed(f"bucket {self._bucket}: {answer}")
            raise UploadFailed(f"bucket {self._bucket}: {answer}")

    async def _clear(self) -> None:
        """Delete what was sent; a store that lets nobody delete keeps a line of text in its place."""
        left: dict[str, str] = dict.fromkeys(self._keys, "took too long")
        with suppress(TimeoutError):
            async with asyncio.timeout(CLEAR_S):
                await gather_bare([self._cleared(key, left) for key in self._keys], name="upload-trial-clear")
        if left:
            log.warning("fitness_trial_left", bucket=self._bucket, keys=left)

    async def _cleared(self, key: str, left: dict[str, str]) -> None:
        """Take the key out of those that are left, or say there why not."""

        def delete(s3: S3Client) -> None:
            s3.delete_object(Bucket=self._bucket, Key=key)

        try:
            if isinstance(await self._service.ask(delete), Refusal):
                await self._put(key, _TEXT)
        except WorkerError as error:
            left[key] = f"{error.code}: {error.message}"
        else:
            del left[key]


def _gone(bodies: list[_Body]) -> int:
    return sum(body.tell() for body in bodies)
