"""The line from the operator's model source to this node.

Ranges of one of the models that this node is to have are asked for over as many connections as the downloader uses,
and what comes is dropped.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta

from worker import http
from worker.clock import CorrectedClock
from worker.errors import AuthFailed, ConfigError, DependencyFailed, DownloadFailed, FieldError, Owner, WorkerError
from worker.fitness.verdict import Name, Reading
from worker.models.answers import part_of, refusal
from worker.models.bandwidth import Bandwidth
from worker.models.base import Location, Wanted
from worker.models.catalog import Index
from worker.models.connection import Broken
from worker.models.find import Sources
from worker.models.open import links_of
from worker.models.s3source import S3Links
from worker.models.source import Answer, Means, Source
from worker.rates import LEAST_BYTES, Moving, speed
from worker.settings.groups import Settings
from worker.tasks import gather_bare
from worker.urls import Guard

VARIABLE = "WORKER_FITNESS_DOWNLOAD"

ENOUGH = 64_000_000
WINDOW_S = 5.0
HEAD_WITHIN = timedelta(seconds=15)
LARGE = 32_000_000
"""Bytes of a file by which a line can be told from the asking."""

TRIED = 20
"""Models at most that are looked for, one after the other."""

_TURN = 1024 * 1024


def candidates(first: Sequence[Wanted], listed: Index) -> tuple[Wanted, ...]:
    """Models to measure with, in the operator's order, those that are known to be small after the others.

    ``first`` come before those of the catalogue.
    """
    operator = Owner.OPERATOR
    found = [*first, *(Wanted(i.kind, i.name, i.url, i.sha256, i.size, owner=operator) for i in listed.items)]
    return tuple(sorted(found, key=lambda one: one.size is not None and one.size < LARGE))[:TRIED]


@dataclass(frozen=True, slots=True)
class Came:
    """What came in the time that there was; ``late`` so many bytes in its second half, None where it was not used."""

    bytes: int
    seconds: float
    late: int | None

    @property
    def rate(self) -> float | None:
        """Bytes a second, None where too little came because there was no more.

        Raises `DownloadFailed` for a source that sent nothing any more.
        """
        if self.late == 0:
            raise DownloadFailed(f"the source stopped sending after {self.bytes} bytes")
        return speed(self.bytes, self.seconds) if self.late is None else self.bytes / self.seconds


class DownloadSpeed:
    """Bytes a second. ``wanted_first`` tells the models that this node is to have; it may raise `ConfigError`.

    ``measured`` hears of each try that told something.
    """

    name: Name = "download"

    def __init__(
        self,
        wanted: float,
        settings: Settings,
        *,
        guard: Guard,
        clock: CorrectedClock,
        wanted_first: Callable[[], Awaitable[Sequence[Wanted]]],
        measured: Callable[[Moving], None] = lambda moving: None,
        window_s: float = WINDOW_S,
    ) -> None:
        self.wanted = wanted
        self._settings = settings
        self._guard = guard
        self._clock = clock
        self.listed = wanted_first
        self._measured = measured
        self._window_s = window_s

    async def measure(self) -> Reading:
        """Raises `DownloadFailed` while no source answers, `AuthFailed` and `ConfigError` for what never will."""
        links = links_of(self._settings, self._clock)
        finder = Sources(
            self._settings.models, guard=self._guard, clock=self._clock, rng=random.Random(), link_s3=links.link
        )
        threads = ThreadPoolExecutor(self._settings.models.connections, thread_name_prefix="fitness")
        try:
            return await self._from_any(finder, links, threads)
        finally:
            threads.shutdown(wait=False, cancel_futures=True)
            await finder.aclose()
            await links.aclose()

    async def _from_any(self, finder: Sources, links: S3Links, threads: ThreadPoolExecutor) -> Reading:
        """By the first model whose source gives enough of it."""
        failures: list[WorkerError] = []
        small: Reading | None = None
        for wanted in candidates(await self.listed(), await finder.catalogued()):
            try:
                location = await _located(finder, wanted)
                came = await self._came(_source(location, links, self._means(threads)), threads)
                rate = came.rate
            except WorkerError as error:
                failures.append(error)
                continue
            text = f"{came.bytes / 1e6:.3g} MB from {location.source} in {came.seconds:.3g} s"
            if rate is not None:
                return Reading(rate, text)
            small = Reading(None, text)
        raise _nothing(failures, small)

    def _means(self, threads: ThreadPoolExecutor) -> Means:
        return Means(self._guard, threads, HEAD_WITHIN, http.tls)

    async def _came(self, source: Source, threads: ThreadPoolExecutor) -> Came:
        pull = Pull(source, Bandwidth(self._settings.models.bandwidth), self._clock, self._window_s)
        came = await pull.run(self._settings.models.connections)
        self._measured(pull.moving)
        return came


def cuts(total: int | None, connections: int) -> tuple[int, range]:
    """How many bytes each connection takes, and where all but the first begin.

    A file of unknown size comes over the first alone, and so does one that is hardly worth asking for.
    """
    if total is None or total < LEAST_BYTES:
        return ENOUGH, range(0)
    size = -(-total // connections)
    return size, range(size, total, size)


class Pull:
    """One measurement over one source: `run` once. ``moving`` are the bytes as they came."""

    def __init__(self, source: Source, bandwidth: Bandwidth, clock: CorrectedClock, window_s: float) -> None:
        self._source = source
        self._bandwidth = bandwidth
        self._clock = clock
        self._window_s = window_s
        self._began = 0.0
        self._bytes = 0
        self._late = 0
        self._failure: Broken | None = None
        self.moving = Moving()

    async def run(self, connections: int) -> Came:
        """Raises what the source answers, and `DownloadFailed` where nothing comes."""
        first = await self._asked(0)
        part = part_of(first.head, 0)
        self._began = asyncio.get_running_loop().time()
        self._took(0)
        with _dropping() as fd:
            size, starts = cuts(None if part is None else part.total, connections)
            pulls = [self._drained(fd, first, size), *(self._another(fd, start, size) for start in starts)]
            try:
                async with asyncio.timeout(self._window_s) as limit:
                    await gather_bare(pulls, name="fitness-pull")
            except TimeoutError:
                if not limit.expired():
                    raise
            finally:
                first.connection.close()
        return self._came(is_cut=limit.expired())

    def _came(self, *, is_cut: bool) -> Came:
        if self._bytes == 0:
            reason = str(self._failure or "sends nothing")
            raise DownloadFailed(f"{self._source.location.source}: {reason}")
        if is_cut:
            return Came(self._bytes, self._window_s, self._late)
        return Came(self._bytes, max(asyncio.get_running_loop().time() - self._began, 1e-6), None)

    async def _asked(self, start: int) -> Answer:
        answer = await self._source.ask({"range": f"bytes={start}-"})
        if answer.head.status in (200, 206):
            return answer
        answer.connection.close()
        source = self._source
        raise refusal(answer.head, source.location, has_token=source.has_token, now=self._clock.now())

    async def _another(self, fd: int, start: int, size: int) -> None:
        """One more connection; a source that grants no more of them is measured by those that it grants."""
        try:
            answer = await self._asked(start)
        except WorkerError:
            return
        try:
            if part_of(answer.head, start) is not None:
                await self._drained(fd, answer, size)
        finally:
            answer.connection.close()

    async def _drained(self, fd: int, answer: Answer, left: int) -> None:
        """Take so many bytes of the body, until enough has come in all."""
        try:
            while left > 0 and self._bytes < ENOUGH and not answer.connection.ended:
                count = await answer.connection.receive(fd, 0, min(left, self._bandwidth.share or _TURN, _TURN))
                left -= count
                self._took(count)
                await self._bandwidth.pay(count)
        except Broken as failure:
            self._failure = failure

    def _took(self, count: int) -> None:
        now = asyncio.get_running_loop().time()
        self._bytes += count
        self._late += count if now - self._began > self._window_s / 2 else 0
        self.moving.saw(self._bytes, now)


async def _located(finder: Sources, wanted: Wanted) -> Location:
    """The best place of this model. Raises as `Finder.locations`."""
    locations = finder.locations(await finder.typed(wanted))
    try:
        return await anext(locations)
    finally:
        if isinstance(locations, AsyncGenerator):
            await locations.aclose()


def _source(location: Location, links: S3Links, means: Means) -> Source:
    is_s3 = location.url.startswith("s3://")
    return Source(location, means, functools.partial(links.link, location.url) if is_s3 else None)


def _nothing(failures: Sequence[WorkerError], small: Reading | None) -> WorkerError:
    """Why nothing was measured: what may yet answer comes before what never will."""
    away = (one for one in failures if isinstance(one, DependencyFailed) and not isinstance(one, AuthFailed))
    refused = (one for one in failures if isinstance(one, AuthFailed))
    if (error := next(away, None) or next(refused, None)) is not None:
        return error
    reason = failures[0].message if failures else "no model is listed (WORKER_MODELS_MANIFEST, WORKER_MODELS_CATALOG)"
    if small is not None:
        reason = f"no model that is listed is large enough ({small.detail})"
    return ConfigError((FieldError(VARIABLE, f"cannot be measured: {reason}"),))


@contextlib.contextmanager
def _dropping() -> Iterator[int]:
    """A file that keeps nothing."""
    fd = os.open(os.devnull, os.O_WRONLY)
    try:
        yield fd
    finally:
        os.close(fd)
