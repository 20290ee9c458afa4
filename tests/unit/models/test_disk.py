"""The disk: what is on it, in which order, and how files come and go."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.support.made import safetensors
from tests.support.virtual import virtual
from worker.errors import ConfigError, DiskFull, DownloadFailed, InternalError, InvalidJob, ModelCorrupt
from worker.mentions import Place
from worker.models import acts
from worker.models.acts import look
from worker.models.base import Entry, Wanted
from worker.models.disk import FLUSH, Disk
from worker.models.folders import Folders
from worker.models.index import NAME, Transfer, peek
from worker.models.layout import LAYOUTS
from worker.models.measure import RESERVE

BYTES = safetensors()
A, B, C = (Place("lora", f"{name}.safetensors") for name in "abc")
NOW = timedelta(0)
SHA = "ab" * 32


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    (tmp_path / "ComfyUI" / "models").mkdir(parents=True)
    return Folders(tmp_path / "ComfyUI" / "models", LAYOUTS["comfyui"])


def put(folders: Folders, *places: Place, content: bytes = BYTES) -> None:
    """Files that somebody else wrote."""
    for place in places:
        path = folders.path(place)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


@asynccontextmanager
async def opened(folders: Folders, **more: Any) -> AsyncIterator[Disk]:
    disk = await Disk.open(folders, **more)
    try:
        yield disk
    finally:
        await disk.aclose()


async def landed(disk: Disk, place: Place, content: bytes = BYTES, url: str = "https://x/y") -> Entry:
    """A file that we fetched."""
    partial = await disk.begin(place, SHA, Wanted(*place, url=url))
    partial.write_bytes(content)
    return await disk.land(partial, Entry(place, len(content), 0, SHA, frozenset({url})))


def ours(folders: Folders) -> list[str]:
    """All files in the folders but for the worker's own."""
    found = (path for path in folders.root.rglob("*") if path.is_file() and folders.ours not in path.parents)
    return sorted(str(path.relative_to(folders.root)) for path in found)


async def test_what_is_there_at_the_first_run_is_baked(folders: Folders) -> None:
    """It is served and listed, and counts nothing; so it stays when the container starts again."""
    put(folders, A, B)
    for _ in range(2):
        async with opened(folders) as disk:
            assert {entry.place: entry.baked for entry in disk.entries.values()} == {A: True, B: True}
            assert disk.counted == 0


async def test_what_comes_later_counts(folders: Folders) -> None:
    """The server's own downloads too, found at the next start or at the next look; nobody knows their hash."""
    put(folders, A)
    async with opened(folders) as disk:
        put(folders, B)
        assert (await disk.refresh(NOW)).added == (B,)
        assert (disk.entries[B].baked, disk.entries[B].sha256, disk.counted) == (False, None, len(BYTES))
    put(folders, C)
    async with opened(folders) as disk:
        assert (list(disk.entries), disk.counted) == ([A, B, C], 2 * len(BYTES))


async def test_a_file_lands_with_all_that_is_known_of_it(folders: Folders) -> None:
    """Under its own name, as the last one used, counted once, and nothing else stays behind."""
    async with opened(folders) as disk:
        partial = await disk.begin(A, SHA, Wanted(*A))
        partial.with_name(f"{partial.name}.json").write_text("{}")
        partial.write_bytes(BYTES)
        entry = await disk.land(partial, Entry(A, len(BYTES), 0, SHA, frozenset({"https://x/y"})))
        assert disk.entries[A] == entry
        assert (entry.sha256, entry.urls, entry.size, entry.baked) == (
            SHA,
            frozenset({"https://x/y"}),
            len(BYTES),
            False,
        )
        assert entry.mtime_ns == folders.path(A).stat().st_mtime_ns
        assert (disk.counted, await disk.left(), ours(folders)) == (len(BYTES), (), ["loras/a.safetensors"])
    async with opened(folders) as disk:
        assert dict(disk.entries) == {A: entry}


async def test_a_file_that_lands_on_another_replaces_it(folders: Folders) -> None:
    """The bytes count once, also when the other one was baked or was no model at all."""
    put(folders, A)
    put(folders, B, content=BYTES[:20])
    async with opened(folders) as disk:
        assert set(disk.unusable) == {B}
        for place in (A, A, B):
            await landed(disk, place)
        assert disk.counted == 2 * len(BYTES)
        await disk.refresh(NOW)
        assert (disk.counted, disk.unusable) == (2 * len(BYTES), {})


async def test_a_file_of_another_size_does_not_land(folders: Folders) -> None:
    """What lies at the partial file is not what was verified."""
    async with opened(folders) as disk:
        partial = await disk.begin(A, SHA, Wanted(*A))
        with pytest.raises(ModelCorrupt, match="has 0 bytes"):
            await disk.land(partial, Entry(A, 5, 0))
        assert (dict(disk.entries), len(await disk.left())) == ({}, 1)


async def test_a_deleted_file_is_gone_and_its_bytes_are_free(folders: Folders) -> None:
    """With the folder that nothing is left in; deleting what is gone is no failure."""
    deep = Place("lora", "styles/deep/x.safetensors")
    async with opened(folders) as disk:
        await landed(disk, deep)
        assert await disk.delete(deep) == len(BYTES)
        assert (dict(disk.entries), disk.counted) == ({}, 0)
        assert list(folders.folder("lora").iterdir()) == []
        await landed(disk, A)
        folders.path(A).unlink()
        assert await disk.delete(A) == len(BYTES)
        assert await disk.delete(A) == 0
        assert disk.counted == 0
    assert peek(folders.ours).entries == ()


async def test_a_file_that_cannot_be_deleted_stays_counted(folders: Folders) -> None:
    """Its bytes are there: nothing may be written in their place."""
    async with opened(folders) as disk:
        entry = await landed(disk, A)
        folders.path(A).unlink()
        folders.path(A).mkdir()
        with pytest.raises((DownloadFailed, ConfigError)):
            await disk.delete(A)
        assert (dict(disk.entries), disk.counted) == ({A: entry}, len(BYTES))


async def test_a_link_is_served_and_never_counted(folders: Folders, tmp_path: Path) -> None:
    """Deleting it deletes the link alone, and what lands in its place leaves the file that it led to."""
    target = tmp_path / "elsewhere.safetensors"
    target.write_bytes(BYTES)
    async with opened(folders) as disk:
        folders.folder("lora").mkdir(parents=True)
        for place in (A, B):
            folders.path(place).symlink_to(target)
        await disk.refresh(NOW)
        assert (set(disk.entries), disk.counted) == ({A, B}, 0)
        assert await disk.delete(A) == 0
        await landed(disk, B, safetensors(bytes(64)))
        assert (set(disk.entries), target.read_bytes()) == ({B}, BYTES)
        assert not folders.path(B).is_symlink()


async def test_changes_behind_our_back_are_noticed(folders: Folders) -> None:
    """A missing file is forgotten; another size or time means other bytes, whose hash nobody knows; what is no model
    any more is not served."""
    put(folders, C)
    async with opened(folders) as disk:
        for place in (A, B):
            await landed(disk, place)
        folders.path(A).unlink()
        put(folders, B, content=safetensors(bytes(64)))
        os.utime(folders.path(C), ns=(1, 1))
        changes = await disk.refresh(NOW)
        assert (set(changes.gone), set(changes.changed)) == ({A}, {B, C})
        assert (disk.entries[B].sha256, disk.entries[B].urls) == (None, frozenset())
        assert not disk.entries[C].baked
        assert disk.counted == len(safetensors(bytes(64))) + len(BYTES)
        put(folders, B, content=BYTES[:40])
        assert (await disk.refresh(NOW)).gone == (B,)
        assert (set(disk.entries), set(disk.unusable), disk.counted) == ({C}, {B}, len(BYTES))
        assert not await disk.refresh(NOW)


@pytest.mark.parametrize("content", [b"", BYTES[:30], b"<html>Sign in</html>"])
async def test_a_broken_file_is_never_served(folders: Folders, content: bytes) -> None:
    """Whoever left it; the reason is kept, and its bytes count as something else that was written."""
    async with opened(folders) as disk:
        put(folders, A, content=content)
        await disk.refresh(NOW)
        assert dict(disk.entries) == {}
        assert A.name in disk.unusable[A]
        assert disk.others == len(content)


async def test_uses_order_the_entries(folders: Folders) -> None:
    """The least recently used first, across restarts; an unknown place is no use."""
    put(folders, A, B, C)
    async with opened(folders) as disk:
        for place in (C, A, B, A, Place("lora", "none")):
            disk.touch(place)
        assert list(disk.entries) == [C, B, A]
    async with opened(folders) as disk:
        assert list(disk.entries) == [C, B, A]
        await landed(disk, Place("vae", "v.safetensors"))
        disk.touch(C)
        assert [place.kind for place in disk.entries] == ["lora", "lora", "vae", "lora"]


@virtual
async def test_uses_reach_the_disk_in_seconds(folders: Folders) -> None:
    """So that a kill forgets little; many uses are one write."""
    async with opened(folders) as disk:
        for place in (A, B):
            await landed(disk, place)
        await asyncio.sleep(FLUSH.total_seconds() * 2)
        await disk.learn(B, url="https://x/in-the-same-thread")
        disk.touch(A)
        assert [entry.place for entry in peek(folders.ours).entries] == [A, B]
        await asyncio.sleep(FLUSH.total_seconds() * 2)
        await disk.learn(B, url="https://x/in-the-same-thread")
        assert [entry.place for entry in peek(folders.ours).entries] == [B, A]


@virtual
async def test_a_look_is_not_repeated_all_the_time(folders: Folders) -> None:
    """Who asks often gets what the last look found, until it is old."""
    async with opened(folders) as disk:
        put(folders, A)
        assert not await disk.refresh()
        await asyncio.sleep(3600)
        assert (await disk.refresh()).added == (A,)


async def test_what_is_learnt_is_kept(folders: Folders) -> None:
    """A hash and further URLs, without counting as a use; of an unknown file there is nothing to learn."""
    put(folders, A, B)
    async with opened(folders) as disk:
        await disk.learn(A, sha256=SHA)
        await disk.learn(A, url="https://x/1")
        await disk.learn(Place("loras", A.name), url="https://x/2")
        assert list(disk.entries) == [A, B]
        assert await disk.learn(C, sha256=SHA) is None
    async with opened(folders) as disk:
        assert (disk.entries[A].sha256, disk.entries[A].urls) == (SHA, frozenset({"https://x/1", "https://x/2"}))
        assert disk.entries[A].baked


async def test_what_a_transfer_left_survives_a_restart(folders: Folders) -> None:
    """With what it was for; what nobody recorded is deleted, as are records without a file."""
    wanted = Wanted("loras", A.name, url="https://x/a", sha256=SHA, size=9)
    async with opened(folders) as disk:
        partial = await disk.begin(wanted.place, "key", wanted)
        partial.write_bytes(b"1234")
        partial.with_name(f"{partial.name}.json").write_text("{}")
        assert await disk.begin(A, "key", wanted) == partial
        (await disk.begin(B, "key", Wanted(*B))).unlink()
        for name in (".x.safetensors.0123abcd.part", ".x.safetensors.0123abcd.part.json"):
            partial.with_name(name).write_bytes(b"stale")
    async with opened(folders) as disk:
        (left,) = await disk.left()
        assert (left.place, left.key, left.wanted, left.path, left.size) == (A, "key", wanted, partial, 4)
        assert ours(folders) == sorted(f"loras/{partial.name}{end}" for end in ("", ".json"))
        partial.unlink()
        assert (await disk.left())[0].size == 0
    assert peek(folders.ours).transfers == left_of(A, wanted)
    async with opened(folders) as disk:
        assert (await disk.left(), ours(folders)) == ((), [])


def left_of(place: Place, wanted: Wanted) -> Any:
    return (Transfer(place, "key", wanted),)


async def test_another_transfer_for_a_place_begins_anew(folders: Folders) -> None:
    """Its bytes are others; what is dropped is gone with all that lay beside it."""
    async with opened(folders) as disk:
        first = await disk.begin(A, "one", Wanted(*A))
        first.write_bytes(b"12345")
        second = await disk.begin(A, "two", Wanted(*A))
        assert (first.exists(), second.read_bytes()) == (False, b"")
        second.write_bytes(b"123")
        second.with_name(f"{second.name}.json").write_text("{}")
        assert await disk.drop(A) == 3
        assert (await disk.drop(A), await disk.left(), ours(folders)) == (0, (), [])


async def test_a_second_worker_may_not_have_the_folder(folders: Folders) -> None:
    """Two would evict what the other one uses. Who only looks may; and when the first has gone, the next has it."""
    put(folders, A)
    async with opened(folders):
        with pytest.raises(ConfigError, match="in use by another"):
            await Disk.open(folders)
        assert [entry.place for entry in look(folders)] == [A]
    async with opened(folders) as disk:
        assert list(disk.entries) == [A]


async def test_a_closed_disk_does_nothing_more(folders: Folders) -> None:
    """It says so instead of writing to a folder that another one may have by now."""
    disk = await Disk.open(folders)
    await disk.aclose()
    await disk.aclose()
    with pytest.raises(InternalError, match="closed"):
        await disk.begin(A, SHA, Wanted(*A))


async def test_a_damaged_index_costs_hashes_and_no_file(folders: Folders) -> None:
    """The files are ordered by their times then; what came with the image is still known to have."""
    put(folders, C)
    async with opened(folders) as disk:
        for place in (A, B):
            await landed(disk, place)
    os.utime(folders.path(A), ns=(2 * 10**18, 2 * 10**18))
    (folders.ours / NAME).write_bytes(b"garbage" * 1000)
    async with opened(folders) as disk:
        assert {place: entry.baked for place, entry in disk.entries.items()} == {C: True, B: False, A: False}
        assert [place for place in disk.entries if place != C] == [B, A]
        assert disk.counted == 2 * len(BYTES)


async def test_an_index_that_could_not_be_written_is_written_later(folders: Folders, monkeypatch: Any) -> None:
    """No job fails for it: the file is there, and all is recorded when there is room again."""
    async with opened(folders) as disk:
        db = disk._acts.index._db
        assert db is not None
        db.execute("PRAGMA max_page_count = 1")
        for number in range(60):
            await landed(disk, Place("lora", f"{number}{'x' * 200}.safetensors"))
        assert disk._acts.index.behind
        db.execute("PRAGMA max_page_count = 1000000")
    assert len(peek(folders.ours).entries) == 60
    assert all(entry.sha256 == SHA for entry in peek(folders.ours).entries)


async def test_baking_makes_the_next_run_the_first(folders: Folders) -> None:
    """Hashes and URLs come along although an image's layers change the files' times; what else is there by then is
    baked as well."""
    async with opened(folders) as disk:
        await landed(disk, A)
        assert await disk.bake() == 1
    os.utime(folders.path(A), ns=(1, 1))
    put(folders, B)
    assert {entry.place for entry in look(folders) if entry.baked} == {A, B}
    async with opened(folders) as disk:
        entry = disk.entries[A]
        assert (entry.baked, entry.sha256, entry.urls) == (True, SHA, frozenset({"https://x/y"}))
        assert disk.entries[B].baked
        assert disk.counted == 0


async def test_an_unreadable_record_of_the_image_is_ignored(folders: Folders) -> None:
    """The index knows by itself what is baked."""
    put(folders, A)
    for content in (b"{", b'{"version": 2}', b'{"version": 1, "models": [{}], "others": {}}'):
        async with opened(folders) as disk:
            assert disk.entries[A].baked
        (folders.ours / "baked.json").write_bytes(content)


async def test_a_folder_that_cannot_be_read_loses_nothing(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its files may well be there."""
    scandir = os.scandir

    def refuse(folder: Any) -> Any:
        if Path(folder).name == "loras":
            raise OSError(errno.EIO, "Input/output error")
        return scandir(folder)

    async with opened(folders) as disk:
        await landed(disk, A)
        monkeypatch.setattr(os, "scandir", refuse)
        assert not await disk.refresh(NOW)
        assert list(disk.entries) == [A]


@pytest.mark.parametrize(
    ("number", "error"),
    [(errno.ENOSPC, DiskFull), (errno.EDQUOT, DiskFull), (errno.EROFS, ConfigError), (errno.EIO, DownloadFailed)],
)
async def test_trouble_with_the_disk_has_a_name(
    folders: Folders, monkeypatch: pytest.MonkeyPatch, number: int, error: type[Exception]
) -> None:
    """And the partial file stays for the next try."""
    async with opened(folders) as disk:
        partial = await disk.begin(A, SHA, Wanted(*A))
        partial.write_bytes(BYTES)
        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", failing(number))
            with pytest.raises(error, match="loras"):
                await disk.land(partial, Entry(A, len(BYTES), 0, SHA))
        assert (dict(disk.entries), disk.counted) == ({}, 0)
        await disk.land(partial, Entry(A, len(BYTES), 0, SHA))
        assert list(disk.entries) == [A]


def failing(number: int) -> Callable[..., Any]:
    def fail(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    return fail


async def test_a_place_that_cannot_be_is_refused(folders: Folders) -> None:
    """Before anything is written."""
    async with opened(folders) as disk:
        with pytest.raises(InvalidJob):
            await disk.begin(Place("lora", "../x.pt"), SHA, Wanted("lora", "x.pt"))
        assert ours(folders) == []


async def test_a_cancelled_landing_lands(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files and entries never tell different things."""
    began, go = asyncio.Event(), asyncio.Event()
    loop, land = asyncio.get_running_loop(), acts.Acts.land

    def slowly(*args: Any) -> Entry:
        loop.call_soon_threadsafe(began.set)
        asyncio.run_coroutine_threadsafe(go.wait(), loop).result()
        return land(*args)

    async with opened(folders) as disk:
        partial = await disk.begin(A, SHA, Wanted(*A))
        partial.write_bytes(BYTES)
        monkeypatch.setattr(acts.Acts, "land", slowly)
        landing = asyncio.create_task(disk.land(partial, Entry(A, len(BYTES), 0, SHA)), name="landing")
        await began.wait()
        landing.cancel()
        go.set()
        with pytest.raises(asyncio.CancelledError):
            await landing
        assert (list(disk.entries), disk.counted) == ([A], len(BYTES))


async def test_everything_else_that_is_written_is_measured(folders: Folders, tmp_path: Path) -> None:
    """The server's outputs, what lies among the models, and our own images: what came after the first run, once
    each, and what is taken on disk."""
    output = folders.root.parent / "output"
    images = output / "sd-worker"
    for path in (output / "baked.png", folders.root / "LLM" / "repo" / "config.json"):
        path.parent.mkdir(parents=True)
        path.write_bytes(bytes(100_000))
    async with opened(folders, also=[images, tmp_path / "none"]) as disk:
        assert disk.others == 0
        for path in (output / "new.png", images / "1.png", folders.root / "LLM" / "repo" / "model.safetensors"):
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(bytes(40_960))
        os.link(images / "1.png", images / "2.png")
        (output / "link").symlink_to(tmp_path)
        await disk.refresh(NOW)
        assert disk.others == 3 * 40_960
        size = 50_000_000_000
        assert disk.cap(size, size) == size - RESERVE - disk.others
        assert disk.cap(1000, size) == 1000
        assert disk.cap(size, 1000) == 0
    async with opened(folders, also=[images]) as disk:
        assert disk.others == 3 * 40_960


async def test_free_space_is_that_of_the_folder(folders: Folders) -> None:
    """As the file system tells it, or whoever stands in for it; a folder that is gone tells nothing."""
    async with opened(folders) as disk:
        assert 0 < disk.free_bytes() < os.statvfs(folders.root).f_blocks * os.statvfs(folders.root).f_frsize
    async with opened(folders, free=lambda _: 7) as disk:
        assert disk.free_bytes() == 7
    async with opened(folders, free=failing(errno.ENOENT)) as disk:
        with pytest.raises(DownloadFailed):
            disk.free_bytes()
