"""What the S4 driver sends, proves itself by and links to, seen by a stand-in of the service."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from datetime import timedelta
from typing import Any

import pytest

from tests.support.receiver import Answer, Request
from tests.support.s4 import BEGAN, DAY, S4Service, Tokens, identity_token
from tests.support.storage import a_failure, a_file_artifact, a_job, a_result, an_artifact, an_s4_storage
from tests.support.waiting import wait_until
from worker import http
from worker.clock import CorrectedClock, SystemClock
from worker.errors import AuthFailed, Disposition, Fault, InvalidJob, ResultTooLarge, UploadFailed
from worker.files import MP4
from worker.storage.base import FileArtifact
from worker.storage.keys import Keys
from worker.storage.s4 import LARGEST, S4Storage

FIRST, SECOND = identity_token(1), identity_token(2)
IMAGE = f"out/job-1/0-{an_artifact().sha256[:12]}.png"
MARK = "out/job-1/result.json"

Open = Callable[..., S4Storage]


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


@pytest.fixture
async def service(stack: AsyncExitStack) -> S4Service:
    return await stack.enter_async_context(S4Service())


@pytest.fixture
def opened(stack: AsyncExitStack, service: S4Service) -> Open:
    def open_(on: S4Service = service, **more: Any) -> S4Storage:
        storage = an_s4_storage(on, **more)
        stack.push_async_callback(storage.aclose)
        return storage

    return open_


async def _status(url: str | None) -> int:
    async with http.client(loopback=True) as client:
        return (await client.get(url or "")).status_code


async def test_images_and_documents_have_their_type(opened: Open, service: S4Service) -> None:
    """Browsers show the one and read the other; only what is linked to is signed."""
    storage, job = opened(), a_job()
    image = await storage.put_artifact(job, an_artifact())
    await storage.put_mark(job, a_result(job, image))
    await storage.put_failure(job, a_failure(job), 3)
    types = {name: one.mime_type for (_, name), one in service.files.items()}
    assert types == {
        IMAGE: "image/png",
        MARK: "application/json",
        "out/job-1/failure-3.json": "application/json",
    }
    assert [b'name="sign"' in put.body for put in service.asked("PUT")] == [True, False, False]


async def test_a_large_file_arrives_whole(opened: Open, service: S4Service) -> None:
    """It goes out in pieces, so that no wait is for all of it."""
    artifact = a_file_artifact(size=5_000_000)
    file = await opened().put_artifact(a_job(), artifact)
    assert service.read(file.key or "") == artifact.data


async def test_a_link_works_without_any_token_for_its_time(opened: Open, service: S4Service) -> None:
    """And the same address without its signature does not."""
    image = await opened(ttl=timedelta(hours=1)).put_artifact(a_job(), an_artifact())
    assert await _status(image.url) == 200
    assert await _status((image.url or "").partition("?")[0]) == 401
    service.now += 3600
    assert await _status(image.url) == 401


@pytest.mark.parametrize(
    ("ttl", "lives"), [(timedelta(seconds=1), 60), (timedelta(minutes=5), 300), (timedelta(days=90), 30 * DAY)]
)
async def test_links_live_within_what_the_service_allows(
    opened: Open, service: S4Service, ttl: timedelta, lives: int
) -> None:
    """From a minute to 30 days, at the upload and when they are signed anew."""
    storage, job = opened(ttl=ttl), a_job()
    await storage.put_mark(job, a_result(job, await storage.put_artifact(job, an_artifact())))
    assert await storage.find_mark(job) is not None
    (upload, _), (signing,) = service.asked("PUT"), service.asked("POST", "/file_tokens/")
    assert f'name="signatureExp"\r\n\r\n{lives}\r\n'.encode() in upload.body
    assert signing.body == f'{{"method":"GET","exp":{lives}}}'.encode()


async def test_a_standing_result_whose_image_is_gone_has_no_link(opened: Open, service: S4Service) -> None:
    """Everything is deleted after 30 days, an image some moments before its result; the success stands."""
    storage, job = opened(token=Tokens(identity_token(until=BEGAN + 60 * DAY))), a_job()
    await storage.put_mark(job, a_result(job, await storage.put_artifact(job, an_artifact())))
    del service.files["acme", IMAGE]
    found = await storage.find_mark(job)
    assert found is not None
    assert (found.status, found.images[0].key, found.images[0].url) == ("succeeded", IMAGE, None)
    service.now += 30 * DAY
    assert await storage.find_mark(job) is None


async def test_what_lies_elsewhere_keeps_its_address(opened: Open) -> None:
    """Only what was stored under a key is linked to anew."""
    storage, job = opened(), a_job()
    image = await storage.put_artifact(job, an_artifact())
    elsewhere = image.model_copy(update={"key": None, "url": "https://elsewhere.example/"})
    await storage.put_mark(job, a_result(job, elsewhere))
    found = await storage.find_result(job.id)
    assert found is not None
    assert found.images[0].url == "https://elsewhere.example/"


async def test_keys_are_escaped_as_urls_need_it(opened: Open, service: S4Service) -> None:
    """A prefix may hold blanks; what is stored under it is found again."""
    storage, job = opened(keys=Keys(prefix="my images")), a_job()
    image = await storage.put_artifact(job, an_artifact())
    await storage.put_mark(job, a_result(job, image))
    assert await storage.find_mark(job) is not None
    assert await _status(image.url) == 200
    assert all(name.startswith("my%20images/job-1/") for name in service.names())


async def test_a_refused_token_is_asked_for_anew(opened: Open, service: S4Service) -> None:
    """Once, and within the same try: it may just have run out."""
    tokens = Tokens(FIRST, SECOND)
    service.refused = {FIRST}
    image = await opened(token=tokens).put_artifact(a_job(), an_artifact())
    assert tokens.refusals == [FIRST]
    assert [put.headers["authorization"] for put in service.asked("PUT")] == [f"Bearer {FIRST}", f"Bearer {SECOND}"]
    assert service.read(image.key or "") == an_artifact().data


@pytest.mark.parametrize(
    ("tokens", "asked"),
    [((FIRST,), 1), ((FIRST, SECOND), 2), ((FIRST, None), 1)],
    ids=["no-other", "refused-too", "none-any-more"],
)
async def test_a_node_that_is_not_believed_tells_the_operator(
    opened: Open, service: S4Service, tokens: tuple[str | None, ...], asked: int
) -> None:
    """A refused credential is not tried again and again, and no message repeats it."""
    service.refused = {FIRST, SECOND}
    with pytest.raises(AuthFailed) as caught:
        await opened(token=Tokens(*tokens)).put_artifact(a_job(), an_artifact())
    assert caught.value.message.endswith("answered 401 (signature verification failed)")
    assert caught.value.fault is Fault.OPERATOR
    assert FIRST not in caught.value.message
    assert len(service.requests) == asked


@pytest.mark.parametrize(
    ("token", "reason"),
    [
        (identity_token(organization="somebody-else"), "Invalid Organization Name"),
        (identity_token(until=BEGAN), '"exp" claim timestamp check failed'),
    ],
)
async def test_the_token_must_be_of_the_organization_and_fresh(opened: Open, token: str, reason: str) -> None:
    """The service says which it is not."""
    with pytest.raises(AuthFailed, match=reason):
        await opened(token=Tokens(token)).find_mark(a_job())


async def test_a_403_is_the_operators_at_the_look_up_too(opened: Open, service: S4Service) -> None:
    """What is absent is answered 404 here, so that it never means that."""
    service.script.extend([Answer(403, body=b"<html>denied</html>")] * 2)
    storage = opened()
    with pytest.raises(AuthFailed, match=r"answered 403$"):
        await storage.find_mark(a_job())
    with pytest.raises(AuthFailed):
        await storage.find_result("job-1")


async def test_without_a_token_it_waits_for_one(opened: Open, service: S4Service) -> None:
    """The platform may give none for a moment; nothing is sent without."""
    given = [None, None, FIRST]

    async def token(refused: str | None = None) -> str | None:
        return given.pop(0) if len(given) > 1 else given[0]

    image = await opened(token=token).put_artifact(a_job(), an_artifact())
    assert service.names() == {image.key}
    assert len(service.requests) == 1
    with pytest.raises(UploadFailed, match="no identity token"):
        await opened(token=Tokens(None)).find_mark(a_job())


@pytest.mark.parametrize(
    "first",
    [
        Answer(500),
        Answer(503, {"retry-after": "0"}, b"<html>"),
        Answer(429),
        Answer(302, {"location": "http://[::1]:1/"}),
        Answer(400, body=b'{"status": 400, "error": 7}'),
        Answer(404),
        Answer(200, body=b"{}"),
        Answer(200, body=b'{"url": 7}'),
        Answer(200, body=b"[]"),
        Answer(raw=b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n"),
        Answer(raw=b""),
    ],
    ids=lambda answer: f"{answer.status}-{answer.body[:6]!r}" if answer.raw is None else f"raw-{len(answer.raw)}",
)
async def test_what_is_no_success_is_tried_again(stack: AsyncExitStack, opened: Open, first: Answer) -> None:
    """A store that fails, is in a hurry, or answers with anything but an address; then it is the dependency's."""
    busy = await stack.enter_async_context(S4Service(first))
    image = await opened(busy).put_artifact(a_job(), an_artifact())
    assert busy.names() == {image.key}
    broken = await stack.enter_async_context(S4Service(*[first] * 4))
    with pytest.raises(UploadFailed) as caught:
        await opened(broken).put_artifact(a_job(), an_artifact())
    assert caught.value.fault is Fault.DEPENDENCY
    assert len(broken.requests) == 4


async def test_a_store_that_is_not_there_is_a_dependency(opened: Open, service: S4Service) -> None:
    """Whatever it was asked for."""
    await service.__aexit__(None, None, None)
    storage, job = opened(), a_job()
    for asked in (storage.find_mark(job), storage.put_mark(job, a_result(job)), storage.find_result("job-1")):
        with pytest.raises(UploadFailed, match="cannot be connected to"):
            await asked


async def test_a_file_over_the_limit_is_refused_by_its_name(opened: Open, service: S4Service) -> None:
    """Nothing of it is sent: the job can never succeed with this store."""
    artifact = FileArtifact(index=0, data=bytes(LARGEST + 1), name="long.mp4", kind=MP4, sha256="0" * 64)
    with pytest.raises(ResultTooLarge, match=r"out/job-1/0-0{12}\.mp4: has 100\.0 MB, and S4 takes .* up to 100 MB"):
        await opened().put_artifact(a_job(), artifact)
    assert service.requests == []


async def test_a_413_is_told_in_the_same_way(opened: Open, service: S4Service) -> None:
    """The service may count otherwise than we do; it is not asked again."""
    service.largest = 1000
    with pytest.raises(
        ResultTooLarge, match=r"answered 413 \(Payload Too Large\): files may have up to 100 MB"
    ) as caught:
        await opened().put_artifact(a_job(), an_artifact())
    assert (caught.value.disposition, len(service.requests)) == (Disposition.REJECT, 1)


async def test_a_prefix_that_makes_keys_too_long_is_refused_before_the_gpu(opened: Open) -> None:
    """Only the keys themselves tell."""
    with pytest.raises(InvalidJob, match="1024"):
        opened(keys=Keys(prefix="p" * 1020)).accepts(a_job(), 1)


async def test_the_mark_is_looked_up_right_before_it_is_written(opened: Open, service: S4Service) -> None:
    """There are no conditions; and it is read back, where nothing else is asked for as long as it is ours."""
    job = a_job()
    await opened().put_mark(job, a_result(job))
    assert [request.method for request in service.requests] == ["GET", "PUT", "GET"]
    assert {request.path for request in service.requests} == {f"/organizations/acme/files/{MARK}"}


async def test_who_wrote_last_is_believed_by_all(stack: AsyncExitStack, opened: Open) -> None:
    """Two that found nothing both write; what stands in the end is what both settle with."""
    job = a_job()

    class Raced(S4Service):
        def answer(self, request: Request) -> Answer:
            answered = super().answer(request)
            if request.method == "PUT":
                self.write(MARK, a_result(job, worker="faster").to_json())
            return answered

    raced = await stack.enter_async_context(Raced())
    assert (await opened(raced).put_mark(job, a_result(job, worker="slower"))).worker.id == "faster"


async def test_no_more_requests_than_allowed_are_under_way(stack: AsyncExitStack, opened: Open) -> None:
    """A node's line is narrow, and memory is bounded by what is sent at a time."""
    release, under_way, most = asyncio.Event(), 0, 0

    class Slow(S4Service):
        async def reply(self, request: Request) -> Answer:
            nonlocal under_way, most
            under_way, most = under_way + 1, max(most, under_way + 1)
            await release.wait()
            under_way -= 1
            return self.answer(request)

    slow = await stack.enter_async_context(Slow())
    storage = opened(slow, concurrency=2)
    async with asyncio.TaskGroup() as group:
        for index in range(5):
            group.create_task(storage.put_artifact(a_job(), an_artifact(index)), name=f"put-{index}")
        await wait_until(lambda: under_way == 2)
        release.set()
    assert (most, len(slow.names())) == (2, 5)


async def test_a_check_writes_reads_and_links(opened: Open, service: S4Service) -> None:
    """And says how long files are kept."""
    said = await opened().check()
    assert said == "S4, organization acme: written, read back and linked to; files are deleted after 30 days"
    assert [request.method for request in service.requests] == ["PUT", "GET", "POST"]


@pytest.mark.parametrize(
    ("third", "says"), [((), "does not hold what was written"), ((Answer(404),), "cannot be linked to")]
)
async def test_a_check_finds_a_store_that_keeps_nothing(
    stack: AsyncExitStack, opened: Open, third: tuple[Answer, ...], says: str
) -> None:
    """Whether it forgets the file or cannot sign for it."""
    url = Answer(200, body=b'{"url": "https://store.example/x"}')
    read = Answer(200, body=b"written by sd-worker check\n") if third else Answer(404)
    odd = await stack.enter_async_context(S4Service(url, read, *third))
    with pytest.raises(UploadFailed, match=says):
        await opened(odd).check()


async def test_the_clock_learns_from_the_service(opened: Open, service: S4Service) -> None:
    """Webhooks are signed with a time that is right, on a node whose clock is not."""
    clock = CorrectedClock(SystemClock())
    service.script.append(Answer(404, {"date": "Fri, 31 Dec 2100 23:59:59 GMT"}))
    assert await opened(clock=clock).find_mark(a_job()) is None
    assert clock.offset > timedelta(days=365)
