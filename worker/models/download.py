"""Brings model files to this machine: the best source first, resumed, verified, never trusted."""

from __future__ import annotations

import functools
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import structlog

from worker import http
from worker.clock import Clock
from worker.errors import (
    AuthFailed,
    DownloadFailed,
    ModelCorrupt,
    ModelForbidden,
    ModelNotFound,
    UrlForbidden,
    WorkerError,
)
from worker.models.auth import Auth, S3Auth
from worker.models.bandwidth import Bandwidth
from worker.models.base import Fetched, Locate, Location, OnBytes, Priority, Room, Tempo, Wanted
from worker.models.header import check_model_file
from worker.models.identity import canonical
from worker.models.partial import Partial, Record, writing
from worker.models.pieces import Errand, Sizes, Terms
from worker.models.s3source import S3Links, lent_link
from worker.models.source import Means, Source
from worker.models.threads import in_thread
from worker.models.transfer import Transfer
from worker.settings.models import ModelsSettings
from worker.urls import Guard

log = structlog.get_logger()

THREADS = 32
TEMPO = Tempo()
SIZES = Sizes()
TRIES_OF_CORRUPT = 2
"""How often the same source is asked for bytes that turned out wrong."""

_TELLING: tuple[type[WorkerError], ...] = (
    AuthFailed,
    ModelCorrupt,
    DownloadFailed,
    UrlForbidden,
    ModelForbidden,
    ModelNotFound,
)
"""What a location's failure may be, the most telling first: what may yet succeed comes before what never will."""

_DENIED = (AuthFailed, ModelForbidden, ModelNotFound)
"""By which a link says that its time is over."""


class Downloads:
    """The `Fetcher`; close it with ``aclose`` after its transfers have ended.

    Tokens of sources come with their locations; ``s3`` makes links of ``s3://`` ones.
    """

    def __init__(
        self,
        settings: ModelsSettings,
        guard: Guard,
        *,
        clock: Clock,
        rng: random.Random,
        s3: S3Links | None = None,
        tempo: Tempo = TEMPO,
        sizes: Sizes = SIZES,
        checkpoint: timedelta = timedelta(seconds=2),
    ) -> None:
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="models")
        self._bandwidth = Bandwidth(settings.bandwidth)
        self._means = Means(guard, self._threads, tempo.stall, http.tls)
        self._s3 = s3
        self._terms = Terms(self._bandwidth, self._threads, rng, clock, tempo, settings.connections, sizes, checkpoint)

    async def fetch(
        self,
        locate: Locate,
        partial: Path,
        wanted: Wanted,
        *,
        room: Room,
        on_bytes: OnBytes,
        priority: Callable[[], Priority] = lambda: Priority.JOB,
    ) -> Fetched:
        """As `Fetcher.fetch` has it."""
        file = Partial(partial)

        async def visit(location: Location) -> Fetched:
            errand = _errand(wanted, location, room, on_bytes, priority)
            return await self._verified(file, errand, location)

        try:
            await in_thread(self._threads, file.open)
            return await _from_any(locate, visit, lambda: file.spans.total)
        finally:
            await in_thread(self._threads, file.leave)

    def pause(self, paused: bool) -> None:
        self._bandwidth.pause(paused)

    async def aclose(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        if self._s3 is not None:
            await self._s3.aclose()

    async def _verified(self, file: Partial, errand: Errand, location: Location) -> Fetched:
        """The whole file from this location, once more from its start when it turns out wrong."""
        for left in range(TRIES_OF_CORRUPT - 1, -1, -1):
            transfer = Transfer(self._source(location), file, errand, self._terms)
            try:
                sha256 = await transfer.run()
            except _DENIED as failure:
                if location.expires and transfer.received:
                    raise _Expired(failure) from None
                raise
            try:
                await in_thread(self._threads, functools.partial(_verify, file, errand, location, sha256))
            except ModelCorrupt as failure:
                await in_thread(self._threads, functools.partial(file.begin, Record()))
                if not left:
                    raise
                log.warning("model_corrupt", source=location.source, error=failure.message)
            else:
                break
        size = file.size or 0
        await in_thread(self._threads, functools.partial(file.finish, size))
        return Fetched(file.path, size, sha256, location)

    def _source(self, location: Location) -> Source:
        auth = location.auth
        if isinstance(auth, S3Auth):
            return Source(location, self._means, functools.partial(lent_link, location.url, auth, self._terms.clock))
        if auth is not None:
            return Source(location, self._means, functools.partial(_addressed, location.url, auth))
        if not location.url.startswith("s3://"):
            return Source(location, self._means)
        if self._s3 is None:
            raise DownloadFailed(f"{location.source}: s3:// sources are not set up", owner=location.owner)
        return Source(location, self._means, functools.partial(self._s3.link, location.url))


async def _addressed(url: str, auth: Auth) -> str:
    return auth.address(url)


class _Expired(Exception):
    """A link ended on the way, as ``failure`` says."""

    def __init__(self, failure: WorkerError) -> None:
        super().__init__()
        self.failure = failure


async def _from_any(
    locate: Locate, visit: Callable[[Location], Awaitable[Fetched]], there: Callable[[], int]
) -> Fetched:
    """From the first location that gives it; they are asked for anew when a link has ended after more bytes came."""
    failures: list[WorkerError] = []
    most = -1
    while True:
        locations = locate()
        try:
            async for location in locations:
                try:
                    return await visit(location)
                except _TELLING as failure:
                    log.warning("model_source_failed", source=location.source, code=failure.code, error=failure.message)
                    failures.append(failure)
        except _TELLING as failure:
            failures.append(failure)
        except _Expired as expired:
            if there() > most:
                most = there()
                continue
            failures.append(expired.failure)
        finally:
            if isinstance(locations, AsyncGenerator):
                await locations.aclose()
        raise most_telling(failures)


def most_telling(failures: Sequence[WorkerError]) -> WorkerError:
    """Of what the sources said, what comes out."""
    ranks = {kind: rank for rank, kind in enumerate(_TELLING)}
    return min(failures, key=lambda one: ranks[type(one)], default=ModelNotFound("no source has it"))


def _errand(
    wanted: Wanted, location: Location, room: Room, on_bytes: OnBytes, priority: Callable[[], Priority]
) -> Errand:
    """Raises `ModelCorrupt` for a location that promises another file than is wanted."""
    for ours, theirs in ((wanted.sha256, location.sha256), (wanted.size, location.size)):
        if ours is not None and theirs is not None and ours != theirs:
            raise ModelCorrupt(f"{location.source} has another file: {theirs} instead of {ours}", owner=location.owner)
    return Errand(
        wanted,
        _identified(location.url),
        wanted.sha256 or location.sha256,
        wanted.size if wanted.size is not None else location.size,
        room,
        on_bytes,
        priority,
    )


def _identified(url: str) -> str:
    try:
        return canonical(url)
    except ValueError:
        return http.shown(url)


def _verify(file: Partial, errand: Errand, location: Location, sha256: str) -> None:
    """Raise `ModelCorrupt` unless this is the file that was promised, and a model. For a thread."""
    if errand.sha256 is not None and sha256 != errand.sha256:
        raise ModelCorrupt(f"{location.source}: sha256 {sha256} instead of {errand.sha256}", owner=location.owner)
    if errand.size is not None and file.size != errand.size:
        raise ModelCorrupt(f"{location.source}: {file.size} bytes instead of {errand.size}", owner=location.owner)
    try:
        with writing(file.path):
            check_model_file(file.path, errand.wanted.name)
    except ModelCorrupt as failure:
        raise ModelCorrupt(f"{location.source}: {failure.message}", owner=location.owner) from None
