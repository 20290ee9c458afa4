"""What the S3 driver sends and how it links, seen by a real store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from datetime import timedelta
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from tests.support.faulty import Answer, Asked, Deed, FaultyProxy, faulty_proxy, refusal
from tests.support.s3 import ACCESS_KEY, Bucket
from tests.support.storage import a_failure, a_file_artifact, a_job, a_result, an_artifact, an_s3_storage
from worker import aws, http
from worker.errors import AuthFailed, ConfigError, InvalidJob, UploadFailed
from worker.storage.keys import Keys
from worker.storage.s3 import S3Storage

pytest_plugins = ("tests.support.s3_fixtures",)
pytestmark = pytest.mark.usefixtures("credentials")

Open = Callable[..., S3Storage]


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


@pytest.fixture
def opened(stack: AsyncExitStack, rclone_bucket: Bucket) -> Open:
    def open_(
        endpoint_url: str = rclone_bucket.endpoint_url, bucket: str = rclone_bucket.name, **more: Any
    ) -> S3Storage:
        storage = an_s3_storage(endpoint_url, bucket, **more)
        stack.push_async_callback(storage.aclose)
        return storage

    return open_


@pytest.fixture
async def proxy(stack: AsyncExitStack, rclone_bucket: Bucket) -> FaultyProxy:
    return await stack.enter_async_context(faulty_proxy(rclone_bucket.endpoint_url))


async def test_objects_have_their_type_and_the_asked_caching(opened: Open, moto_bucket: Bucket) -> None:
    """Browsers show an image and read a document."""
    storage = opened(moto_bucket.endpoint_url, moto_bucket.name, cache_control="public, max-age=60")
    image = await storage.put_artifact(a_job(), an_artifact())
    await storage.put_mark(a_job(), a_result(a_job(), image))
    stored = moto_bucket.head(image.key or "")
    assert (stored["ContentType"], stored["CacheControl"]) == ("image/png", "public, max-age=60")
    assert moto_bucket.head("out/job-1/result.json")["ContentType"] == "application/json"


async def test_a_large_image_goes_in_parts(opened: Open, rclone_bucket: Bucket) -> None:
    """And arrives as one."""
    artifact = an_artifact(size=9_000_000)
    image = await opened(multipart=1_000_000).put_artifact(a_job(), artifact)
    assert rclone_bucket.read(image.key or "") == artifact.data


async def test_a_presigned_link_works_without_credentials_for_its_time(opened: Open) -> None:
    """It is made by SigV4, with the asked time to live."""
    image = await opened(presign_ttl=timedelta(minutes=5)).put_artifact(a_job(), an_artifact())
    query = parse_qs(urlsplit(image.url or "").query)
    assert (query["X-Amz-Algorithm"], query["X-Amz-Expires"]) == (["AWS4-HMAC-SHA256"], ["300"])
    async with http.client(loopback=True) as client:
        answer = await client.get(image.url or "")
        unsigned = await client.get((image.url or "").split("?", 1)[0])
    assert answer.content == an_artifact().data
    assert unsigned.is_client_error


async def test_a_public_url_is_linked_to_instead(opened: Open) -> None:
    """With the key escaped as URLs need it."""
    storage = opened(public_url="https://cdn.example/i/", keys=Keys(prefix="my images"))
    job = a_job()
    image = await storage.put_artifact(job, an_artifact())
    assert image.url == f"https://cdn.example/i/my%20images/job-1/0-{an_artifact().sha256[:12]}.png"
    await storage.put_mark(job, a_result(job, image.model_copy(update={"url": "https://old.example/"})))
    found = await storage.find_mark(job)
    assert found is not None
    assert found.images[0].url == image.url


async def test_links_of_a_standing_mark_are_signed_anew(opened: Open) -> None:
    """Those in the document may be long expired; an image without a key is left as it is."""
    job, storage = a_job(), opened()
    image = await storage.put_artifact(job, an_artifact())
    stale = image.model_copy(update={"url": "https://stale.example/"})
    elsewhere = image.model_copy(update={"index": 1, "key": None, "url": "https://elsewhere.example/"})
    await storage.put_mark(job, a_result(job, stale, elsewhere))
    found = await storage.find_mark(job)
    assert found is not None
    assert ACCESS_KEY in (found.images[0].url or "")
    assert found.images[1].url == "https://elsewhere.example/"


async def test_links_of_files_are_signed_anew_too(opened: Open) -> None:
    """With the extension of what they are."""
    job, storage = a_job(), opened()
    file = await storage.put_artifact(job, a_file_artifact(0))
    await storage.put_mark(job, a_result(job, files=(file.model_copy(update={"url": "https://stale.example/"}),)))
    found = await storage.find_mark(job)
    assert found is not None
    assert ACCESS_KEY in (found.files[0].url or "")
    assert (found.files[0].key or "").endswith(".mp4")


async def test_a_stored_document_holds_no_image(opened: Open, rclone_bucket: Bucket) -> None:
    """Base64 is for the caller, not for the bucket."""
    job, storage = a_job(), opened()
    image = (await storage.put_artifact(job, an_artifact())).model_copy(update={"base64": "aGVsbG8="})
    await storage.put_mark(job, a_result(job, image))
    await storage.put_failure(job, a_failure(job), attempt=1)
    assert b"aGVsbG8=" not in rclone_bucket.read("out/job-1/result.json")
    assert rclone_bucket.keys() == {"out/job-1/result.json", "out/job-1/failure-1.json", image.key}


async def test_requests_carry_only_the_checksum_that_every_store_takes(opened: Open, proxy: FaultyProxy) -> None:
    """R2 and GCS refuse the newer ones and their trailers."""
    await opened(proxy.url).put_artifact(a_job(), an_artifact())
    headers = proxy.seen[0].headers
    assert "content-md5" in headers
    assert not [name for name in headers if name.startswith(("x-amz-checksum", "x-amz-sdk-checksum", "x-amz-trailer"))]
    assert headers["x-amz-content-sha256"] != "STREAMING-UNSIGNED-PAYLOAD-TRAILER"


async def test_an_endpoint_may_come_from_the_environment(
    opened: Open, rclone_bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By AWS's own variable; it is addressed by path as well."""
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", rclone_bucket.endpoint_url)
    aws.session.cache_clear()
    image = await opened(None).put_artifact(a_job(), an_artifact())
    assert rclone_bucket.read(image.key or "") == an_artifact().data
    aws.session.cache_clear()


async def test_buckets_of_aws_are_addressed_by_name(opened: Open) -> None:
    """As AWS asks for; a link needs no request."""
    image = a_result(a_job(), an_artifact().result(key="out/a.png"))
    relinked = await opened(None, "bucket-1")._relinked(image)
    assert urlsplit(relinked.images[0].url or "").hostname == "bucket-1.s3.amazonaws.com"


async def test_there_is_one_session_however_many_clients() -> None:
    """Each further one would cost tens of megabytes."""
    assert aws.session() is aws.session()


async def test_a_check_tells_whether_conditions_hold(opened: Open, rclone_bucket: Bucket, moto_bucket: Bucket) -> None:
    """One real store of each kind."""
    assert "no conditional writes" in await opened().check()
    assert ", conditional writes" in await opened(moto_bucket.endpoint_url, moto_bucket.name).check()
    assert rclone_bucket.keys() == moto_bucket.keys() == {"out/sd-worker-check.txt"}


async def test_a_check_tells_the_policy_that_is_missing(opened: Open, proxy: FaultyProxy) -> None:
    """s3:ListBucket only spares a warning, s3:GetObject and s3:PutObject are needed."""

    def without_list(asked: Asked) -> Deed:
        return refusal(403, "AccessDenied") if ".absent" in asked.path else "forward"

    def without_get(asked: Asked) -> Deed:
        return refusal(403, "AccessDenied") if asked.method == "GET" else "forward"

    proxy.deed = without_list
    assert "s3:ListBucket is missing" in await opened(proxy.url).check()
    proxy.deed = without_get
    with pytest.raises(AuthFailed, match="s3:GetObject is denied"):
        await opened(proxy.url).check()
    proxy.deed = lambda asked: refusal(403, "AccessDenied")
    with pytest.raises(AuthFailed, match="AccessDenied"):
        await opened(proxy.url).check()


async def test_a_check_reads_what_it_wrote(opened: Open, proxy: FaultyProxy) -> None:
    """A store that gives back something else fails it."""
    proxy.deed = lambda asked: Answer(200, b"else", {"ETag": '"x"'}) if asked.method == "GET" else "forward"
    with pytest.raises(UploadFailed, match="does not hold what was written"):
        await opened(proxy.url).check()


async def test_a_mark_that_can_be_neither_read_nor_written_is_told(opened: Open, proxy: FaultyProxy) -> None:
    """Something stands there, and the policy hides it."""

    def hidden(asked: Asked) -> Deed:
        return refusal(403, "AccessDenied") if asked.method == "GET" else refusal(412, "PreconditionFailed")

    proxy.deed = hidden
    with pytest.raises(UploadFailed, match="neither read nor replaced"):
        await opened(proxy.url).put_mark(a_job(), a_result(a_job()))


async def test_a_mark_that_cannot_be_written_is_no_success(opened: Open, proxy: FaultyProxy) -> None:
    """Whatever the store's reason."""
    proxy.deed = lambda asked: refusal(507, "QuotaExceeded") if asked.method == "PUT" else "forward"
    with pytest.raises(UploadFailed, match="QuotaExceeded"):
        await opened(proxy.url).put_mark(a_job(), a_result(a_job()))


async def test_uploads_go_at_most_so_many_at_a_time(opened: Open, proxy: FaultyProxy) -> None:
    """The rest wait for their turn."""
    two = asyncio.Event()
    arrived: list[Asked] = []

    def hanging(asked: Asked) -> Deed:
        arrived.append(asked)
        if len(arrived) == 2:
            two.set()
        return "hang"

    proxy.deed = hanging
    storage = opened(proxy.url, concurrency=2)
    uploads = [
        asyncio.create_task(storage.put_artifact(a_job(f"job-{n}"), an_artifact()), name=f"upload-{n}")
        for n in range(4)
    ]
    await two.wait()
    assert len(arrived) == 2
    proxy.deed = lambda asked: "forward"
    proxy.release()
    assert len({image.key for image in await asyncio.gather(*uploads)}) == 4


async def test_a_long_key_is_refused_before_the_gpu(opened: Open) -> None:
    """Where the operator's prefix leaves no room."""
    storage = opened(keys=Keys(prefix="p" * 1000))
    with pytest.raises(InvalidJob, match="1024 bytes"):
        storage.accepts(a_job("i" * 100), 1)


async def test_closing_before_the_first_use_is_nothing(opened: Open) -> None:
    """No client was made."""
    await opened().aclose()


async def test_an_answer_from_a_foreign_date_is_not_needed(opened: Open, proxy: FaultyProxy) -> None:
    """A store that tells no time works all the same."""
    proxy.deed = lambda asked: Answer(404, b"", {})
    assert await opened(proxy.url).find_mark(a_job()) is None


async def test_a_redirect_is_a_failed_upload(opened: Open, proxy: FaultyProxy) -> None:
    """A bucket of another region says where it is; a foreign address is not followed."""
    proxy.deed = lambda asked: Answer(307, b"", {"Location": "http://127.0.0.1:1/elsewhere"})
    with pytest.raises(UploadFailed):
        await opened(proxy.url).put_artifact(a_job(), an_artifact())


@pytest.mark.parametrize("ttl", [timedelta(0), timedelta(days=7, seconds=1)])
async def test_links_live_for_a_week_at_most(ttl: timedelta) -> None:
    """SigV4 allows no more; with a public URL nothing is signed."""
    with pytest.raises(ConfigError, match="WORKER_S3_PRESIGN_TTL"):
        an_s3_storage("http://127.0.0.1:1", "images", presign_ttl=ttl)
    storage = an_s3_storage("http://127.0.0.1:1", "images", presign_ttl=ttl, public_url="https://cdn.example")
    await storage.aclose()
