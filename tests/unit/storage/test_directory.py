"""The directory driver: whole files only, the first mark wins, old images go."""

from __future__ import annotations

import errno
import os
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from tests.support.storage import AT, a_failure, a_file_artifact, a_job, a_result, an_artifact
from worker.errors import DiskFull, InvalidJob, UploadFailed
from worker.job import Job
from worker.storage.directory import FILE_GONE, IMAGE_GONE, DirectoryStorage, Purged

HOUR = timedelta(hours=1)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "outputs"


def _files(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


def _aged(path: Path, at: datetime) -> None:
    os.utime(path, (at.timestamp(), at.timestamp()))


async def _done(storage: DirectoryStorage, job: Job) -> Path:
    image = await storage.put_artifact(job, an_artifact())
    await storage.put_mark(job, a_result(job, image))
    return Path((image.url or "").removeprefix("file://"))


async def test_files_lie_where_the_contract_says(root: Path) -> None:
    """And nothing else lies there."""
    storage, job = DirectoryStorage(root), a_job(prefix="may")
    await _done(storage, job)
    await storage.put_failure(job, a_failure(job), attempt=2)
    assert _files(root) == {
        f"may/job-1/0-{an_artifact().sha256[:12]}.png",
        "job-1/result.json",
        "job-1/failure-2.json",
    }


async def test_the_url_names_the_file_also_with_blanks(tmp_path: Path) -> None:
    """It is escaped as URIs are."""
    image = await DirectoryStorage(tmp_path / "my outputs").put_artifact(a_job(), an_artifact())
    assert (image.url or "").startswith("file:///")
    assert "my%20outputs" in (image.url or "")


async def test_a_relative_root_is_fixed_when_it_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A later change of the working directory moves nothing."""
    monkeypatch.chdir(tmp_path)
    storage = DirectoryStorage(Path("outputs"))
    monkeypatch.chdir("/")
    await storage.put_artifact(a_job(), an_artifact())
    assert len(_files(tmp_path / "outputs")) == 1


async def test_no_id_leads_out_of_the_folder(root: Path) -> None:
    """Not even one that never went through the document's own check."""
    job = a_job().model_copy(update={"id": "../../etc"})
    with pytest.raises(InvalidJob):
        await DirectoryStorage(root).put_artifact(job, an_artifact())
    with pytest.raises(InvalidJob):
        await DirectoryStorage(root).find_mark(job)
    assert _files(root.parent) == set()


async def test_a_full_disk_is_the_nodes(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is named, and nothing half-written stays."""

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    os.makedirs(root / "job-1")  # noqa: PTH103
    storage = DirectoryStorage(root)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskFull):
        await storage.put_artifact(a_job(), an_artifact())
    with pytest.raises(DiskFull):
        await storage.put_mark(a_job(), a_result(a_job()))
    assert _files(root) == set()


async def test_a_folder_that_cannot_be_written_is_a_failed_upload(tmp_path: Path) -> None:
    """Here a file stands in its place."""
    (tmp_path / "outputs").write_text("in the way")
    storage = DirectoryStorage(tmp_path / "outputs")
    for failing in (storage.put_artifact(a_job(), an_artifact()), storage.find_mark(a_job()), storage.check()):
        with pytest.raises(UploadFailed, match="outputs"):
            await failing


@pytest.mark.parametrize("code", [errno.EPERM, errno.ENOTSUP])
async def test_without_hard_links_the_mark_is_still_written_whole(root: Path, code: int) -> None:
    """Some network file systems have none; then the look-up right before decides."""

    def no_links(source: Path, target: Path) -> None:
        raise OSError(code, os.strerror(code))

    storage, job = DirectoryStorage(root, link=no_links), a_job()
    await storage.put_mark(job, a_result(job, worker="first"))
    assert (await storage.put_mark(job, a_result(job, worker="late"))).worker.id == "first"
    assert _files(root) == {"job-1/result.json"}


async def test_a_link_that_fails_otherwise_is_told(root: Path) -> None:
    """A mark is never claimed that was not written."""

    def broken(source: Path, target: Path) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    storage = DirectoryStorage(root, link=broken)
    with pytest.raises(UploadFailed):
        await storage.put_mark(a_job(), a_result(a_job()))
    assert _files(root) == set()


async def test_a_success_that_came_in_between_wins(root: Path) -> None:
    """The link finds it, though the look-up did not."""
    job = a_job()

    def overtaken(source: Path, target: Path) -> None:
        target.write_bytes(a_result(job, worker="faster").to_json())
        os.link(source, target)

    stands = await DirectoryStorage(root, link=overtaken).put_mark(job, a_result(job))
    assert stands.worker.id == "faster"


async def test_old_images_are_purged_and_results_stay(root: Path) -> None:
    """Only images older than the time to keep them."""
    storage = DirectoryStorage(root, keep=HOUR)
    old, new = await _done(storage, a_job("old")), await _done(storage, a_job("new"))
    now = AT + timedelta(days=1)
    _aged(old, now - HOUR - timedelta(seconds=1))
    _aged(new, now - HOUR + timedelta(seconds=1))
    _aged(root / "old" / "result.json", AT)
    assert await storage.purge(now) == Purged(artifacts=1, bytes=len(an_artifact().data))
    assert _files(root) == {"old/result.json", "new/result.json", f"new/{new.name}"}


async def test_without_a_time_to_keep_images_stay_for_ever(root: Path) -> None:
    """But not what a dead process left half-written."""
    storage = DirectoryStorage(root)
    image = await _done(storage, a_job())
    orphan, fresh = root / "job-1" / f".{'a' * 32}.tmp", root / "job-1" / f".{'b' * 32}.tmp"
    orphan.write_bytes(b"half")
    fresh.write_bytes(b"half")
    now = AT + timedelta(days=400)
    _aged(image, AT)
    _aged(orphan, now - 2 * HOUR)
    _aged(fresh, now)
    assert await storage.purge(now) == Purged(orphans=1)
    assert _files(root) == {"job-1/result.json", f"job-1/{image.name}", f"job-1/{fresh.name}"}


async def test_files_of_others_are_not_purged(root: Path) -> None:
    """Whatever an operator keeps beside the images."""
    storage = DirectoryStorage(root, keep=HOUR)
    await storage.put_artifact(a_job(), an_artifact())
    for name in ("notes.txt", "0-photo.png", "portrait.png"):
        (root / name).write_text("mine")
        _aged(root / name, AT)
    assert (await storage.purge(AT + timedelta(days=1))).artifacts == 0
    assert {"notes.txt", "0-photo.png", "portrait.png"} < _files(root)


async def test_a_folder_that_is_not_there_yet_has_nothing_to_purge(root: Path) -> None:
    """The daemon may purge before its first job."""
    assert await DirectoryStorage(root, keep=HOUR).purge(AT) == Purged()


async def test_a_result_whose_images_were_purged_says_so(root: Path) -> None:
    """A link is never given to what is not there."""
    storage, job = DirectoryStorage(root, keep=HOUR), a_job()
    await _done(storage, job)
    await storage.purge(AT + timedelta(days=10_000))
    found = await storage.find_mark(job)
    assert found is not None
    assert (found.images[0].url, found.warnings) == (None, (IMAGE_GONE,))
    assert found.images[0].key


async def test_files_are_purged_and_missed_like_images(root: Path) -> None:
    """A result that named a video and an image says of each that it is gone."""
    storage, job = DirectoryStorage(root, keep=HOUR), a_job()
    image = await storage.put_artifact(job, an_artifact(0))
    file = await storage.put_artifact(job, a_file_artifact(1))
    await storage.put_mark(job, a_result(job, image, files=(file,)))
    whole = await storage.find_mark(job)
    assert whole is not None
    assert (whole.files[0].url, whole.warnings) == (file.url, ())
    size = len(an_artifact().data) + len(a_file_artifact().data)
    assert await storage.purge(AT + timedelta(days=10_000)) == Purged(artifacts=2, bytes=size)
    found = await storage.find_mark(job)
    assert found is not None
    assert (found.files[0].url, found.files[0].key) == (None, file.key)
    assert found.warnings == (IMAGE_GONE, FILE_GONE)
