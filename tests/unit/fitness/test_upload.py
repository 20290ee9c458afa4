"""The line to the bucket, measured against real stores."""

from __future__ import annotations

import asyncio
import itertools
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from datetime import timedelta

import pytest
from structlog.testing import capture_logs

from tests.support.faulty import Answer, Asked, Deed, faulty_proxy, refusal
from tests.support.s3 import Bucket, set_credentials
from tests.support.turnstile import turnstile
from tests.support.virtual import takes
from worker.clock import CorrectedClock, SystemClock
from worker.errors import AuthFailed, ConfigError, UploadFailed
from worker.fitness.upload import UploadSpeed
from worker.settings.storage import StorageSettings
from worker.storage.trial import Sent, UploadTrial

pytest_plugins = ["tests.support.s3_fixtures"]
pytestmark = pytest.mark.usefixtures("credentials")

DENIED, BUSY = refusal(403, "AccessDenied"), refusal(503, "SlowDown")


def settings(bucket: Bucket, url: str | None = None) -> StorageSettings:
    return StorageSettings(bucket=bucket.name, endpoint_url=url or bucket.endpoint_url, prefix="images")


def speed_of(place: StorageSettings, *, size: int = 2_000_000, window_s: float = 20, stall_s: float = 5) -> UploadSpeed:
    clock, stall = CorrectedClock(SystemClock()), timedelta(seconds=stall_s)
    return UploadSpeed(1e6, place, clock, "node-1", size=size, window_s=window_s, stall=stall)


Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter, str], Awaitable[None]]


@contextmanager
def closing_at_once(writer: asyncio.StreamWriter) -> Iterator[None]:
    try:
        yield
    finally:
        writer.transport.abort()


@asynccontextmanager
async def sink(taking: Handler) -> AsyncIterator[str]:
    """A store that acknowledges everything small, and has large bodies handled; its buffers are small."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with closing_at_once(writer), suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
                length = int(head.partition("content-length: ")[2].partition("\r\n")[0] or 0)
                if "expect: 100-continue" in head:
                    writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                if length > 10_000:
                    await taking(reader, writer, head)
                else:
                    await reader.readexactly(length)
                writer.write(b'HTTP/1.1 200 OK\r\nETag: "x"\r\nContent-Length: 0\r\n\r\n')
                await writer.drain()

    listener = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    listener.bind(("::1", 0))
    serving: set[asyncio.Task[None]] = set()

    def begin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving.add(asyncio.ensure_future(serve(reader, writer)))

    server = await asyncio.start_server(begin, sock=listener, limit=8192)
    try:
        yield f"http://[::1]:{listener.getsockname()[1]}"
    finally:
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)
        server.close()
        await server.wait_closed()


async def test_what_is_sent_is_measured_and_deleted_again(rclone_bucket: Bucket) -> None:
    """Some megabytes below the operator's prefix, of which nothing stays."""
    found = await speed_of(settings(rclone_bucket)).measure()
    assert found.value is not None
    assert found.value > 0
    assert found.detail.startswith("2 MB to the bucket in ")
    assert rclone_bucket.keys() == set()


async def test_it_goes_out_below_the_prefix_over_several_connections(rclone_bucket: Bucket) -> None:
    """As images do; named by the node, so that no two nodes write the same objects."""
    async with faulty_proxy(rclone_bucket.endpoint_url) as proxy:
        await speed_of(settings(rclone_bucket, proxy.url)).measure()
        sizes = {asked.path: len(asked.body) for asked in proxy.seen if asked.method == "PUT"}
        deleted = {asked.path.partition("?")[0] for asked in proxy.seen if asked.method == "DELETE"}
    keys = {f"/{rclone_bucket.name}/images/sd-worker-fitness/node-1-{i}.bin" for i in range(4)}
    assert {path.partition("?")[0] for path in sizes} == deleted == keys
    assert set(sizes.values()) == {500_000}


async def test_a_slow_line_is_cut_off_when_the_time_is_up(rclone_bucket: Bucket) -> None:
    """What went out until then counts, and nothing more is sent."""

    async def slowly(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: str) -> None:
        while await reader.read(16384):
            await takes(0.005)

    size = 48_000_000
    async with sink(slowly) as url:
        place = settings(rclone_bucket, url)
        trial = UploadTrial(place, clock=CorrectedClock(SystemClock()), name="n", size=size, window_s=0.6)
        sent = await trial.measure()
        await trial.aclose()
    assert not sent.whole
    assert 0 < sent.bytes < size


async def test_a_store_that_takes_nothing_more_is_away_and_not_slow(rclone_bucket: Bucket) -> None:
    """It answered, took some bytes, and hangs: that is no speed of the node."""

    async def never(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: str) -> None:
        await asyncio.Event().wait()

    async with sink(never) as url:
        with pytest.raises(UploadFailed, match="stopped taking bytes"):
            await speed_of(settings(rclone_bucket, url), size=64_000_000, window_s=0.6, stall_s=0.9).measure()


@pytest.mark.parametrize(("answer", "error"), [(DENIED, AuthFailed), (BUSY, UploadFailed)], ids=["denied", "busy"])
async def test_a_store_that_refuses_says_nothing_of_the_node(
    rclone_bucket: Bucket, answer: Answer, error: type[Exception]
) -> None:
    async with faulty_proxy(rclone_bucket.endpoint_url) as proxy:
        proxy.deed = lambda asked: answer
        with pytest.raises(error):
            await speed_of(settings(rclone_bucket, proxy.url)).measure()


async def test_an_unreachable_store_is_away(rclone_bucket: Bucket) -> None:
    with pytest.raises(UploadFailed):
        await speed_of(settings(rclone_bucket, "http://[::1]:1")).measure()


async def test_wrong_credentials_are_the_operators(rclone_bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without any, nothing is even sent."""
    set_credentials(monkeypatch, key=None)
    with pytest.raises(AuthFailed, match="no usable credentials"):
        await speed_of(settings(rclone_bucket)).measure()


async def test_where_nobody_may_delete_a_line_of_text_stays(rclone_bucket: Bucket) -> None:
    """The smallest policy that works has no s3:DeleteObject."""
    async with faulty_proxy(rclone_bucket.endpoint_url) as proxy:
        proxy.deed = lambda asked: DENIED if asked.method == "DELETE" else "forward"
        assert (await speed_of(settings(rclone_bucket, proxy.url)).measure()).value is not None
    left = rclone_bucket.keys()
    assert len(left) == 4
    assert {rclone_bucket.read(key).partition(b" by ")[0] for key in left} == {b"written"}


async def test_what_cannot_be_deleted_is_told(rclone_bucket: Bucket) -> None:
    """The measurement counts all the same."""

    async with faulty_proxy(rclone_bucket.endpoint_url) as proxy:

        def deed(asked: Asked) -> Deed:
            return BUSY if "DELETE" in (asked.method, *proxy.methods()) else "forward"

        proxy.deed = deed
        with capture_logs() as logs:
            assert (await speed_of(settings(rclone_bucket, proxy.url)).measure()).value is not None
    assert [line["event"] for line in logs if line["log_level"] == "warning"] == ["fitness_trial_left"]


async def test_a_measurement_that_is_cut_off_leaves_nothing(rclone_bucket: Bucket) -> None:
    """A worker that is stopped meanwhile deletes what had gone out."""
    puts = itertools.count()
    async with turnstile(rclone_bucket.endpoint_url) as line:
        line.hold(lambda method, path: method == "PUT" and next(puts) == 1)
        measuring = asyncio.create_task(speed_of(settings(rclone_bucket, line.url)).measure())
        await line.held.wait()
        measuring.cancel()
        line.release()
        with pytest.raises(asyncio.CancelledError):
            await measuring
        await line.idle()
    assert rclone_bucket.keys() == set()


def test_there_has_to_be_a_bucket() -> None:
    with pytest.raises(ConfigError, match="WORKER_S3_BUCKET"):
        UploadTrial(StorageSettings(), clock=CorrectedClock(SystemClock()), name="n")


def test_what_went_out_whole_counts_whenever_it_did() -> None:
    """A fast line is done in the first half of the time."""
    assert Sent(8_000_000, 0, 2.0, whole=True).rate == 4_000_000
    assert Sent(8_000_000, 1, 8.0, whole=False).rate == 1_000_000
