"""The disk: what it finds in the folders, at the start and later."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from tests.support.made import safetensors
from tests.support.model_disk import BYTES, NOW, SHA, A, B, C, comfyui_folders, failing, landed, opened, ours, put
from worker.errors import ConfigError, DownloadFailed, InternalError
from worker.mentions import Place
from worker.models import acts
from worker.models.acts import look
from worker.models.base import Wanted
from worker.models.disk import Disk
from worker.models.folders import File, Folders
from worker.models.index import NAME, Transfer, peek
from worker.models.layout import LAYOUTS
from worker.models.measure import RESERVE


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    return comfyui_folders(tmp_path)


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


async def test_known_files_are_not_read_again(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten thousand of them are opened in a second: only new and changed ones show their header."""
    put(folders, A, B)
    read: list[Place] = []
    check = acts.why_unusable

    def noted(place: Place, file: File) -> str:
        read.append(place)
        return check(place, file)

    monkeypatch.setattr(acts, "why_unusable", noted)
    for _ in range(2):
        async with opened(folders) as disk:
            await disk.refresh(NOW)
    assert sorted(read) == [A, B]


async def test_what_another_server_left_is_forgotten(folders: Folders) -> None:
    """A folder may be given to a server that has no such kinds."""
    other = Place("ultralytics", "face.pt")
    async with opened(folders) as disk:
        await landed(disk, A)
        await disk.begin(other, "key", Wanted(*other))
    async with opened(Folders(folders.root, LAYOUTS["a1111"])) as disk:
        assert (dict(disk.entries), await disk.left()) == ({}, ())


async def test_a_folder_that_cannot_be_written_can_be_served(tmp_path: Path) -> None:
    """Nothing is recorded, so that each run is the first."""
    folders = comfyui_folders(tmp_path)
    put(folders, A)
    folders.ours.write_bytes(b"in the way")
    for _ in range(2):
        async with opened(folders) as disk:
            assert disk.entries[A].baked
