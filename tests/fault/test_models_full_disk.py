"""Models on a disk that is really full: a small filesystem, filled to its last byte."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Figures
from tests.support.cache import sha256
from tests.support.model_host import HostedFile, ModelHost, Twist
from tests.support.model_life import DIGESTS, FILES, KIB, cache_at, folders_at, path_of, want
from tests.support.small_disk import INJECTED, PAGE, SmallDisk, Way, ran
from tests.support.waiting import wait_until
from worker.errors import ConfigError, DiskFull, Disposition, Fault
from worker.mentions import Place
from worker.models.cache import Cache
from worker.models.folders import Folders
from worker.models.measure import RECORDS
from worker.models.partial import read_record, sidecar_of
from worker.simulators import Knobs

SIZE = 24 * 1024 * KIB
UNLIMITED = 10**9
SLOW = Knobs(step_seconds=0.1, load_seconds=0.0)
OWN = 128 * KIB
"""What the index and the records of transfers may take beside models."""

M180, M340, M500, M260, M420, M580 = sorted(FILES)


def whole_pages(size: int) -> int:
    return -(-size // PAGE) * PAGE


@dataclass
class Node:
    """A cache on a small disk, and the host that has the models."""

    cache: Cache
    host: ModelHost
    hosted: dict[Place, HostedFile]
    disk: SmallDisk

    @property
    def folders(self) -> Folders:
        return folders_at(self.disk.root / "models")

    async def use(self, place: Place) -> None:
        """As a job does, and whole."""
        async with self.cache.provided([want(place)]) as provided:
            assert sha256(self.folders.path(provided.places[0]).read_bytes()) == DIGESTS[place]

    def partials(self) -> list[Path]:
        return [path for path in self.folders.scan().leftovers if path.suffix == ".part"]

    def check(self) -> None:
        """What lies there is what is counted, and nothing else."""
        scan = self.folders.scan()
        assert set(scan.files) == {entry.place for entry in self.cache.entries()}
        partials = [path.stat() for path in self.partials()]
        written = sum(max(found.st_size, found.st_blocks * 512) for found in partials)
        assert self.cache.bytes == written + sum(file.size for file in scan.files.values())
        assert scan.complete


@asynccontextmanager
async def node(disk: SmallDisk) -> AsyncIterator[Node]:
    root = disk.root / "models"
    root.mkdir(exist_ok=True)
    async with ModelHost() as host:
        hosted = {place: host.host(path_of(place), HostedFile(body)) for place, body in FILES.items()}
        async with cache_at(root, host.url("").rstrip("/"), UNLIMITED) as cache:
            yield Node(cache, host, hosted, disk)


async def refused(disk: SmallDisk) -> None:
    async with node(disk) as here:
        await here.use(M180)
        disk.fill(leave=whole_pages(RECORDS + 320 * KIB))
        before = disk.free()
        with pytest.raises(DiskFull) as refusal:
            await here.use(M580)
        assert (refusal.value.fault, refusal.value.disposition) == (Fault.NODE, Disposition.NACK)
        assert [entry.place for entry in here.cache.entries()] == [M180]
        assert (here.hosted[M580].sent < PAGE, here.partials()) == (True, [])
        assert disk.free() >= before - OWN

        with disk.watched() as lowest:
            await here.use(M180)
            await here.use(M260)
        assert lowest.free >= before - len(FILES[M260]) - OWN
        here.check()

        with pytest.raises(DiskFull):
            await here.cache.space()
        disk.relieve()
        await here.cache.space()
        await here.use(M580)
        here.check()


async def filled_meanwhile(disk: SmallDisk) -> None:
    async with node(disk) as here:
        await here.use(M180)
        here.hosted[M580].twist = Twist(cut=40 * KIB, end="hold")
        coming = asyncio.create_task(here.use(M580), name="job")
        await wait_until(lambda: [r for p in here.partials() for r in read_record(sidecar_of(p)).done])
        disk.fill()
        here.hosted[M580].released.set()
        with pytest.raises(DiskFull):
            await coming
        here.check()
        await here.use(M180)
        with pytest.raises(DiskFull):
            await here.cache.space()
        disk.relieve()
        await here.cache.space()
        here.hosted[M580].twist, here.hosted[M580].requests[:] = Twist(), []
        await here.use(M580)
        assert "bytes=0-" not in here.hosted[M580].ranges_asked[-1]
        here.check()


async def exactly_full(disk: SmallDisk) -> None:
    enough = whole_pages(RECORDS + len(FILES[M580]))
    async with node(disk) as here:
        disk.fill(leave=enough - PAGE)
        with pytest.raises(DiskFull):
            await here.use(M580)
        with pytest.raises(DiskFull):
            await here.cache.space()
        disk.relieve()
        disk.fill(leave=enough)
        await here.cache.space()
        await here.use(M580)
        here.check()
    assert disk.free() > 0


async def begun_full(disk: SmallDisk) -> None:
    async with node(disk) as here:
        await here.use(M180)
    disk.fill()
    async with node(disk) as here:
        here.check()
        await here.use(M180)
        with pytest.raises(DiskFull):
            await here.use(M260)
        disk.relieve()
        await here.use(M260)
        here.check()
    async with node(disk) as here:
        here.check()
        await here.use(M180)
        await here.use(M260)
        assert {one.place: one.sha256 for one in here.cache.entries()} == {p: DIGESTS[p] for p in (M180, M260)}
        assert here.hosted[M260].sent < PAGE


async def begun_read_only(disk: SmallDisk) -> None:
    async with node(disk) as here:
        await here.use(M180)
    with disk.read_only():
        async with node(disk) as here:
            await here.use(M180)
            with pytest.raises(ConfigError, match="Read-only") as refusal:
                await here.use(M260)
            assert refusal.value.disposition is Disposition.NACK
    async with node(disk) as here:
        await here.use(M260)
        here.check()


async def whole_worker(disk: SmallDisk) -> None:
    from tests.support.bench import ends, params
    from tests.support.stocked import stocked

    (disk.beside / "server").symlink_to(disk.root)
    async with ModelHost() as host, stocked("sdnext", disk.beside, host, knobs=SLOW) as here:
        near, far = (here.offer(f"/{name}", name, size=size * KIB) for name, size in (("near", 100), ("far", 400)))
        jobs: dict[str, Any] = {
            name: {
                "checkpoint": name,
                "models": [here.ref("checkpoint", f"{name}.safetensors", f"/{name}", size=len(file.body))],
            }
            for name, file in (("near", near), ("far", far))
        }
        await here.made("near-1", **jobs["near"])
        disk.fill(leave=whole_pages(RECORDS + 200 * KIB))
        before, pictures = disk.free(), here.pictures
        with disk.watched() as lowest:
            await here.worker.submit("near-2", params=params("near"), **jobs["near"])
            await wait_until(lambda: here.pictures > pictures)
            await here.worker.submit("far-1", params=params("far"), **jobs["far"])
            await here.worker.attempted("far-1", "disk_full")
            await here.worker.unready("disk_full")
            assert ends(await here.worker.ended("near-2")) == [("succeeded", False)]
        assert lowest.free >= before - OWN
        assert (here.stored(), here.partials(), far.sent < PAGE) == ({"near.safetensors": near.body}, [], True)
        assert here.worker.told("far-1") == []

        await here.worker.submit("near-3", params=params("near"), **jobs["near"])
        assert (await here.worker.probe("ready"))[0] == 503
        disk.relieve()
        *failed, last = ends(await here.worker.ended("far-1"))
        assert ({*failed}, last) == ({("disk_full", False)}, ("succeeded", False))
        assert ends(await here.worker.ended("near-3")) == [("succeeded", False)]
        await here.worker.goes_on("disk_full")


def test_a_model_that_does_not_fit_is_refused_before_anything_is_touched(tmp_path: Path) -> None:
    """The node is at fault and nobody is charged; what is here and what fits goes on; with space all is well again."""
    ran(refused, SIZE, tmp_path)


def test_a_disk_that_others_fill_meanwhile(tmp_path: Path) -> None:
    """The transfer ends as the disk's fault, what it brought is kept and counted, and is gone on with later."""
    ran(filled_meanwhile, SIZE, tmp_path)


def test_where_nothing_can_be_mounted(tmp_path: Path) -> None:
    """The stories tell something also where the machine allows no filesystem of its own."""
    assert ran(filled_meanwhile, SIZE, tmp_path, Way(INJECTED, ())) == INJECTED


def test_a_disk_with_room_for_exactly_one_more(tmp_path: Path) -> None:
    """What was promised can be kept to the last byte, records included; a page less is told before."""
    ran(exactly_full, SIZE, tmp_path)


def test_a_start_on_a_full_disk(tmp_path: Path) -> None:
    """What is here is served; nothing is forgotten or fetched again because nothing could be written down."""
    ran(begun_full, SIZE, tmp_path)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    """What is here is served, and the operator is told why nothing else is."""
    ran(begun_read_only, SIZE, tmp_path)


def test_a_worker_on_a_full_disk(tmp_path: Path, figures: Figures) -> None:
    """A job that does not fit is given back uncharged and intake pauses; jobs at work go on; space ends the pause."""
    figures(f"models on a full disk: on {ran(whole_worker, SIZE, tmp_path)}")
