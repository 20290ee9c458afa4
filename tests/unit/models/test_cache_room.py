"""Room for models: what is evicted and what never, a disk that is full, and what the server holds."""

from __future__ import annotations

import asyncio
import random
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from structlog.testing import capture_logs

from tests.support.cache import HOST, KB, FakeServer, FakeTally, Kept, content, kept, wanted
from tests.support.made import safetensors
from tests.support.virtual import elapse, virtual
from worker.clock import CorrectedClock, SystemClock
from worker.errors import DiskFull, DownloadFailed, ModelInUse, ModelNotFound, ModelTooLarge
from worker.mentions import Place
from worker.models.base import Wanted
from worker.models.cache import Cache
from worker.models.none import NoCache
from worker.models.open import open_cache
from worker.settings.groups import Settings
from worker.settings.models import ModelsSettings
from worker.urls import Guard

NOW = timedelta(0)


def place(name: str) -> Place:
    return Place("lora", f"{name}.safetensors")


def has(cache: Kept, name: str, blocks: int) -> Wanted:
    cache.hub.has(name, content(name, blocks * KB))
    return wanted(f"{name}.safetensors", at=name)


async def there(cache: Kept, *names: str, blocks: int = 3) -> None:
    for name in names:
        await cache.cache.fetch(has(cache, name, blocks))


def stems(cache: Kept) -> str:
    return " ".join(name.removesuffix(".safetensors") for name in cache.names)


@virtual
async def test_the_least_recently_used_goes(tmp_path: Path) -> None:
    """As many as are needed, the longest unused first; the version tells that files went."""
    async with kept(tmp_path / "m") as cache:
        await there(cache, "a", "b", "c")
        before = cache.cache.version
        await there(cache, "d")
        assert stems(cache) == "b c d"
        assert cache.cache.version == before + 2
        assert cache.tally.evicted == 1
        assert cache.cache.bytes == cache.written() == 9 * KB
        assert (cache.cache.cap, cache.cache.free) == (10 * KB, KB)


@virtual
async def test_too_large_evicts_nothing(tmp_path: Path) -> None:
    """A set that can never fit is refused while everything is still there, before a byte is fetched."""
    async with kept(tmp_path / "m") as cache:
        await there(cache, "a", "b", "c")
        big = [has(cache, "x", 6), has(cache, "y", 6)]
        with pytest.raises(ModelTooLarge):
            async with cache.cache.provided(big):
                pass
        assert stems(cache) == "a b c"
        assert cache.hub.fetches.total() == 3


@virtual
async def test_what_the_server_holds_stays(tmp_path: Path) -> None:
    """A loaded file is not evicted while others will do."""
    async with kept(tmp_path / "m") as cache:
        await there(cache, "a", "b", "c")
        cache.server.held = {place("a")}
        await there(cache, "d")
        assert stems(cache) == "a c d"
        assert cache.server.unloaded == []


@virtual
async def test_the_server_lets_go_when_it_must(tmp_path: Path) -> None:
    """A model that only the server still holds is unloaded, then evicted, instead of being waited for."""
    async with kept(tmp_path / "m") as cache:
        await there(cache, "a", "b", "c")
        cache.server.held = {place("a"), place("b"), place("c"), Place("no such kind!", "x")}
        cache.server.held |= {Place("configs", "x")}
        await cache.cache.fetch(has(cache, "d", 3))
        assert cache.server.unloaded == [frozenset({place("a")})]
        assert stems(cache) == "b c d"


@virtual
async def test_what_was_used_a_moment_ago_may_be_loaded(tmp_path: Path) -> None:
    """The server is asked before anything goes: a model that it loaded since it was asked last is no victim."""
    async with kept(tmp_path / "m") as cache:
        await there(cache, "a", "b", "c")
        async with cache.cache.provided([wanted("a.safetensors"), wanted("b.safetensors")]):
            cache.server.held = {place("c"), place("a")}
        await there(cache, "d")
        assert stems(cache) == "c a d"


@virtual
async def test_a_server_that_clings(tmp_path: Path) -> None:
    """What the server does not let go of is kept, and the error says so; it goes once the server holds another."""
    async with kept(tmp_path / "m") as cache:
        await there(cache, "a", blocks=8)
        cache.server.held = cache.server.clings = {place("a")}
        want = has(cache, "b", 8)
        with pytest.raises(DiskFull, match=r"lora/a\.safetensors cannot be"):
            await cache.cache.fetch(want)
        assert stems(cache) == "a"
        cache.server.held = set()
        await cache.cache.fetch(want)
        assert stems(cache) == "b"


@virtual
async def test_a_full_disk(tmp_path: Path) -> None:
    """The disk and not the cap is short: told as such, nothing evicted in vain, and over when there is space again."""
    space = {"free": KB}
    async with kept(tmp_path / "m", free=lambda _: space["free"]) as cache:
        want = has(cache, "a", 3)
        with pytest.raises(DiskFull):
            await cache.cache.fetch(want)
        with pytest.raises(DiskFull):
            await cache.cache.space()
        space["free"] = 3 * KB
        await cache.cache.space()
        await cache.cache.fetch(want)
        assert stems(cache) == "a"


@virtual
async def test_a_file_that_cannot_be_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It stays counted, nobody's room is promised with it, and it is tried again when space is asked for."""
    async with kept(tmp_path / "m") as cache:
        await there(cache, "a", blocks=8)
        delete = cache.disk.delete

        async def refused(_: Place) -> int:
            raise DownloadFailed("the file system says no")

        monkeypatch.setattr(cache.disk, "delete", refused)
        want = has(cache, "b", 8)
        with capture_logs() as logs, pytest.raises(DiskFull):
            await cache.cache.fetch(want)
        assert [line["model"] for line in logs if line["event"] == "model_stays"] == ["lora/a.safetensors"]
        assert cache.cache.bytes == cache.written() == 8 * KB
        with pytest.raises(DiskFull, match="cannot be deleted"):
            await cache.cache.remove(place("a"))
        monkeypatch.setattr(cache.disk, "delete", delete)
        await cache.cache.space()
        await cache.cache.fetch(want)
        assert stems(cache) == "b"


@virtual
async def test_leftovers_go_first(tmp_path: Path) -> None:
    """What an interrupted transfer left counts, and is given up before any model is."""
    async with kept(tmp_path / "m") as cache:
        await there(cache, "a", "b")
        want = has(cache, "c", 3)
        cache.hub.sources[HOST + "c"].error = DownloadFailed("the host is away")
        with pytest.raises(DownloadFailed):
            await cache.cache.fetch(want)
        assert cache.cache.bytes == cache.written() == 7 * KB
        assert [(one.place, one.done) for one in cache.cache.transfers()] == [(place("c"), KB)]
        await there(cache, "d", blocks=4)
        assert stems(cache) == "a b d"
        assert cache.written() == 10 * KB
        assert cache.cache.transfers() == ()


@virtual
async def test_a_leftover_that_cannot_be_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It stays counted; a model goes instead of it."""
    async with kept(tmp_path / "m") as cache:
        await there(cache, "a", "b")
        want = has(cache, "c", 3)
        cache.hub.sources[HOST + "c"].error = DownloadFailed("the host is away")
        with pytest.raises(DownloadFailed):
            await cache.cache.fetch(want)

        async def refused(_: Place) -> int:
            raise DownloadFailed("the file system says no")

        monkeypatch.setattr(cache.disk, "drop", refused)
        with capture_logs() as logs:
            await cache.cache.space()
            cache.carrier.room.clear((), [place("c")])
            await cache.carrier.room.cleared()
        assert [line["event"] for line in logs] == ["model_stays"]
        assert cache.cache.bytes == cache.written() == 7 * KB


@virtual
async def test_what_the_server_fetches_counts(tmp_path: Path) -> None:
    """Files that came without us are taken up and what is too much goes, before anybody asks for room."""
    async with kept(tmp_path / "m") as cache:
        await there(cache, "a", "b", "c")
        cache.path("own.safetensors").write_bytes(safetensors(bytes(2 * KB)))
        await cache.cache.tidy(NOW)
        assert stems(cache) == "b c own"
        assert cache.cache.bytes == cache.written() <= 10 * KB
        cache.caps["cap"] = 5 * KB
        tidying = asyncio.create_task(cache.cache.keep())
        await elapse(31)
        assert stems(cache) == "own"
        tidying.cancel()


@virtual
async def test_tidying_goes_on_after_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The service notes what went wrong and tries again later."""
    async with kept(tmp_path / "m") as cache:
        tidied: list[timedelta] = []

        async def failing(older_than: timedelta) -> bool:
            tidied.append(older_than)
            raise DownloadFailed("the disk cannot be read")

        monkeypatch.setattr(cache.disk, "refresh", failing)
        with capture_logs() as logs:
            tidying = asyncio.create_task(cache.cache.keep())
            await elapse(61)
        tidying.cancel()
        assert len(tidied) == 2
        assert [line["event"] for line in logs] == ["models_not_tidied"] * 2


@virtual
async def test_removing(tmp_path: Path) -> None:
    """A model goes when it is told to, unless a job or the server has it; one that is not there is not found."""
    async with kept(tmp_path / "m") as cache:
        await there(cache, "a")
        async with cache.cache.provided([wanted("a.safetensors")]):
            with pytest.raises(ModelInUse, match="by a job"):
                await cache.cache.remove(place("a"))
        cache.server.held = {place("a")}
        with pytest.raises(ModelInUse, match="image server"):
            await cache.cache.remove(place("a"))
        cache.server.held = set()
        before = cache.cache.version
        await cache.cache.remove(Place("loras", "a.safetensors"))
        assert cache.names == []
        assert cache.cache.version > before
        with pytest.raises(ModelNotFound):
            await cache.cache.remove(place("a"))


@virtual
async def test_a_file_that_is_just_going_is_not_used(tmp_path: Path) -> None:
    """Who wants a model that is being deleted gets it anew."""
    async with kept(tmp_path / "m") as cache:
        await there(cache, "a")
        want = wanted("a.safetensors", at="a")
        removing = asyncio.create_task(cache.cache.remove(place("a")))
        while place("a") not in cache.carrier.books.leaving:
            await elapse(0)
        async with cache.cache.provided([want]):
            assert cache.path("a.safetensors").exists()
        await removing
        assert cache.hub.fetches[HOST + "a"] == 2


@virtual
async def test_no_space_for_the_landing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that fills up under a transfer ends it as such; nothing stays pinned or promised."""
    async with kept(tmp_path / "m") as cache:

        async def full(*_: Any) -> None:
            raise DiskFull("no space left on device")

        monkeypatch.setattr(cache.disk, "land", full)
        with pytest.raises(DiskFull):
            await cache.cache.fetch(has(cache, "a", 2))
        assert cache.idle
        assert cache.cache.bytes == cache.written() == 2 * KB


def settings(root: Path | None) -> Settings:
    return Settings(models=ModelsSettings(dir=root, s3_access_key_id="key", s3_secret_access_key=SecretStr("secret")))


async def opened(root: Path | None) -> Cache | NoCache:
    clock = CorrectedClock(SystemClock())
    guard = Guard.from_setting("")
    return await open_cache(settings(root), FakeServer(), FakeTally(), guard=guard, clock=clock, rng=random.Random(1))


async def test_opened_from_settings(tmp_path: Path) -> None:
    """The cache stands on the folder that the settings name, and lets go of it when it is closed."""
    root = tmp_path / "models"
    for folder in ("checkpoints", "loras", "unet"):
        (root / folder).mkdir(parents=True)
    (root / "loras" / "a.safetensors").write_bytes(safetensors())
    for _ in range(2):
        cache = await opened(root)
        assert isinstance(cache, Cache)
        assert [entry.place for entry in cache.entries()] == [place("a")]
        assert (cache.folder, cache.cap) == (root, 48_000_000_000)
        assert await cache.loaded() == frozenset()
        async with cache.provided([wanted("a.safetensors")]) as provided:
            assert provided.places == (place("a"),)
        await cache.aclose()


async def test_no_folder_no_cache() -> None:
    """A server whose models' folder is not on this machine is used as it is."""
    assert isinstance(await opened(None), NoCache)
