"""What every storage driver promises, shown on real places."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import httpx
import pybase64
import pytest

from tests.support.faulty import FaultyProxy, faulty_proxy
from tests.support.s3 import Bucket
from tests.support.s4 import S4Service
from tests.support.storage import (
    SWIFT,
    a_failure,
    a_file_artifact,
    a_job,
    a_result,
    an_artifact,
    an_s3_storage,
    an_s4_storage,
)
from worker import http
from worker.errors import IdConflict, UnsupportedDocument
from worker.job import Job
from worker.result import FileResult, ImageResult, Result
from worker.storage.base import Storage
from worker.storage.directory import DirectoryStorage
from worker.storage.inline import InlineStorage
from worker.storage.presigned import PresignedStorage
from worker.urls import Guard

pytest_plugins = ("tests.support.s3_fixtures",)

MARKING = ("directory", "s3-ignoring", "s3-honouring", "s3-atomic", "presigned", "s4")
FIRST_WINS = ("directory", "s3-atomic")

Stored = ImageResult | FileResult


@dataclass(frozen=True, slots=True)
class Peer:
    """One place as the tests see it: ``opened`` is another worker's driver on it."""

    name: str
    opened: Callable[[], Storage]
    read: Callable[[Stored], Awaitable[bytes]]
    read_mark: Callable[[Job], bytes]
    write_mark: Callable[[Job, bytes], None]
    output: Callable[[str], dict[str, Any]] = lambda _: {}

    def job(self, id: str = "job-1", *, prompt: str = "a lighthouse") -> Job:
        return a_job(id, prompt=prompt, **self.output(id))


@pytest.fixture
async def opened() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


@pytest.fixture
async def client(opened: AsyncExitStack) -> httpx.AsyncClient:
    return await opened.enter_async_context(http.client(loopback=True))


@pytest.fixture
async def s4(opened: AsyncExitStack) -> S4Service:
    return await opened.enter_async_context(S4Service())


@pytest.fixture
async def atomic(moto_bucket: Bucket, opened: AsyncExitStack) -> FaultyProxy:
    """A store that honours conditions also when two writers come at once, which moto alone does not."""
    return await opened.enter_async_context(faulty_proxy(moto_bucket.endpoint_url))


def _s3(name: str, bucket: Bucket, url: str, opened: AsyncExitStack, client: httpx.AsyncClient) -> Peer:
    def open_() -> Storage:
        storage = an_s3_storage(url, bucket.name)
        opened.push_async_callback(storage.aclose)
        return storage

    return Peer(
        name,
        open_,
        _by_http(client),
        lambda job: bucket.read(f"out/{job.id}/result.json"),
        lambda job, body: bucket.write(f"out/{job.id}/result.json", body),
    )


def _s4(service: S4Service, opened: AsyncExitStack, client: httpx.AsyncClient) -> Peer:
    def open_() -> Storage:
        storage = an_s4_storage(service)
        opened.push_async_callback(storage.aclose)
        return storage

    return Peer(
        "s4",
        open_,
        _by_http(client),
        lambda job: service.read(f"out/{job.id}/result.json"),
        lambda job, body: service.write(f"out/{job.id}/result.json", body),
    )


def _by_http(client: httpx.AsyncClient) -> Callable[[Stored], Awaitable[bytes]]:
    async def read(output: Stored) -> bytes:
        return (await client.get(output.url or "")).raise_for_status().content

    return read


def _directory(root: Path) -> Peer:
    async def read(output: Stored) -> bytes:
        return await asyncio.to_thread(Path(unquote(urlsplit(output.url or "").path)).read_bytes)

    def write(job: Job, body: bytes) -> None:
        (root / job.id).mkdir(parents=True, exist_ok=True)
        (root / job.id / "result.json").write_bytes(body)

    return Peer(
        "directory",
        lambda: DirectoryStorage(root),
        read,
        lambda job: (root / job.id / "result.json").read_bytes(),
        write,
    )


def _presigned(bucket: Bucket, client: httpx.AsyncClient) -> Peer:
    def output(id: str) -> dict[str, Any]:
        mark = f"jobs/{id}.json"
        return {
            "upload_urls": [bucket.presigned("put_object", f"jobs/{id}-{index}.png") for index in range(2)],
            "result_urls": {
                "put": bucket.presigned("put_object", mark, IfNoneMatch="*"),
                "get": bucket.presigned("get_object", mark),
            },
        }

    async def read(output: Stored) -> bytes:
        return bucket.read(urlsplit(output.url or "").path.removeprefix(f"/{bucket.name}/"))

    guard = Guard.from_setting("127.0.0.1")
    return Peer(
        "presigned",
        lambda: PresignedStorage(client, guard, rng=random.Random(1), policy=SWIFT),
        read,
        lambda job: bucket.read(f"jobs/{job.id}.json"),
        lambda job, body: bucket.write(f"jobs/{job.id}.json", body),
        output,
    )


def _inline() -> Peer:
    async def read(output: Stored) -> bytes:
        return pybase64.b64decode(output.base64 or "")

    def nothing(*_: Any) -> Any:
        raise AssertionError("inline stores nothing")

    return Peer("inline", lambda: InlineStorage(1_000_000), read, nothing, nothing)


@pytest.fixture(params=[*MARKING, "inline"])
def peer(
    request: pytest.FixtureRequest, tmp_path: Path, opened: AsyncExitStack, client: httpx.AsyncClient, credentials: None
) -> Iterator[Peer]:
    match request.param:
        case "directory":
            yield _directory(tmp_path / "outputs")
        case "inline":
            yield _inline()
        case "s3-ignoring":
            bucket = request.getfixturevalue("rclone_bucket")
            yield _s3(request.param, bucket, bucket.endpoint_url, opened, client)
        case "s3-atomic":
            bucket, proxy = request.getfixturevalue("moto_bucket"), request.getfixturevalue("atomic")
            yield _s3(request.param, bucket, proxy.url, opened, client)
        case "s3-honouring":
            bucket = request.getfixturevalue("moto_bucket")
            yield _s3(request.param, bucket, bucket.endpoint_url, opened, client)
        case "s4":
            yield _s4(request.getfixturevalue("s4"), opened, client)
        case _:
            yield _presigned(request.getfixturevalue("moto_bucket"), client)


keeps_marks = pytest.mark.parametrize("peer", MARKING, indirect=True)


async def _done(peer: Peer, storage: Storage, job: Job, *, worker: str = "worker-1", text: str = "one") -> Result:
    image = await storage.put_artifact(job, an_artifact(text=text))
    return await storage.put_mark(job, a_result(job, image, worker=worker))


async def test_an_image_is_found_byte_for_byte_where_the_result_says(peer: Peer) -> None:
    """A result never names an image that is not there as it was made."""
    job, artifact = peer.job(), an_artifact()
    storage = peer.opened()
    storage.accepts(job, 1)
    image = await storage.put_artifact(job, artifact)
    assert await peer.read(image) == artifact.data
    assert (image.sha256, image.bytes, image.index) == (artifact.sha256, len(artifact.data), 0)


async def test_a_file_is_kept_beside_the_images_of_its_job(peer: Peer) -> None:
    """A video is found byte for byte as well, under its own name, index and media type."""
    job, artifact, storage = peer.job(), a_file_artifact(1), peer.opened()
    storage.accepts(job, 2)
    image = await storage.put_artifact(job, an_artifact(0))
    file = await storage.put_artifact(job, artifact)
    assert await peer.read(file) == artifact.data
    assert await peer.read(image) == an_artifact(0).data
    assert (file.index, file.name, file.node) == (1, "clip_00001_.mp4", "9")
    assert (file.format, file.media_type, file.bytes, file.sha256) == (
        "mp4", "video/mp4", len(artifact.data), artifact.sha256,
    )  # fmt: skip


@keeps_marks
async def test_another_worker_finds_the_files_with_links_that_work(peer: Peer) -> None:
    """A success without any image stands like any other."""
    job, storage = peer.job(), peer.opened()
    file = await storage.put_artifact(job, a_file_artifact(0))
    await storage.put_mark(job, a_result(job, files=(file,)))
    found = await peer.opened().find_mark(job)
    assert found is not None
    assert (found.images, [file.name for file in found.files]) == ((), ["clip_00001_.mp4"])
    assert await peer.read(found.files[0]) == a_file_artifact(0).data


async def test_storing_an_image_again_changes_nothing(peer: Peer) -> None:
    """A second run of the same job may store the same image."""
    job, artifact = peer.job(), an_artifact()
    first = await peer.opened().put_artifact(job, artifact)
    second = await peer.opened().put_artifact(job, artifact)
    assert (first.key, await peer.read(first)) == (second.key, await peer.read(second))


async def test_a_job_that_never_ran_has_no_mark(peer: Peer) -> None:
    """Absence is no error."""
    assert await peer.opened().find_mark(peer.job()) is None


async def test_a_success_is_given_back_when_it_is_marked(peer: Peer) -> None:
    """What put_mark gives back is the success that was to be stored."""
    storage, job = peer.opened(), peer.job()
    stands = await _done(peer, storage, job)
    assert (await peer.opened().find_mark(job) is not None) is storage.marks(job)
    assert (stands.id, stands.status, stands.job_sha256) == (job.id, "succeeded", job.sha256)
    assert await peer.read(stands.images[0]) == an_artifact().data


@keeps_marks
async def test_another_worker_finds_the_mark_with_links_that_work(peer: Peer) -> None:
    """A redelivered job is settled again from what stands."""
    job = peer.job()
    await _done(peer, peer.opened(), job)
    found = await peer.opened().find_mark(job)
    assert found is not None
    assert found.worker.id == "worker-1"
    assert await peer.read(found.images[0]) == an_artifact().data


@keeps_marks
async def test_the_first_of_two_successes_stands(peer: Peer) -> None:
    """A late writer settles with what it finds, and changes no byte of it."""
    job = peer.job()
    await _done(peer, peer.opened(), job, worker="first")
    before = peer.read_mark(job)
    late = await _done(peer, peer.opened(), job, worker="late", text="late")
    assert late.worker.id == "first"
    assert peer.read_mark(job) == before


@keeps_marks
async def test_one_worker_settles_a_job_twice_with_the_same_result(peer: Peer) -> None:
    """Marking again with the same driver, which has learned what the store can, gives the mark that stands."""
    job, storage = peer.job(), peer.opened()
    await _done(peer, storage, job, worker="first")
    before = peer.read_mark(job)
    assert (await _done(peer, storage, job, worker="again")).worker.id == "first"
    assert peer.read_mark(job) == before


@pytest.mark.parametrize("peer", FIRST_WINS, indirect=True)
async def test_of_many_writers_at_once_exactly_one_wins(peer: Peer) -> None:
    """However many workers finish at the same instant, all settle with one and the same result."""
    job = peer.job()
    workers = [f"worker-{n}" for n in range(6)]
    results = await asyncio.gather(*(_done(peer, peer.opened(), job, worker=worker) for worker in workers))
    found = await peer.opened().find_mark(job)
    assert found is not None
    assert {result.worker.id for result in results} == {found.worker.id}


@pytest.mark.parametrize("peer", ["s3-ignoring", "s3-honouring", "presigned", "s4"], indirect=True)
async def test_writers_at_once_leave_one_whole_success(peer: Peer) -> None:
    """Where a store cannot tell writers apart, what stands is still one of their results, whole, with its image."""
    job = peer.job()
    workers = [f"worker-{n}" for n in range(4)]
    results = await asyncio.gather(*(_done(peer, peer.opened(), job, worker=worker) for worker in workers))
    found = await peer.opened().find_mark(job)
    assert found is not None
    assert {found.worker.id} | {result.worker.id for result in results} <= set(workers)
    assert await peer.read(found.images[0]) == an_artifact().data


@keeps_marks
async def test_the_same_id_with_another_document_is_a_conflict(peer: Peer) -> None:
    """At the look-up and at the mark; nothing that stands changes."""
    await _done(peer, peer.opened(), peer.job())
    before = peer.read_mark(peer.job())
    other = peer.job(prompt="a submarine")
    with pytest.raises(IdConflict):
        await peer.opened().find_mark(other)
    storage = peer.opened()
    with pytest.raises(IdConflict):
        await storage.put_mark(other, a_result(other))
    assert peer.read_mark(peer.job()) == before


@keeps_marks
async def test_a_failure_never_stands_for_a_success(peer: Peer) -> None:
    """An attempt that failed leaves the job free to succeed later."""
    job, storage = peer.job(), peer.opened()
    await storage.put_failure(job, a_failure(job), attempt=1)
    assert await storage.find_mark(job) is None
    assert (await _done(peer, storage, job)).status == "succeeded"


@pytest.mark.parametrize("peer", [name for name in MARKING if name != "presigned"], indirect=True)
@pytest.mark.parametrize("body", [b'{"status": "failed"}', b"", b"[1]", b'{"status": "succ'])
async def test_what_is_no_success_does_not_stop_one(peer: Peer, body: bytes) -> None:
    """Only a success is a mark; anything else under its name is replaced."""
    job = peer.job()
    peer.write_mark(job, body)
    assert await peer.opened().find_mark(job) is None
    assert (await _done(peer, peer.opened(), job, worker="real")).worker.id == "real"
    found = await peer.opened().find_mark(job)
    assert found is not None
    assert found.worker.id == "real"


@keeps_marks
async def test_a_success_of_a_later_version_is_left_alone(peer: Peer) -> None:
    """A worker of today cannot read it, but must not generate or write over it either."""
    job = peer.job()
    body = b'{"v": 2, "status": "succeeded", "job_sha256": "%s"}' % job.sha256.encode()
    peer.write_mark(job, body)
    with pytest.raises(UnsupportedDocument):
        await peer.opened().find_mark(job)
    with pytest.raises(UnsupportedDocument):
        await peer.opened().put_mark(job, a_result(job))
    assert peer.read_mark(job) == body


async def test_a_check_says_what_was_found(peer: Peer) -> None:
    """A place that works passes its check, however often it is tried."""
    storage = peer.opened()
    assert await storage.check()
    assert await storage.check() == await storage.check()
