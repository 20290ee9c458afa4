"""What a job names beside its models: the document behind ``job_url``, and input images."""

from __future__ import annotations

import asyncio
import base64
import random
import struct
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from io import BytesIO
from typing import Any

import pytest
from PIL import Image

from tests.support.receiver import Answer, ScriptedServer
from worker.clock import SystemClock
from worker.errors import DownloadFailed, InvalidJob, Owner, UrlForbidden
from worker.inputs import Inputs, check_image, decode_base64
from worker.retry import Policy
from worker.urls import Guard

SWIFT = Policy(attempts=3, first=timedelta(milliseconds=2), most=timedelta(milliseconds=5))


@dataclass(frozen=True)
class Named:
    field: str
    value: str


def picture(format: str = "PNG", size: tuple[int, int] = (8, 6)) -> bytes:
    file = BytesIO()
    Image.new("RGB", size, (200, 30, 60)).save(file, format)
    return file.getvalue()


def bomb(width: int = 100_000, height: int = 100_000) -> bytes:
    """A PNG of few bytes that would decode to gigabytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def text_of(data: bytes) -> str:
    return base64.b64encode(data).decode()


@asynccontextmanager
async def fetching(guard: Guard | None = None, **options: Any) -> AsyncIterator[Inputs]:
    inputs = Inputs(
        guard or Guard.from_setting("::1"),
        clock=SystemClock(),
        rng=random.Random(5),
        **{"policy": SWIFT, **options},
    )
    try:
        yield inputs
    finally:
        await inputs.aclose()


async def test_a_document_is_fetched() -> None:
    """The body behind a job_url comes back as it is, over redirects too."""
    async with ScriptedServer() as server, fetching() as inputs:
        server.routes["/job.json"] = Answer(302, {"location": "/real?sig=1"})
        server.routes["/real"] = Answer(body=b'{"id": "a"}')
        assert await inputs.document(server.url("/job.json")) == b'{"id": "a"}'
    assert server.requests[0].headers["accept-encoding"] == "identity"


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410])
async def test_a_document_that_is_refused_is_the_jobs_mistake(status: int) -> None:
    """A 4xx is told under the field job_url at once, without the query that may hold a signature."""
    async with ScriptedServer(Answer(status)) as server, fetching() as inputs:
        with pytest.raises(InvalidJob) as caught:
            await inputs.document(server.url("/job.json?sig=hunter2"))
    assert caught.value.message == f"job_url: http://[::1]:{server.port}/job.json: answered {status}"
    assert len(server.requests) == 1


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503])
async def test_a_source_that_is_down_is_tried_again(status: int) -> None:
    """What may pass is retried and then succeeds."""
    async with ScriptedServer(Answer(status), Answer(body=b"{}")) as server, fetching() as inputs:
        assert await inputs.document(server.url()) == b"{}"


async def test_a_source_that_stays_down_is_no_fault_of_the_job() -> None:
    """After all tries it is a download that failed, owned by the job so that nothing pauses, with its Retry-After."""
    async with ScriptedServer() as server, fetching() as inputs:
        server.otherwise = Answer(503, {"retry-after": "0"})
        with pytest.raises(DownloadFailed, match="answered 503") as caught:
            await inputs.document(server.url())
        assert len(server.requests) == SWIFT.attempts
    assert (caught.value.owner, caught.value.retry_after) == (Owner.JOB, timedelta(0))


async def test_a_server_that_is_not_there_is_a_failed_download() -> None:
    """Connections refused and answers that hang are both failures of what the job named."""
    async with ScriptedServer() as gone:
        pass
    async with fetching() as inputs:
        with pytest.raises(DownloadFailed, match="cannot be connected to") as caught:
            await inputs.document(gone.url())
    assert caught.value.owner is Owner.JOB
    async with ScriptedServer(Answer(hang=True)) as server, fetching(budget=timedelta(milliseconds=50)) as inputs:
        with pytest.raises(DownloadFailed, match="no success within") as caught:
            await inputs.document(server.url("/x?sig=hunter2"))
    assert caught.value.owner is Owner.JOB
    assert "hunter2" not in caught.value.message


@pytest.mark.parametrize("chunked", [False, True], ids=["declared", "undeclared"])
async def test_a_document_over_the_limit_is_refused_while_reading(chunked: bool) -> None:
    """Its length is bounded whether the server declares it or not."""
    async with ScriptedServer(Answer(body=bytes(5000), chunked=chunked)) as server, fetching(max_bytes=4999) as inputs:
        with pytest.raises(InvalidJob, match="job_url: has more than 4999 bytes"):
            await inputs.document(server.url())


@pytest.mark.parametrize(
    "url", ["http://localhost/", "http://169.254.169.254/latest", "file:///etc/passwd", "s3://key:pw@bucket/x"]
)
async def test_forbidden_documents_are_not_fetched(url: str) -> None:
    """The guard stands before documents too."""
    async with fetching(Guard()) as inputs:
        with pytest.raises(UrlForbidden, match=r"^job_url: "):
            await inputs.document(url)


async def test_s3_documents_come_from_the_given_reader() -> None:
    """An s3 URL goes to the injected reader with the limit, and is retried like any other."""
    asked: list[tuple[str, int]] = []

    async def read(url: str, limit: int) -> bytes:
        asked.append((url, limit))
        if len(asked) == 1:
            raise DownloadFailed("slow down")
        return b"{}"

    async with fetching(fetch_s3=read, max_bytes=77) as inputs:
        assert await inputs.document("s3://bucket/job.json") == b"{}"
    assert asked == [("s3://bucket/job.json", 77)] * 2
    async with fetching() as inputs:
        with pytest.raises(InvalidJob, match="job_url: this worker reads no s3"):
            await inputs.document("s3://bucket/job.json")


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
async def test_images_come_from_urls_base64_and_data_uris(format: str) -> None:
    """Every way to name an image of every format gives the same bytes, by field."""
    data = picture(format)
    async with ScriptedServer(Answer(body=data)) as server, fetching() as inputs:
        found = await inputs.images(
            [
                Named("params.image", server.url("/a.png")),
                Named("params.mask", text_of(data)),
                Named("request.init_images.0", f"data:image/png;base64,{text_of(data)}"),
            ]
        )
    assert found == {"params.image": data, "params.mask": data, "request.init_images.0": data}


async def test_the_same_url_is_fetched_once() -> None:
    """An image that is also the mask is one download, its mistakes told under the first field."""
    async with ScriptedServer() as server, fetching() as inputs:
        server.otherwise = Answer(body=picture())
        refs = [Named("a", server.url()), Named("b", server.url())]
        found = await inputs.images(refs)
        assert found["a"] == found["b"] == picture()
        assert len(server.requests) == 1
        server.otherwise = Answer(404)
        with pytest.raises(InvalidJob, match=r"^a: "):
            await inputs.images(refs)


async def test_no_images_are_no_work() -> None:
    """A job without inputs gets none."""
    async with fetching() as inputs:
        assert await inputs.images([]) == {}


async def test_large_base64_is_decoded_off_the_loop() -> None:
    """Megabytes of base64 come out whole, while the loop goes on turning."""
    noise = Image.frombytes("RGB", (700, 700), random.Random(1).randbytes(700 * 700 * 3))
    file = BytesIO()
    noise.save(file, "BMP")
    text, turns, loop = text_of(file.getvalue()), 0, asyncio.get_running_loop()

    def turn() -> None:
        nonlocal turns
        turns += 1
        if not task.done():
            loop.call_soon(turn)

    async with fetching() as inputs:
        task = asyncio.create_task(inputs.images([Named("f", text)]), name="test-images")
        turn()
        found = await task
    assert found["f"] == file.getvalue()
    assert turns > 10


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("not base64!", "is not valid base64"),
        ("QUJ", "is not valid base64"),
        ("data:image/png;base64,%%%%", "is not valid base64"),
        ("", "is empty"),
        ("data:image/png;base64,", "is empty"),
        ("data:image/png,rawdata", "neither an http or https URL nor base64"),
        ("bücher", "is not valid base64"),
        ("ftp://[x", "neither an http or https URL nor base64"),
        ("file:///etc/passwd", "neither an http or https URL nor base64"),
        (text_of(b"hello, this is no image"), "is no image"),
        (text_of(picture()[:20]), "is no image"),
        (text_of(b"\xff\xd8\xff" + bytes(50)), "is no image"),
        (text_of(b"GIF89a"), "is no image"),
        (text_of(b"BM" + bytes(40)), "is no image"),
        (text_of(b"RIFF\x00\x00\x00\x00WEBPVP8 "), "is no image"),
        (text_of(bomb()), "has 100000x100000 pixels, more than"),
    ],
)
async def test_bad_images_are_the_jobs_mistake_under_their_field(value: str, message: str) -> None:
    """Each is told by field and kind, and its content is not repeated."""
    async with fetching() as inputs:
        with pytest.raises(InvalidJob) as caught:
            await inputs.images([Named("params.image", value)])
    assert caught.value.message.startswith("params.image: ")
    assert message in caught.value.message
    assert caught.value.errors[0].field == "params.image"


async def test_a_fetched_body_must_be_an_image_too() -> None:
    """An error page served with 200 is no input image."""
    async with ScriptedServer(Answer(body=b"<html>please log in</html>")) as server, fetching() as inputs:
        with pytest.raises(InvalidJob, match=r"^params\.image: is no image"):
            await inputs.images([Named("params.image", server.url())])


async def test_pixels_are_bounded() -> None:
    """The limit itself passes, one row more does not."""
    assert check_image(picture(size=(8, 8)), field="f", max_pixels=64) == (8, 8)
    async with fetching(max_pixels=64) as inputs:
        with pytest.raises(InvalidJob, match="f: has 8x9 pixels, more than 64"):
            await inputs.images([Named("f", text_of(picture(size=(8, 9))))])


async def test_bytes_are_bounded_each_and_together() -> None:
    """Too long a text is refused before it is decoded, and several images share the limit."""
    data = picture("BMP", (40, 40))
    async with fetching(max_bytes=len(data) * 3 // 2) as inputs:
        with pytest.raises(InvalidJob, match=r"^big: has more than"):
            await inputs.images([Named("big", text_of(bytes(len(data) * 4)))])
        other = picture("BMP", (41, 40))
        with pytest.raises(InvalidJob, match="the inputs have more than"):
            await inputs.images([Named("a", text_of(data)), Named("b", text_of(other))])


async def test_one_bad_image_ends_the_fetching_of_the_others() -> None:
    """Nothing is left running when the first mistake is found."""
    async with ScriptedServer(Answer(hang=True)) as server, fetching() as inputs:
        with pytest.raises(InvalidJob, match=r"^bad: "):
            await inputs.images([Named("slow", server.url()), Named("bad", "!")])
        assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("input-")]


async def test_forbidden_images_are_not_fetched() -> None:
    """The guard stands before images too."""
    async with fetching(Guard()) as inputs:
        with pytest.raises(UrlForbidden, match=r"^f: "):
            await inputs.images([Named("f", "HTTP://localhost/x.png")])


def test_base64_may_have_line_breaks() -> None:
    """Text as mail programs and shells wrap it is read."""
    text = base64.encodebytes(bytes(range(200))).decode()
    assert decode_base64(text, field="f") == bytes(range(200))
    assert decode_base64("data:;base64,\r\nQUJD\r\n", field="f") == b"ABC"
