"""Lives of a model cache that end by SIGKILL one after the other, and what is wrong after each of them."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.cache import sha256
from tests.support.model_host import HostedFile, ModelHost, Twist
from tests.support.model_life import AIMS, CAP, DIGESTS, FILES, End, Order, cache_at, folders_at, lives, path_of, want
from tests.support.waiting import wait_until
from worker.mentions import Place
from worker.models.partial import Record, Spans, read_record, sidecar_of

LATER_S: Mapping[str, float] = {"spawn": 0.03, "served": 0.3, "begin": 0.2}
"""How long after what it is aimed at a life ends at the latest; a few milliseconds where the act is that short."""

RATE = 800_000
"""Bytes a second of a connection, so that a file takes some tenths of a second."""

STREAMED = sorted(FILES)[1]
"""This one has no size before it has come, and no ranges."""


@dataclass
class Toll:
    """What came of the kills. ``breaches`` are broken promises, in words."""

    breaches: list[str] = field(default_factory=list)
    kills: int = 0
    looks: int = 0
    resumed: int = 0
    spared: int = 0
    sent: int = 0
    landed: int = 0
    landed_bytes: int = 0
    evicted: int = 0
    most: int = 0

    def line(self, seed: int) -> str:
        counts = f"{self.kills} kills, {self.looks} looks, {self.landed} landings, {self.evicted} evictions"
        sent = f"{self.sent / 1e6:.1f} MB sent for {self.landed_bytes / 1e6:.1f} MB of models"
        spared = f"{self.resumed} resumed, which spared {self.spared / 1e6:.1f} MB"
        return f"models killed, seed {seed}: {counts}, {sent}, {spared}, at most {self.most} of {CAP} bytes"


def first_missing(record: Record) -> int:
    """Where a transfer with this record goes on: with its last byte when none is missing."""
    spans = Spans()
    for start, end in record.done:
        spans.add(start, end)
    missing = spans.missing(record.size or 0)
    return missing[0].start if missing else (record.size or 1) - 1


def overlap(asked: str, record: Record) -> int:
    """How many of the bytes asked for are there already, but for a last one that is asked for to compare."""
    first, last = map(int, asked.removeprefix("bytes=").split("-"))
    if first == (record.size or 0) - 1:
        return 0
    return sum(max(0, min(end, last + 1) - max(start, first)) for start, end in record.done)


class Siege:
    """A folder of models, the host that they come from, and one life after the other."""

    def __init__(self, root: Path, host: ModelHost) -> None:
        self.root = root
        self.folders = folders_at(root)
        self.host = host
        self.url = host.url("").rstrip("/")
        self.hosted = {place: host.host(path_of(place), HostedFile(body, rate=RATE)) for place, body in FILES.items()}
        self.hosted[STREAMED].twist = Twist(whole=True, chunked=True)
        self.toll = Toll()
        self.left: dict[Place, Record] = {}

    async def lived(self, kills: int, rng: random.Random) -> Toll:
        """So many lives, each looked at after its end, and one that nothing befalls in the end."""
        async with lives(self.root, self.url) as forked:
            for number in range(kills):
                order = self.order(rng)
                await wait_until(lambda: not self.host._connections)
                for file in self.hosted.values():
                    file.requests.clear()
                end = await forked.one(order, self.look)
                self.toll.kills += 1
                if end.signal != 9:
                    self.breach(f"life {number} ended by itself: {order} {end}")
                self.told(end)
                self.check_resumed(end)
                await self.look()
                await self.reopen()
        await self.serve()
        self.toll.sent = sum(file.sent for file in self.hosted.values())
        return self.toll

    def told(self, end: End) -> None:
        landed = [place for place in FILES for line in end.did if line == f"land {place}"]
        self.toll.landed += len(landed)
        self.toll.landed_bytes += sum(len(FILES[place]) for place in landed)
        self.toll.evicted += sum(line.startswith("delete ") for line in end.did)

    def order(self, rng: random.Random) -> Order:
        aim = rng.choice(AIMS[:-1])
        hit = 1 if aim == "spawn" else rng.randint(1, 3)
        return Order(rng.randrange(1 << 30), aim, hit, rng.uniform(0, LATER_S.get(aim, 0.005)), rng.random() < 0.5)

    def breach(self, what: str) -> None:
        self.toll.breaches.append(what)

    async def look(self) -> None:
        """At the bare folder of a life that has ended or stands still."""
        self.toll.looks += 1
        scan = self.folders.scan()
        for place, file in scan.files.items():
            if sha256(file.path.read_bytes()) != DIGESTS[place]:
                self.breach(f"{place} has its name and is not whole")
        written = self.written()
        self.toll.most = max(self.toll.most, written)
        if written > CAP:
            self.breach(f"{written} bytes are more than the cap")

    def written(self) -> int:
        """Bytes of models and partial files."""
        scan = self.folders.scan()
        partials = [path.stat().st_size for path in scan.leftovers if path.suffix == ".part"]
        return sum(file.size for file in scan.files.values()) + sum(partials)

    async def reopen(self) -> None:
        """By the product, as the next start would find it."""
        async with cache_at(self.root, self.url) as cache:
            scan = self.folders.scan()
            for entry in cache.entries():
                body = self.folders.path(entry.place).read_bytes()
                if (sha256(body), entry.sha256) != (DIGESTS[entry.place],) * 2 or entry.baked:
                    self.breach(f"{entry} is served and is not what it should be")
            if {entry.place for entry in cache.entries()} != set(scan.files):
                self.breach(f"{sorted(scan.files)} lie there")
            partials = {self.partial(path): path for path in scan.leftovers if path.suffix == ".part"}
            if partials.keys() != {one.place for one in cache.transfers()} or None in partials:
                self.breach(f"{scan.leftovers} lie there and {cache.transfers()} are known")
            if cache.bytes != self.written():
                self.breach(f"{cache.bytes} bytes are counted and {self.written()} are there")
            self.left = {place: self.trusted(place, path) for place, path in partials.items() if place is not None}

    def partial(self, path: Path) -> Place | None:
        """The place that a partial file is for, by the server's list of files."""
        return next(
            (one for one in FILES if self.folders.path(one).name == path.name[1 : -len(".12345678.part")]), None
        )

    def trusted(self, place: Place, path: Path) -> Record:
        """What is recorded to be there, as far as the file goes, which must be so."""
        record, body = read_record(sidecar_of(path)), path.read_bytes()
        record.done = [(start, min(end, len(body))) for start, end in record.done if start < len(body)]
        for start, end in record.done:
            if body[start:end] != FILES[place][start:end]:
                self.breach(f"{place} is recorded to have the bytes {start} to {end}")
        return record

    def check_resumed(self, end: End) -> None:
        """Whoever went on with what was left asked for nothing that is recorded to be there, and for the same file."""
        for place, record in self.left.items():
            asked = [one.headers for one in self.hosted[place].requests if one.headers.get("range") != "bytes=0-0"]
            if not record.done or not asked or place == STREAMED or {f"drop {place}", f"delete {place}"} & {*end.did}:
                continue
            again = [headers for headers in asked if overlap(headers["range"], record)]
            if again or not asked[0]["range"].startswith(f"bytes={first_missing(record)}-"):
                self.breach(f"{place} was asked for again: {again or asked} with {record}")
            if any(headers.get("if-range") != '"v1"' for headers in asked):
                self.breach(f"{place} was not asked for on the condition that it is the same: {asked}")
            self.toll.resumed += 1
            self.toll.spared += sum(end - start for start, end in record.done)

    async def serve(self) -> None:
        """Each model in its turn, whatever was left."""
        for file in self.hosted.values():
            file.rate = None
        async with cache_at(self.root, self.url) as cache:
            for place in FILES:
                async with cache.provided([want(place)]) as provided:
                    if sha256(self.folders.path(provided.places[0]).read_bytes()) != DIGESTS[place]:
                        self.breach(f"{place} is served in the end and is not what it should be")
        await self.look()


async def besieged(folder: Path, kills: int, seed: int) -> Toll:
    async with ModelHost() as host:
        root = folder / "models"
        root.mkdir()
        return await Siege(root, host).lived(kills, random.Random(seed))
