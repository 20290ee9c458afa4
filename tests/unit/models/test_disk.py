"""The disk: how files come and go, and in which order they were used."""

from __future__ import annotations

import asyncio
import errno
from pathlib import Path
from typing import Any

import pytest

from tests.support.made import safetensors
from tests.support.model_disk import BYTES, NOW, SHA, A, B, C, comfyui_folders, failing, landed, opened, ours, put
from tests.support.virtual import elapse, virtual
from worker.errors import ConfigError, DiskFull, DownloadFailed, InvalidJob, ModelCorrupt
from worker.mentions import Place
from worker.models import acts
from worker.models.base import Entry, Wanted
from worker.models.disk import FLUSH
from worker.models.folders import Folders
from worker.models.index import peek


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    return comfyui_folders(tmp_path)


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
        await elapse(FLUSH.total_seconds() * 2)
        await disk.learn(B, url="https://x/in-the-same-thread")
        disk.touch(A)
        assert [entry.place for entry in peek(folders.ours).entries] == [A, B]
        await elapse(FLUSH.total_seconds() * 2)
        await disk.learn(B, url="https://x/in-the-same-thread")
        assert [entry.place for entry in peek(folders.ours).entries] == [B, A]


@virtual
async def test_a_look_is_not_repeated_all_the_time(folders: Folders) -> None:
    """Who asks often gets what the last look found, until it is old."""
    async with opened(folders) as disk:
        put(folders, A)
        assert not await disk.refresh()
        await elapse(3600)
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
