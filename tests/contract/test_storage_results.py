"""Result documents found by a job's id alone, on every place that keeps them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path

import httpx
import pytest

from tests.support.faulty import faulty_proxy, refusal
from tests.support.s3 import Bucket
from tests.support.s4 import S4Service
from tests.support.storage import a_failure, a_file_artifact, a_job, a_result, an_artifact, an_s3_storage, an_s4_storage
from worker import http
from worker.errors import AuthFailed
from worker.storage import Storages
from worker.storage.base import Archive, Storage
from worker.storage.directory import DirectoryStorage
from worker.storage.inline import InlineStorage
from worker.storage.keys import Keys
from worker.storage.s3 import S3Storage
from worker.storage.s4 import S4Storage

pytest_plugins = ("tests.support.s3_fixtures",)

Kept = DirectoryStorage | S3Storage | S4Storage


@pytest.fixture(params=["directory", "s3", "s4"])
async def storage(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Kept]:
    async with AsyncExitStack() as stack:
        if request.param == "directory":
            yield DirectoryStorage(tmp_path, result_prefix="results")
            return
        if request.param == "s4":
            service = await stack.enter_async_context(S4Service())
            s4 = an_s4_storage(service, keys=Keys(prefix="out", result_prefix="results"))
            stack.push_async_callback(s4.aclose)
            yield s4
            return
        request.getfixturevalue("credentials")
        bucket: Bucket = request.getfixturevalue("moto_bucket")
        s3 = an_s3_storage(bucket.endpoint_url, bucket.name, keys=Keys(prefix="out", result_prefix="results"))
        stack.push_async_callback(s3.aclose)
        yield s3


async def test_a_success_is_found_with_links_that_are_signed_anew(storage: Kept) -> None:
    """It comes before any failure, and what it names can be fetched."""
    job = a_job("job-1")
    await storage.put_failure(job, a_failure(job), 1)
    image = await storage.put_artifact(job, an_artifact())
    file = await storage.put_artifact(job, a_file_artifact())
    await storage.put_mark(job, a_result(job, image.model_copy(update={"url": "https://old"}), files=(file,)))
    found = await storage.find_result("job-1")
    assert found is not None
    assert (found.status, found.images[0].key, len(found.files)) == ("succeeded", image.key, 1)
    url = found.images[0].url
    assert url is not None
    if url.startswith("file:"):
        assert url == image.url
        return
    async with http.client(loopback=True) as client:
        assert (await client.get(url)).status_code == httpx.codes.OK


async def test_of_failures_the_latest_counts(storage: Kept) -> None:
    """By its number, not by its name, where they are of the same time; all of them are found in that order."""
    job = a_job("job-2")
    for attempt in (10, 1, 2):
        await storage.put_failure(job, a_failure(job).model_copy(update={"warnings": (f"attempt {attempt}",)}), attempt)
    found = await storage.find_result("job-2")
    assert found is not None
    assert (found.status, found.warnings) == ("failed", ("attempt 10",))
    told = await storage.find_failures("job-2")
    assert [one.warnings for one in told] == [("attempt 1",), ("attempt 2",), ("attempt 10",)]


async def test_of_failures_of_two_runs_the_later_runs_count(storage: Kept) -> None:
    """Numbers begin anew when a job is put on its queue again, and what an earlier run left behind stays."""
    job = a_job("job-7")
    first = a_failure(job)
    again = {"created_at": first.created_at + timedelta(hours=1), "warnings": ("again",)}
    for attempt in (1, 2, 3):
        await storage.put_failure(job, first, attempt)
    await storage.put_failure(job, first.model_copy(update=again), 1)
    found = await storage.find_result("job-7")
    assert found is not None
    assert found.warnings == ("again",)
    assert [one.warnings for one in await storage.find_failures("job-7")] == [(), (), ("again",)]


async def test_nothing_is_found_of_other_jobs(storage: Kept) -> None:
    """Neither of one that was never here, nor of one whose id begins alike."""
    job = a_job("job-3")
    await storage.put_failure(job, a_failure(job), 1)
    for unknown in ("job", "job-", "job-33", "nobody"):
        assert await storage.find_result(unknown) is None


async def test_what_is_no_result_is_none(tmp_path: Path) -> None:
    """Somebody else's file where ours would be."""
    storage = DirectoryStorage(tmp_path)
    for name, text in (("result.json", "[]"), ("failure-1.json", "{"), ("failure-x.json", "{}")):
        (tmp_path / "job-4").mkdir(exist_ok=True)
        (tmp_path / "job-4" / name).write_text(text)
    assert await storage.find_result("job-4") is None


@pytest.mark.usefixtures("credentials")
async def test_failures_are_found_without_the_right_to_list(moto_bucket: Bucket) -> None:
    """By trying their numbers: the smallest policy that works is enough. Refused credentials are told."""
    job = a_job("job-5")
    keys = Keys(prefix="out")
    async with faulty_proxy(moto_bucket.endpoint_url) as proxy:
        storage = an_s3_storage(proxy.url, moto_bucket.name, keys=keys)
        try:
            await storage.put_failure(job, a_failure(job), 3)
            proxy.deed = lambda asked: refusal(403, "AccessDenied") if "prefix=" in asked.path else "forward"
            found = await storage.find_result("job-5")
            assert found is not None
            assert found.status == "failed"
            assert await storage.find_result("job-6") is None
            proxy.deed = lambda asked: refusal(403, "InvalidAccessKeyId") if "prefix=" in asked.path else "forward"
            with pytest.raises(AuthFailed):
                await storage.find_result("job-6")
        finally:
            await storage.aclose()


def test_archives_are_the_places_that_can_be_asked(tmp_path: Path) -> None:
    """The operator's first; what keeps nothing is none."""
    directory, inline = DirectoryStorage(tmp_path), InlineStorage(1)
    places: Storage = inline
    assert Storages(places, (directory,)).archives == (directory,)
    assert isinstance(directory, Archive)
    assert not isinstance(inline, Archive)
