"""Stores behind a job's own URLs that fail or refuse: the job is told, and nobody's intake pauses."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

from tests.support.faulty import Answer, Deed, FaultyProxy, faulty_proxy
from tests.support.s3 import Bucket
from tests.support.storage import SWIFT, a_file_artifact, a_job, a_result, an_artifact
from worker import http
from worker.errors import InvalidJob, Owner, UploadFailed, UploadForbidden, UrlForbidden
from worker.job import Job
from worker.storage.presigned import PresignedStorage
from worker.urls import Guard

pytest_plugins = ("tests.support.s3_fixtures",)


@pytest.fixture
async def proxy(rclone_bucket: Bucket) -> AsyncIterator[FaultyProxy]:
    """In front of the store that signed the job's URLs."""
    async with faulty_proxy(rclone_bucket.endpoint_url) as proxy:
        yield proxy


@pytest.fixture
async def presigned() -> AsyncIterator[PresignedStorage]:
    async with http.client(loopback=True, timeout=timedelta(seconds=5)) as client:
        yield PresignedStorage(client, Guard.from_setting("127.0.0.1"), rng=random.Random(1), policy=SWIFT)


def _job(proxy: FaultyProxy, bucket: Bucket, *, images: int = 1) -> Job:
    behind = Bucket(proxy.url, bucket.name)
    return a_job(
        upload_urls=[behind.presigned("put_object", f"{index}.png") for index in range(images)],
        result_urls={"put": behind.presigned("put_object", "r.json"), "get": behind.presigned("get_object", "r.json")},
    )


async def test_a_jobs_store_that_fails_for_a_while_is_waited_for(
    presigned: PresignedStorage, proxy: FaultyProxy, rclone_bucket: Bucket
) -> None:
    """As with the operator's."""
    job = _job(proxy, rclone_bucket)
    proxy.first(1, Answer(503))
    image = await presigned.put_artifact(job, an_artifact())
    assert rclone_bucket.read("0.png") == an_artifact().data
    assert image.url == f"{proxy.url}/{rclone_bucket.name}/0.png"


@pytest.mark.parametrize("deed", [Answer(500), Answer(429), "cut", "lose"])
async def test_a_jobs_store_that_fails_is_the_jobs(
    presigned: PresignedStorage, proxy: FaultyProxy, rclone_bucket: Bucket, deed: Deed
) -> None:
    """Such a failure pauses nobody's intake."""
    job = _job(proxy, rclone_bucket)
    proxy.first(99, deed)
    with pytest.raises(UploadFailed, match=r"output\.upload_urls\.0") as caught:
        await presigned.put_artifact(job, an_artifact())
    assert caught.value.owner is Owner.JOB
    assert "Signature" not in caught.value.message


@pytest.mark.parametrize("status", [401, 403])
async def test_a_jobs_url_that_refuses_us_ends_the_job(
    presigned: PresignedStorage, proxy: FaultyProxy, rclone_bucket: Bucket, status: int
) -> None:
    """At once, at every one of its URLs."""
    job = _job(proxy, rclone_bucket)
    proxy.deed = lambda asked: Answer(status)
    with pytest.raises(UploadForbidden, match=r"upload_urls\.0"):
        await presigned.put_artifact(job, an_artifact())
    with pytest.raises(UploadForbidden, match=r"result_urls\.get"):
        await presigned.find_mark(job)
    proxy.first(1, Answer(status))
    with pytest.raises(UploadForbidden, match=r"result_urls\.put"):
        await presigned.put_mark(job, a_result(job))
    assert proxy.methods() == ["PUT", "GET", "GET", "PUT"]


@pytest.mark.parametrize("answer", [Answer(404), Answer(302, b"", {"Location": "http://169.254.169.254/"})])
async def test_a_jobs_url_that_can_never_work_is_invalid(
    presigned: PresignedStorage, proxy: FaultyProxy, rclone_bucket: Bucket, answer: Answer
) -> None:
    """No redirect is followed, and no GPU runs again for it."""
    job = _job(proxy, rclone_bucket)
    proxy.deed = lambda asked: answer
    with pytest.raises(InvalidJob, match=rf"output\.upload_urls\.0: answered {answer.status}"):
        await presigned.put_artifact(job, an_artifact())
    assert proxy.methods() == ["PUT"]


async def test_a_long_video_arrives_whole_with_its_length(
    presigned: PresignedStorage, proxy: FaultyProxy, rclone_bucket: Bucket
) -> None:
    """It is sent in pieces, but not chunked, which stores refuse; a retry begins at its beginning."""
    job = _job(proxy, rclone_bucket)
    artifact = a_file_artifact(0, size=3_500_000)
    proxy.first(1, "lose")
    await presigned.put_artifact(job, artifact)
    assert rclone_bucket.read("0.png") == artifact.data
    assert [asked.headers["content-length"] for asked in proxy.seen] == [str(len(artifact.data))] * 2
    assert not any("transfer-encoding" in asked.headers for asked in proxy.seen)
    assert {asked.headers["content-type"] for asked in proxy.seen} == {"video/mp4"}


async def test_a_jobs_private_url_is_not_visited(proxy: FaultyProxy, rclone_bucket: Bucket) -> None:
    """Unless the operator allows it."""
    job = _job(proxy, rclone_bucket)
    guard = Guard.from_setting("")
    async with guard.client() as client:
        storage = PresignedStorage(client, guard, rng=random.Random(1), policy=SWIFT)
        with pytest.raises(UrlForbidden):
            await storage.put_artifact(job, an_artifact())
    assert proxy.seen == []


async def test_an_answer_without_end_is_not_read(
    presigned: PresignedStorage, proxy: FaultyProxy, rclone_bucket: Bucket
) -> None:
    """What a job's URL answers is bounded."""
    job = _job(proxy, rclone_bucket)
    proxy.deed = lambda asked: Answer(200, b"", {"Content-Length": str(2**40)})
    with pytest.raises(InvalidJob, match="has more than"):
        await presigned.find_mark(job)


async def test_a_jobs_mark_in_a_race_that_leaves_none_is_a_failure(
    presigned: PresignedStorage, proxy: FaultyProxy, rclone_bucket: Bucket
) -> None:
    """A 412 for something that is no success is not taken for one."""
    job = _job(proxy, rclone_bucket)
    proxy.first(99, Answer(412))
    with pytest.raises(UploadFailed, match="no success stands there"):
        await presigned.put_mark(job, a_result(job))
