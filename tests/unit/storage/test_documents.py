"""Documents behind ``s3://`` URLs, read with the operator's credentials."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.support.faulty import faulty_proxy, refusal
from tests.support.s3 import Bucket, set_credentials
from worker.clock import CorrectedClock, SystemClock
from worker.documents import S3Documents
from worker.errors import AuthFailed, DownloadFailed, InvalidJob

pytest_plugins = ("tests.support.s3_fixtures",)
pytestmark = pytest.mark.usefixtures("credentials")


def _opened(endpoint_url: str) -> S3Documents:
    return S3Documents(endpoint_url=endpoint_url, region=None, clock=CorrectedClock(SystemClock()))


@pytest.fixture
async def documents(rclone_bucket: Bucket) -> AsyncIterator[S3Documents]:
    documents = _opened(rclone_bucket.endpoint_url)
    yield documents
    await documents.aclose()


async def test_a_document_is_read_whole_up_to_the_limit(documents: S3Documents, rclone_bucket: Bucket) -> None:
    """One byte more is refused."""
    rclone_bucket.write("jobs/one.json", b"12345678")
    url = f"s3://{rclone_bucket.name}/jobs/one.json"
    assert await documents.fetch(url, 8) == b"12345678"
    with pytest.raises(InvalidJob, match="more than 7 bytes"):
        await documents.fetch(url, 7)


@pytest.mark.parametrize("url", ["s3://", "s3://bucket", "s3://bucket/", "s3:///key"])
async def test_a_url_needs_bucket_and_key(documents: S3Documents, url: str) -> None:
    """Anything else names nothing."""
    with pytest.raises(InvalidJob, match="s3://bucket/key"):
        await documents.fetch(url, 8)


async def test_a_document_that_is_not_there_is_the_jobs_fault(documents: S3Documents, rclone_bucket: Bucket) -> None:
    """Its field is named."""
    with pytest.raises(InvalidJob, match="404") as caught:
        await documents.fetch(f"s3://{rclone_bucket.name}/absent.json", 8)
    assert caught.value.errors[0].field == "job_url"


async def test_a_store_that_fails_is_a_failed_download(rclone_bucket: Bucket) -> None:
    """It may be back later."""
    async with faulty_proxy(rclone_bucket.endpoint_url) as proxy:
        proxy.deed = lambda asked: refusal(503, "SlowDown")
        documents = _opened(proxy.url)
        with pytest.raises(DownloadFailed, match="SlowDown"):
            await documents.fetch("s3://bucket/key", 8)
        await documents.aclose()


async def test_refused_credentials_are_the_operators(monkeypatch: pytest.MonkeyPatch, rclone_bucket: Bucket) -> None:
    """Not the job's."""
    set_credentials(monkeypatch, key="AKIDUNKNOWN12345678")
    documents = _opened(rclone_bucket.endpoint_url)
    with pytest.raises(AuthFailed):
        await documents.fetch(f"s3://{rclone_bucket.name}/one.json", 8)
    await documents.aclose()
