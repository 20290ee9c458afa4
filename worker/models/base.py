"""The words of the model cache: what is wanted, where a file lies, and what the parts promise each other. No I/O."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from worker.errors import Owner
from worker.mentions import Place, place_of
from worker.models.auth import Auth


@dataclass(frozen=True, slots=True)
class Wanted:
    """A model that somebody wants.

    ``sha256`` (64 lower-case hex digits) and ``size`` in bytes where they are known. ``owner`` says who named the
    URL: what a job names is guarded and limited to the hosts that the operator allows. ``field`` is where a job
    names it, for errors.
    """

    kind: str
    name: str
    url: str | None = None
    sha256: str | None = None
    size: int | None = None
    owner: Owner = Owner.JOB
    field: str = ""
    known: bool = False
    """Whether the server lists a file of this name: then one that is not in our folders is taken as it is."""
    claimed: bool = False
    """Whether only a job says that the operator's URL gives what its hash names: other jobs need not believe that."""
    auth: Auth | None = dataclasses.field(default=None, repr=False)
    """Who may read the URL, as the job's caller says: what it gives them is known by it and them together."""

    @property
    def place(self) -> Place:
        """Where it belongs unless another file has its name."""
        return place_of(self.kind, self.name)


class Priority(StrEnum):
    """Who waits for a transfer: transfers for jobs pause those that nobody waits for."""

    JOB = "job"
    START = "start"
    BACKGROUND = "background"


@dataclass(frozen=True, slots=True)
class Location:
    """Where the bytes of a model can be had just now.

    ``headers`` (a token) go to the host of ``url`` alone, never across a redirect. ``sha256`` and ``size`` as the
    source tells them. ``guarded``: a job named it, so that it may only reach public addresses. ``name`` as the
    source calls the file. ``url`` may be ``s3://bucket/key``.
    """

    url: str
    source: str
    """In words, for messages and logs: no query, no credentials."""
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict, repr=False)
    sha256: str | None = None
    size: int | None = None
    name: str | None = None
    owner: Owner = Owner.OPERATOR
    guarded: bool = False
    expires: bool = False
    """Whether ``url`` works for some minutes only: `Finder.locations` gives a new one."""
    auth: Auth | None = dataclasses.field(default=None, repr=False)
    """What the caller of a job gave to open it; ``headers`` hold what of it is sent as such."""


class Finder(Protocol):
    """Knows where models are to be had."""

    def locations(self, wanted: Wanted) -> AsyncIterator[Location]:
        """The places to try, the best first; the next one is looked up only when it is asked for.

        Raises `ModelNotFound` when every source said that it has none or there is no source, `ModelForbidden` for a
        URL of the job's that answers 401 or 403, `AuthFailed` for one of the operator's, `UrlForbidden` for a host
        that a job may not name, `InvalidJob` for a URL or a format that cannot be used, `DownloadFailed` while a
        source is away.
        """
        ...

    @property
    def paused(self) -> Mapping[str, str]:
        """The operator's sources that are left alone for now, by the code of their error."""
        ...

    async def typed(self, wanted: Wanted) -> Wanted:
        """The same with its kind, where it was named without one and its hub knows it. Raises as `locations`."""
        ...

    async def completed(self, wanted: Wanted) -> Wanted:
        """The same with what the catalogue and the URL alone tell: name, sha256, size. Asks no server."""
        ...


@dataclass(frozen=True, slots=True)
class Fetched:
    """A file that has arrived whole: ``sha256`` of its bytes, ``size`` in bytes."""

    path: Path
    size: int
    sha256: str
    location: Location


Room = Callable[[int], Awaitable[None]]
"""Called with the bytes that the file will take in all, as soon as that is known and before they are written, and in
steps where it is not. Returns when there is room; raises `ModelTooLarge` or `DiskFull`."""

OnBytes = Callable[[int, int | None], None]
"""Bytes that are there, of so many where that is known."""

Locate = Callable[[], AsyncIterator[Location]]
"""The places to try, from the best on; called again where a link has expired. Raises as `Finder.locations`."""


class Fetcher(Protocol):
    """Brings one file to this machine."""

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
        """Write the file to ``partial``, verified, fsynced, and not yet under its own name.

        What an earlier run left at ``partial`` is resumed where the source allows; what is left there when this one
        is cancelled can be resumed by the next. A location that fails for good gives way to the next one; of several
        failures the one comes out that tells most. ``priority`` may rise meanwhile. Raises what ``locate`` and ``room``
        raise, `ModelNotFound`, `ModelForbidden` or `AuthFailed` for what the locations answer, `ModelCorrupt` for bytes
        that are not the model's, `DiskFull`, `DownloadFailed`.
        """
        ...

    def pause(self, paused: bool) -> None:
        """Have transfers of priority BACKGROUND stand still, or go on."""
        ...


@dataclass(frozen=True, slots=True)
class Entry:
    """A model file on disk. ``used`` grows with each use and orders them; it is no time.

    ``urls`` are canonical, each known to have given these very bytes. ``baked`` files came with the image: served and
    listed, never counted, never evicted.
    """

    place: Place
    size: int
    used: int
    sha256: str | None = None
    urls: frozenset[str] = frozenset()
    baked: bool = False
    mtime_ns: int = 0


@dataclass(frozen=True, slots=True)
class InFlight:
    """A transfer under way or left over: ``reserved`` bytes are set aside for it, ``done`` of them written."""

    place: Place
    reserved: int
    done: int = 0
    source: str = ""
    priority: Priority = Priority.BACKGROUND


class Loaded(Protocol):
    """What the cache asks of the image server, by `Engine`; given by who owns the turns."""

    async def loaded(self) -> frozenset[Place]:
        """What it holds in memory or is configured with, by our names."""
        ...

    async def unload(self, places: Collection[Place]) -> None:
        """Have it let go of these: takes a turn."""
        ...


@dataclass(frozen=True, slots=True)
class Provided:
    """What a job's models came to: ``places`` in the order of what was wanted.

    ``version`` grows whenever a file came or went, so that the server is told.
    """

    places: tuple[Place, ...] = ()
    version: int = 0
    waited_s: float = 0.0


class Models(Protocol):
    """The cache as jobs, orders, commands and the HTTP API use it."""

    @property
    def version(self) -> int: ...

    def provided(
        self, wanted: Sequence[Wanted], at_most: timedelta | None = None
    ) -> AbstractAsyncContextManager[Provided]:
        """All of them on disk, or none: pinned for as long as the context lasts, fetched where they are missing.

        Raises `ModelNotFound`, `ModelForbidden`, `ModelTooLarge`, `UrlForbidden`, `InvalidJob`, `DiskFull`,
        `ModelCorrupt`, `DownloadFailed`, `AuthFailed`. Cancelling one who waits cancels no transfer that another
        waits for. `ModelComing` when they take longer than ``at_most`` yet, by what was measured of the transfers; it
        says in how long to ask again. What was begun goes on, and stays until somebody does, or long did not.
        """
        ...

    def hint(self, wanted: Wanted, priority: Priority = Priority.BACKGROUND) -> None:
        """Have it fetched when there is time and room; what fails is logged, and nobody waits."""
        ...

    async def fetch(self, wanted: Wanted, priority: Priority = Priority.START) -> Entry:
        """Fetched now, and not pinned afterwards. Raises as `provided`."""
        ...

    async def remove(self, place: Place) -> None:
        """Raises `ModelNotFound` when there is none, `ModelInUse` while a job or the server holds it."""
        ...

    def entries(self) -> tuple[Entry, ...]:
        """All that is on disk, the least recently used first."""
        ...

    def transfers(self) -> tuple[InFlight, ...]: ...

    async def space(self) -> None:
        """Raises `DiskFull` while the node has no room for another model."""
        ...

    async def aclose(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Tempo:
    """How patient transfers are. A connection that brought less than ``stall_bytes`` in ``stall`` is given up."""

    stall: timedelta = timedelta(seconds=30)
    stall_bytes: int = 64 * 1024
    attempts: int = 5
    first: timedelta = timedelta(seconds=0.5)
    most: timedelta = timedelta(seconds=15)
