"""A model cache on a real folder, with sources, transfers and an image server that a test directs."""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.virtual import takes
from worker.errors import ModelNotFound, Owner, WorkerError
from worker.mentions import Place, place_of
from worker.models.base import Fetched, Locate, Location, OnBytes, Priority, Room, Wanted
from worker.models.cache import Cache
from worker.models.carrier import Carrier
from worker.models.disk import Disk
from worker.models.folders import Folders
from worker.models.layout import LAYOUTS
from worker.models.taking import Parts

KB = 4096
"""Files are whole blocks of the file system, so that what they take is what they hold."""

HOST = "https://models.example/"


def content(seed: str, size: int) -> bytes:
    """Bytes that differ by seed."""
    block = hashlib.sha256(seed.encode()).digest()
    return (block * (size // len(block) + 1))[:size]


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def size_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def wanted(name: str, *, url: str | None = None, kind: str = "lora", at: str | None = None, **more: object) -> Wanted:
    """A model that a job wants; ``at`` is a path below `HOST`."""
    return Wanted(kind, name, url=url or (HOST + at if at else None), field="models.0.name", **more)  # type: ignore[arg-type]


@dataclass
class Source:
    """A file that is to be had. ``tells`` what its source says before the transfer: any of ``sha256 size name``.

    ``go`` holds the transfer up after its first block; ``error`` ends it there.
    """

    data: bytes
    tells: frozenset[str] = frozenset({"size"})
    name: str | None = None
    go: asyncio.Event | None = None
    error: WorkerError | None = None
    owner: Owner = Owner.JOB
    seconds: float = 0.0

    def location(self, url: str) -> Location:
        return Location(
            url,
            "models.example",
            sha256=sha256(self.data) if "sha256" in self.tells else None,
            size=len(self.data) if "size" in self.tells else None,
            name=self.name if "name" in self.tells else None,
            owner=self.owner,
        )


class FakeHub:
    """`Finder` and `Fetcher` over ``sources``, by URL, or by ``kind/name`` where the operator's source has it.

    ``fetches`` counts transfers by URL, ``resumed`` the bytes that were there already, ``pauses`` what was told;
    ``paused`` are the sources that it leaves alone.
    """

    def __init__(self) -> None:
        self.sources: dict[str, Source] = {}
        self.fetches: Counter[str] = Counter()
        self.asked: Counter[str] = Counter()
        self.resumed: list[int] = []
        self.pauses: list[bool] = []
        self.paused: dict[str, str] = {}
        self.priorities: dict[str, Callable[[], Priority]] = {}
        self.on_write: Callable[[], object] = int

    def has(self, at: str, data: bytes, **more: object) -> Source:
        source = self.sources[HOST + at if "://" not in at else at] = Source(data, **more)  # type: ignore[arg-type]
        return source

    async def typed(self, wanted: Wanted) -> Wanted:
        return wanted

    async def completed(self, wanted: Wanted) -> Wanted:
        return wanted

    async def locations(self, wanted: Wanted) -> AsyncIterator[Location]:
        url = wanted.url or f"https://operator.example/{place_of(wanted.kind, wanted.name)}"
        self.asked[url] += 1
        source = self.sources.get(url)
        if source is None:
            raise ModelNotFound(f"no source has {wanted.name}")
        yield source.location(url)

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
        location = await anext(locate())
        source = self.sources[location.url]
        self.fetches[location.url] += 1
        self.priorities[location.url] = priority
        data, step = source.data, KB
        there = size_of(partial)
        self.resumed.append(there)
        known = "size" in source.tells
        if known:
            await room(len(data))
        for at in range(there, len(data), step):
            if not known:
                await room(min(at + step, len(data)))
            with partial.open("ab") as file:
                file.write(data[at : at + step])
            on_bytes(min(at + step, len(data)), len(data) if known else None)
            self.on_write()
            if source.go is not None:
                await source.go.wait()
            if source.seconds:
                await takes(source.seconds)
            if source.error is not None:
                raise source.error
        return Fetched(partial, len(data), sha256(data), location)

    def pause(self, paused: bool) -> None:
        self.pauses.append(paused)


class FakeServer:
    """An image server that holds ``held``; of what is in ``clings`` it does not let go."""

    def __init__(self) -> None:
        self.held: set[Place] = set()
        self.clings: set[Place] = set()
        self.unloaded: list[frozenset[Place]] = []
        self.looks = 0

    async def loaded(self) -> frozenset[Place]:
        self.looks += 1
        return frozenset(self.held)

    async def unload(self, places: Collection[Place]) -> None:
        self.unloaded.append(frozenset(places))
        self.held -= set(places) - self.clings


@dataclass
class FakeTally:
    hits: int = 0
    misses: int = 0
    evicted: int = 0
    downloaded: int = 0
    waited_s: float = 0.0

    def models_used(self, hits: int, misses: int) -> None:
        self.hits += hits
        self.misses += misses

    def model_evicted(self) -> None:
        self.evicted += 1

    def model_downloaded(self, bytes: int) -> None:
        self.downloaded += bytes

    def models_waited(self, seconds: float) -> None:
        self.waited_s += seconds


@dataclass
class Kept:
    """A cache and what stands around it."""

    cache: Cache
    carrier: Carrier
    disk: Disk
    hub: FakeHub
    server: FakeServer
    tally: FakeTally
    root: Path
    caps: dict[str, int] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """What is on disk, the least recently used first."""
        return [entry.place.name for entry in self.cache.entries()]

    def path(self, name: str, kind: str = "lora") -> Path:
        return self.disk.folders.path(place_of(kind, name))

    @property
    def idle(self) -> bool:
        """Whether nothing is pinned, reserved, waiting or on its way."""
        books = self.carrier.books
        return not (books.pinned or books.waiting or books.flights or not books.clear)

    def written(self) -> int:
        """Bytes of model and partial files in the folders just now; each counts once while it gets another name."""
        sizes: dict[int, int] = {}
        for path in (self.root / "loras").rglob("*"):
            with suppress(FileNotFoundError):
                found = path.stat()
                sizes[found.st_ino] = found.st_size if path.is_file() else 0
        return sum(sizes.values())


@asynccontextmanager
async def kept(
    root: Path, *, cap: int = 10 * KB, hub: FakeHub | None = None, free: Callable[[Path], int] = lambda _: 1 << 40
) -> AsyncIterator[Kept]:
    """A cache of ComfyUI's folders below ``root``, closed at the end; ``caps["cap"]`` may be changed."""
    hub, server, tally = hub or FakeHub(), FakeServer(), FakeTally()
    root.mkdir(exist_ok=True)  # noqa: ASYNC240
    disk = await Disk.open(Folders(root, LAYOUTS["comfyui"]), free=free)
    caps = {"cap": cap}
    carrier = Carrier(disk, hub, hub, server, tally, cap=lambda: caps["cap"], ceiling=cap)
    await carrier.resume()
    cache = Cache(Parts(disk, hub, carrier, tally), disk.aclose)
    try:
        yield Kept(cache, carrier, disk, hub, server, tally, root, caps)
    finally:
        await cache.aclose()
