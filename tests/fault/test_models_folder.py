"""A folder of models that others damage, delete, fill and date anew while a cache works on it."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.cache import KB, FakeHub, Kept, content, kept, wanted
from tests.support.made import safetensors
from tests.support.virtual import elapse, run, virtual
from worker.mentions import place_of
from worker.models.base import Wanted
from worker.models.index import NAME

PAGE = 4096


def hub_of(**blocks: int) -> FakeHub:
    """Loras by name, each of so many blocks."""
    hub = FakeHub()
    for name, size in blocks.items():
        hub.has(name, model(name, size), tells=frozenset({"size", "sha256"}))
    return hub


def model(name: str, blocks: int) -> bytes:
    """A whole file of a little less than so many blocks."""
    return safetensors(content(name, blocks * KB - 256))


def want(name: str) -> Wanted:
    return wanted(f"{name}.safetensors", at=name)


async def use(cache: Kept, *names: str) -> None:
    """As a job does: all of them, whole, at the same time."""
    async with cache.cache.provided([want(name) for name in names]) as provided:
        for place, name in zip(provided.places, names, strict=True):
            assert cache.path(place.name).read_bytes() == cache.hub.sources[f"https://models.example/{name}"].data


def check(cache: Kept) -> None:
    """What is counted is what is there, and no more than may be."""
    assert cache.cache.bytes == cache.written() <= cache.cache.cap


async def damaged(root: Path, page: int, filling: bytes, cut: int | None) -> None:
    names = [f"m{number}" for number in range(8)]
    hub = hub_of(**dict.fromkeys(names, 1))
    async with kept(root, hub=hub) as cache:
        for name in names:
            await use(cache, name)
    index = root / ".sd-worker" / NAME
    data = bytearray(index.read_bytes())
    at = page % (len(data) // PAGE) * PAGE
    data[at : at + PAGE] = (filling * PAGE)[:PAGE]
    index.write_bytes(data if cut is None else data[: cut % len(data)])
    async with kept(root, hub=hub) as cache:
        assert sorted(cache.names) == [f"{name}.safetensors" for name in names]
        assert not any(entry.baked for entry in cache.cache.entries())
        check(cache)
        for name in names:
            await use(cache, name)
        check(cache)
    async with kept(root, hub=hub) as cache:
        assert cache.names == [f"{name}.safetensors" for name in names]
        check(cache)
    assert hub.fetches.total() == len(names)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 50), st.binary(min_size=1, max_size=8), st.none() | st.integers(0, 50_000))
def test_a_damaged_index(page: int, filling: bytes, cut: int | None) -> None:
    """Whatever page of it is lost or wherever it ends, every file is served and counted, and none is fetched again."""
    root = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    try:
        run(damaged(root / "models", page, filling, cut))
    finally:
        shutil.rmtree(root)


@virtual
async def test_a_folder_that_is_deleted(tmp_path: Path) -> None:
    """All of it goes: what is wanted comes anew and counts, in the next run too."""
    hub, root = hub_of(a=3, b=3, c=3, d=3), tmp_path / "models"
    async with kept(root, hub=hub) as cache:
        await use(cache, "a", "b")
        shutil.rmtree(root)
        await elapse(60)
        await cache.cache.tidy()
        await use(cache, "a", "b", "c")
        await cache.cache.tidy()
        check(cache)
    async with kept(root, hub=hub) as cache:
        assert not any(entry.baked for entry in cache.cache.entries())
        check(cache)
        await use(cache, "d")
        assert "a.safetensors" not in cache.names
        check(cache)


@virtual
async def test_the_server_fetches_something_itself(tmp_path: Path) -> None:
    """It counts as soon as it is seen: the least recently used go, and a transfer under way is still within the cap."""
    hub = hub_of(a=3, b=3, c=3)
    async with kept(tmp_path / "models", hub=hub) as cache:
        await use(cache, "a")
        await use(cache, "b")
        hub.sources["https://models.example/c"].go = going = asyncio.Event()
        job = asyncio.create_task(use(cache, "c"), name="job")
        await elapse(1)
        cache.path("own.safetensors").write_bytes(model("own", 3))
        await elapse(60)
        await cache.cache.tidy()
        assert cache.names == ["b.safetensors", "own.safetensors"]
        going.set()
        await job
        assert cache.names == ["b.safetensors", "own.safetensors", "c.safetensors"]
        check(cache)


@virtual
async def test_more_than_can_be_given_up(tmp_path: Path) -> None:
    """What jobs use stays although the server fetched too much, and goes when they have ended."""
    hub = hub_of(a=3, b=3)
    async with kept(tmp_path / "models", hub=hub) as cache:
        async with cache.cache.provided([want("a"), want("b")]):
            cache.path("own.safetensors").write_bytes(model("own", 9))
            await elapse(60)
            await cache.cache.tidy()
            assert {"a.safetensors", "b.safetensors"} <= set(cache.names)
        await elapse(60)
        await cache.cache.tidy()
        check(cache)


@virtual
async def test_a_clock_that_jumps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the wall clock nor the times of files say what was used last: our own count does, after a restart too."""
    hub = hub_of(a=3, b=3, c=3, d=3)
    async with kept(tmp_path / "models", hub=hub) as cache:
        for year, name in ((2040, "a"), (1971, "b"), (2030, "c"), (2026, "a")):
            monkeypatch.setattr(time, "time", lambda year=year: (year - 1970) * 31_557_600.0)
            await use(cache, name)
    for number, name in enumerate("acb"):
        os.utime(cache.path(f"{name}.safetensors"), (number, number))
    async with kept(tmp_path / "models", hub=hub) as cache:
        assert cache.names == ["b.safetensors", "c.safetensors", "a.safetensors"]
        await use(cache, "d")
        assert next(entry.place for entry in cache.cache.entries()) == place_of("lora", "c.safetensors")
        assert "b.safetensors" not in cache.names
        check(cache)
