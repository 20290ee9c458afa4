"""Stores and networks that fail: what is said of it is true, and what is named is whole."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from structlog.testing import capture_logs

from tests.support.faulty import Answer, Asked, Deed, FaultyProxy, faulty_proxy, refusal
from tests.support.s3 import Bucket, set_credentials
from tests.support.storage import PATIENT, SWIFT, a_failure, a_job, a_result, an_artifact, an_s3_storage
from worker.clock import CorrectedClock, SystemClock
from worker.errors import AuthFailed, Owner, UploadFailed
from worker.storage.s3 import S3Storage

pytest_plugins = ("tests.support.s3_fixtures",)
pytestmark = pytest.mark.usefixtures("credentials")

MARK = "out/job-1/result.json"


@pytest.fixture
async def proxy(rclone_bucket: Bucket) -> AsyncIterator[FaultyProxy]:
    """In front of a store that checks signatures and ignores conditions."""
    async with faulty_proxy(rclone_bucket.endpoint_url) as proxy:
        yield proxy


@pytest.fixture
async def honouring(moto_bucket: Bucket) -> AsyncIterator[FaultyProxy]:
    """In front of a store that honours conditions."""
    async with faulty_proxy(moto_bucket.endpoint_url) as proxy:
        yield proxy


@pytest.fixture
async def storage(proxy: FaultyProxy, rclone_bucket: Bucket) -> AsyncIterator[S3Storage]:
    storage = an_s3_storage(proxy.url, rclone_bucket.name)
    yield storage
    await storage.aclose()


async def test_a_store_that_fails_for_a_while_is_waited_for(
    storage: S3Storage, proxy: FaultyProxy, rclone_bucket: Bucket
) -> None:
    """A few 503 cost retries, not the image."""
    proxy.first(3, refusal(503, "SlowDown"))
    image = await storage.put_artifact(a_job(), an_artifact())
    assert rclone_bucket.read(image.key or "") == an_artifact().data


async def test_retry_after_is_honoured(storage: S3Storage, proxy: FaultyProxy) -> None:
    """A wait that the store asks for and that does not fit the budget is not begun: the failure is told at once."""
    proxy.first(1, refusal(503, "SlowDown", **{"Retry-After": "3600"}))
    with pytest.raises(UploadFailed) as caught:
        await storage.put_artifact(a_job(), an_artifact())
    assert caught.value.retry_after == timedelta(hours=1)
    assert proxy.methods() == ["PUT"]


async def test_a_store_that_stays_away_is_a_failed_upload(
    storage: S3Storage, proxy: FaultyProxy, rclone_bucket: Bucket
) -> None:
    """Nothing claims success, and the operator's store is to blame."""
    proxy.first(99, refusal(503, "SlowDown"))
    with pytest.raises(UploadFailed, match="503 SlowDown") as caught:
        await storage.put_artifact(a_job(), an_artifact())
    assert caught.value.owner is Owner.OPERATOR
    assert proxy.methods() == ["PUT"] * SWIFT.attempts
    assert rclone_bucket.keys() == set()


async def test_a_store_that_refuses_connections_is_a_failed_upload() -> None:
    """Nobody listens on port 1."""
    storage = an_s3_storage("http://127.0.0.1:1", "images")
    with pytest.raises(UploadFailed, match="endpoint"):
        await storage.find_mark(a_job())
    await storage.aclose()


async def test_a_connection_cut_in_the_middle_leaves_nothing_named(
    storage: S3Storage, proxy: FaultyProxy, rclone_bucket: Bucket
) -> None:
    """Half an image never stands under its key."""
    proxy.first(99, "cut")
    with pytest.raises(UploadFailed):
        await storage.put_artifact(a_job(), an_artifact())
    assert proxy.cut_bytes > 0
    assert rclone_bucket.keys() == set()
    proxy.first(0, "cut")
    image = await storage.put_artifact(a_job(), an_artifact())
    assert rclone_bucket.read(image.key or "") == an_artifact().data


async def test_a_store_that_hangs_is_a_failed_upload(proxy: FaultyProxy, rclone_bucket: Bucket) -> None:
    """The read timeout ends each try."""
    short = replace(PATIENT, read=timedelta(milliseconds=50), policy=replace(SWIFT, attempts=2))
    storage = an_s3_storage(proxy.url, rclone_bucket.name, patience=short)
    proxy.first(99, "hang")
    with pytest.raises(UploadFailed, match="Read timeout"):
        await storage.put_artifact(a_job(), an_artifact())
    assert len(proxy.seen) == 2
    await storage.aclose()


async def test_a_budget_ends_before_a_long_wait_for_the_network(proxy: FaultyProxy, rclone_bucket: Bucket) -> None:
    """However long a single wait may be, an image has its own limit."""
    storage = an_s3_storage(
        proxy.url,
        rclone_bucket.name,
        patience=replace(PATIENT, read=timedelta(seconds=2), image=timedelta(milliseconds=100)),
    )
    proxy.first(99, "hang")
    with pytest.raises(UploadFailed, match="no success within"):
        await storage.put_artifact(a_job(), an_artifact())
    await storage.aclose()


async def test_a_mark_whose_answer_was_lost_is_found_again(honouring: FaultyProxy, moto_bucket: Bucket) -> None:
    """The retry meets its own mark and settles with it."""
    job, storage = a_job(), an_s3_storage(honouring.url, moto_bucket.name)
    image = await storage.put_artifact(job, an_artifact())
    honouring.first(1, "lose")
    stands = await storage.put_mark(job, a_result(job, image))
    assert stands.status == "succeeded"
    assert honouring.methods("result.json") == ["PUT", "PUT", "GET"]
    assert moto_bucket.keys() == {image.key, MARK}
    await storage.aclose()


async def test_where_the_condition_holds_a_mark_is_one_request(honouring: FaultyProxy, moto_bucket: Bucket) -> None:
    """The first image teaches that the store honours it."""
    job, storage = a_job(), an_s3_storage(honouring.url, moto_bucket.name)
    image = await storage.put_artifact(job, an_artifact())
    await storage.put_mark(job, a_result(job, image))
    assert honouring.methods("result.json") == ["PUT"]
    assert honouring.methods("job-1/0-") == ["PUT", "PUT"]
    await storage.put_artifact(a_job("job-2"), an_artifact())
    assert honouring.methods("job-2/0-") == ["PUT"]
    await storage.aclose()


async def test_where_the_condition_is_ignored_the_mark_is_looked_up_and_read_back(
    storage: S3Storage, proxy: FaultyProxy
) -> None:
    """The look-up comes right before the write."""
    job = a_job()
    image = await storage.put_artifact(job, an_artifact())
    await storage.put_mark(job, a_result(job, image))
    assert proxy.methods("result.json") == ["GET", "PUT", "GET"]
    assert "if-none-match" not in proxy.seen[-2].headers


@pytest.mark.parametrize(("status", "code"), [(501, "NotImplemented"), (400, "InvalidArgument")])
async def test_where_the_condition_is_rejected_the_mark_is_written_without(
    storage: S3Storage, proxy: FaultyProxy, rclone_bucket: Bucket, status: int, code: str
) -> None:
    """Also when it is the mark that meets the rejection first; it is remembered."""

    def rejecting(asked: Asked) -> Deed:
        return refusal(status, code) if "if-none-match" in asked.headers else "forward"

    proxy.deed = rejecting
    for job in (a_job("job-1"), a_job("job-2")):
        await storage.put_mark(job, a_result(job))
        assert await storage.find_mark(job) is not None
    assert ["if-none-match" in asked.headers for asked in proxy.seen if asked.method == "PUT"] == [True, False, False]


async def test_a_denied_look_up_counts_as_absent_with_one_warning(storage: S3Storage, proxy: FaultyProxy) -> None:
    """S3 says 403 of what is absent to whom may not list the bucket."""
    proxy.first(2, refusal(403, "AccessDenied"), method="GET")
    with capture_logs() as logs:
        assert await storage.find_mark(a_job()) is None
        assert await storage.find_mark(a_job()) is None
    assert [entry["event"] for entry in logs if entry["log_level"] == "warning"] == ["storage_lookup_denied"]
    assert len(proxy.seen) == 2


@pytest.mark.parametrize(
    "answer",
    [
        refusal(401, "Unauthorized"),
        refusal(403, "InvalidAccessKeyId"),
        refusal(403, "SignatureDoesNotMatch"),
        refusal(400, "ExpiredToken"),
    ],
)
async def test_refused_credentials_are_the_operators(storage: S3Storage, proxy: FaultyProxy, answer: Answer) -> None:
    """At a look-up and at a write, without a retry."""
    proxy.deed = lambda asked: answer
    with pytest.raises(AuthFailed):
        await storage.find_mark(a_job())
    with pytest.raises(AuthFailed):
        await storage.put_artifact(a_job(), an_artifact())
    assert proxy.methods() == ["GET", "PUT"]


async def test_a_denied_write_is_the_operators(storage: S3Storage, proxy: FaultyProxy) -> None:
    """A policy without s3:PutObject."""
    proxy.deed = lambda asked: refusal(403, "AccessDenied")
    with pytest.raises(AuthFailed, match="AccessDenied"):
        await storage.put_failure(a_job(), a_failure(a_job()), attempt=1)


async def test_a_key_that_the_store_does_not_know_is_refused(
    monkeypatch: pytest.MonkeyPatch, rclone_bucket: Bucket
) -> None:
    """A real store's own word for it."""
    set_credentials(monkeypatch, key="AKIDUNKNOWN12345678")
    storage = an_s3_storage(rclone_bucket.endpoint_url, rclone_bucket.name)
    with pytest.raises(AuthFailed):
        await storage.find_mark(a_job())
    await storage.aclose()


async def test_without_credentials_nothing_is_asked(monkeypatch: pytest.MonkeyPatch, proxy: FaultyProxy) -> None:
    """The standard chain found none."""
    set_credentials(monkeypatch, key=None)
    storage = an_s3_storage(proxy.url, "images")
    with pytest.raises(AuthFailed, match="no usable credentials"):
        await storage.find_mark(a_job())
    assert proxy.seen == []
    await storage.aclose()


async def test_a_bucket_that_does_not_exist_is_a_failed_upload(rclone_bucket: Bucket) -> None:
    """It is not taken for an absent mark."""
    storage = an_s3_storage(rclone_bucket.endpoint_url, "no-such-bucket")
    with pytest.raises(UploadFailed, match="NoSuchBucket"):
        await storage.find_mark(a_job())
    await storage.aclose()


async def test_a_wrong_clock_is_corrected_by_what_the_store_says(proxy: FaultyProxy, rclone_bucket: Bucket) -> None:
    """A request refused for its time is signed again with the store's."""

    class Slow:
        def now(self) -> datetime:
            return SystemClock().now() - timedelta(hours=2)

    clock = CorrectedClock(Slow())
    storage = an_s3_storage(proxy.url, rclone_bucket.name, clock=clock)

    def strict(asked: Asked) -> Deed:
        now = SystemClock().now()
        sent = datetime.strptime(asked.headers["x-amz-date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
        skewed = abs(now - sent) > timedelta(minutes=15)
        date = format_datetime(now.replace(microsecond=0), usegmt=True)
        return refusal(403, "RequestTimeTooSkewed", Date=date) if skewed else "forward"

    proxy.deed = strict
    image = await storage.put_artifact(a_job(), an_artifact())
    assert rclone_bucket.read(image.key or "") == an_artifact().data
    assert abs(clock.offset - timedelta(hours=2)) < timedelta(seconds=30)
    await storage.aclose()


async def test_a_clock_that_no_answer_corrects_is_refused(proxy: FaultyProxy, rclone_bucket: Bucket) -> None:
    """Without a usable date the refusal is the operator's to see."""
    storage = an_s3_storage(proxy.url, rclone_bucket.name)
    proxy.deed = lambda asked: refusal(403, "RequestTimeTooSkewed")
    with pytest.raises(AuthFailed, match="RequestTimeTooSkewed"):
        await storage.find_mark(a_job())
    await storage.aclose()


async def test_a_store_that_kept_something_else_is_found_out(storage: S3Storage, proxy: FaultyProxy) -> None:
    """An ETag that is not the image's hash has the length looked up."""

    def lying(asked: Asked) -> Deed:
        if asked.method == "HEAD":
            return Answer(200, b"", {"Content-Length": "7", "ETag": '"x"'})
        return Answer(200, b"", {"ETag": '"00000000000000000000000000000000"'})

    proxy.deed = lying
    with pytest.raises(UploadFailed, match="3008 bytes were sent, 7 are stored"):
        await storage.put_artifact(a_job(), an_artifact())


@pytest.mark.parametrize(("status", "stored"), [(403, True), (503, False)])
async def test_a_length_that_cannot_be_looked_up(
    storage: S3Storage, proxy: FaultyProxy, status: int, stored: bool
) -> None:
    """A policy without s3:GetObject forgoes the check; a store that fails does not pass it."""

    def encrypting(asked: Asked) -> Deed:
        return Answer(status) if asked.method == "HEAD" else Answer(200, b"", {"ETag": '"encrypted"'})

    proxy.deed = encrypting
    if stored:
        assert (await storage.put_artifact(a_job(), an_artifact())).key
    else:
        with pytest.raises(UploadFailed):
            await storage.put_artifact(a_job(), an_artifact())


async def test_an_upload_in_parts_that_fails_names_nothing(proxy: FaultyProxy, rclone_bucket: Bucket) -> None:
    """Parts without an end are no object."""
    storage = an_s3_storage(proxy.url, rclone_bucket.name, multipart=1_000_000)

    def without_end(asked: Asked) -> Deed:
        return refusal(503, "SlowDown") if asked.method == "POST" and "uploadId" in asked.path else "forward"

    proxy.deed = without_end
    with pytest.raises(UploadFailed):
        await storage.put_artifact(a_job(), an_artifact(size=9_000_000))
    assert rclone_bucket.keys() == set()
    assert "DELETE" in proxy.methods()
    await storage.aclose()


async def test_a_cancelled_upload_leaves_the_driver_usable(
    storage: S3Storage, proxy: FaultyProxy, rclone_bucket: Bucket
) -> None:
    """A lost lease or a drain ends waiting at any instant."""
    reached = asyncio.Event()

    def hanging(asked: Asked) -> Deed:
        reached.set()
        return "hang"

    proxy.deed = hanging
    upload = asyncio.create_task(storage.put_artifact(a_job(), an_artifact()), name="upload")
    await reached.wait()
    upload.cancel()
    with pytest.raises(asyncio.CancelledError):
        await upload
    proxy.release()
    proxy.first(0, "hang")
    image = await storage.put_artifact(a_job(), an_artifact())
    assert rclone_bucket.read(image.key or "") == an_artifact().data
