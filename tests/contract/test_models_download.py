"""Downloads over real sockets: ranges, streams, and servers that break off, stall or are busy."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.support.fetching import BODY, KIB, SIZES, TEMPO, Rig, digest, made, rigged
from tests.support.model_host import BROKEN, FORBIDDEN, HostedFile, ModelHost, Twist, busy, redirect
from tests.support.receiver import Answer
from tests.support.waiting import wait_until
from worker.errors import DiskFull, DownloadFailed, ModelTooLarge
from worker.models.base import Priority, Tempo


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with rigged(tmp_path) as made_rig:
        yield made_rig


async def test_a_file_comes_in_parallel_ranges(rig: Rig) -> None:
    """Several connections bring it, each byte once, and the hash is known at the end."""
    file = rig.host.host("/m", BODY)
    file.twist = Twist(drip=16 * KIB, drip_s=0.001)
    rig.arrived(await rig.fetch())
    assert rig.host.most_at_once > 1
    assert all(asked.startswith("bytes=") for asked in file.ranges_asked)
    assert rig.rooms == [len(BODY)]
    assert rig.seen[-1] == (len(BODY), len(BODY))


async def test_a_small_file_takes_one_request(rig: Rig) -> None:
    """The first request is no question: it keeps what it brings."""
    body = made(50 * KIB)
    file = rig.host.host("/m", body)
    rig.arrived(await rig.fetch(), body)
    assert [request.method for request in file.requests] == ["GET"]


async def test_a_server_without_ranges_sends_the_whole(rig: Rig) -> None:
    """Status 200 to a range request: that very answer is the file."""
    file = rig.host.host("/m", HostedFile(BODY, ranges=False))
    rig.arrived(await rig.fetch())
    assert len(file.requests) == 1
    assert rig.rooms == [len(BODY)]


@pytest.mark.parametrize("twist", [Twist(shift=7), Twist(headers={"content-range": ""})])
async def test_ranges_that_are_not_those_asked_for_are_not_believed(rig: Rig, twist: Twist) -> None:
    """A wrong or missing Content-Range: the file is asked for as a whole."""
    file = rig.host.host("/m", BODY)
    file.chosen = lambda request: twist if "range" in request.headers else None
    rig.arrived(await rig.fetch())
    assert file.ranges_asked[-1] == ""


async def test_an_answer_shorter_than_asked_is_continued(rig: Rig) -> None:
    """A server may give less of a range than was asked for, and says so."""
    body = made(50 * KIB)
    file = rig.host.host("/m", body)
    short = {"content-range": f"bytes 0-9999/{len(body)}", "content-length": "10000"}
    file.twists.append(Twist(headers=short, cut=10000))
    rig.arrived(await rig.fetch(), body)
    assert file.ranges_asked[1].startswith("bytes=10000-")


@pytest.mark.parametrize(
    "twist",
    [Twist(chunked=True, whole=True), Twist(whole=True, headers={"content-length": "", "connection": "close"})],
    ids=["chunked", "until-closed"],
)
async def test_a_file_of_unknown_size_asks_for_room_in_steps(rig: Rig, twist: Twist) -> None:
    """Room is there before each step is written; the coding or the connection tells the end."""
    rig.host.host("/m", HostedFile(BODY, twist=twist))
    rig.arrived(await rig.fetch())
    assert rig.rooms == [SIZES.step * n for n in range(1, len(rig.rooms) + 1)]
    assert rig.rooms[-1] - SIZES.step <= len(BODY) <= rig.rooms[-1]
    assert rig.seen[0][1] is None


async def test_room_that_is_refused_stops_before_more_is_written(rig: Rig) -> None:
    """Of a file of unknown size not a byte lies beyond what was granted."""
    file = rig.host.host("/m", BODY)
    file.twist = Twist(chunked=True, whole=True)
    rig.refuses = lambda total: DiskFull("no room") if total > 2 * SIZES.step else None
    with pytest.raises(DiskFull, match="no room"):
        await rig.fetch()
    assert rig.partial.stat().st_size <= 2 * SIZES.step


async def test_a_file_that_is_too_large_leaves_nothing(rig: Rig) -> None:
    """Room is asked for before the first byte is written."""
    rig.host.host("/m", BODY)
    rig.refuses = lambda total: ModelTooLarge("too large")
    with pytest.raises(ModelTooLarge):
        await rig.fetch()
    assert list(rig.partial.parent.iterdir()) == []


@pytest.mark.parametrize("end", ["close", "reset"])
async def test_what_breaks_off_is_continued_as_long_as_bytes_come(rig: Rig, end: Any) -> None:
    """Far more failures than attempts, each after some bytes: it arrives all the same."""
    file = rig.host.host("/m", BODY)
    file.twists.extend([Twist(cut=9 * KIB, end=end)] * 60)
    rig.arrived(await rig.fetch())


@pytest.mark.parametrize("end", ["close", "reset"])
async def test_a_coded_stream_that_breaks_off_begins_again(rig: Rig, end: Any) -> None:
    """Its coding shows that the end is missing; what came is no file."""
    file = rig.host.host("/m", HostedFile(BODY, ranges=False, twist=Twist(chunked=True)))
    file.twists.append(Twist(chunked=True, cut=100 * KIB, end=end))
    rig.arrived(await rig.fetch())
    assert len(file.requests) == 2


async def test_a_connection_that_the_server_left_is_replaced(rig: Rig) -> None:
    """Without counting as a failure: servers close kept connections as they like."""
    rig.host.host("/m", HostedFile(BODY, twist=Twist(leaves=True)))
    rig.arrived(await rig.fetch())


async def test_a_kept_connection_serves_only_the_place_that_it_leads_to(rig: Rig) -> None:
    """When the redirect leads elsewhere from some range on, the next ones are asked there."""
    async with ModelHost() as mirror:
        mirrored, api = mirror.host("/m", BODY), rig.host.host("/m", BODY)
        mirrored.chosen = lambda request: FORBIDDEN if len(mirrored.requests) > 6 else None
        api.chosen = lambda request: redirect(mirror.url("/m")) if len(api.requests) == 1 else None
        rig.arrived(await rig.fetch())
    assert mirrored.sent
    assert api.sent


async def test_what_breaks_off_without_bytes_fails_after_its_attempts(rig: Rig) -> None:
    """Refilled only by bytes: a server that closes at once has so many tries."""
    file = rig.host.host("/m", BODY)
    file.twist = Twist(cut=0)
    with pytest.raises(DownloadFailed, match="the mirror"):
        await rig.fetch()
    assert len(file.requests) <= TEMPO.attempts * 5


async def test_a_source_that_always_breaks_off_at_the_same_byte_is_given_up(rig: Rig) -> None:
    """Without ranges each try begins at zero: getting as far as before is no way made."""
    file = rig.host.host("/m", HostedFile(BODY, ranges=False))
    file.twist = Twist(cut=100 * KIB)
    with pytest.raises(DownloadFailed, match="ended early"):
        await rig.fetch()
    assert len(file.requests) <= TEMPO.attempts + 1


async def test_a_silent_connection_is_cut_and_its_piece_fetched_again(tmp_path: Path) -> None:
    """A stall is noticed by bytes per time, and costs nothing but that time."""
    tempo = Tempo(timedelta(milliseconds=300), 1, first=timedelta(milliseconds=1), most=timedelta(milliseconds=5))
    async with rigged(tmp_path, tempo=tempo) as rig:
        file = rig.host.host("/m", BODY)
        file.twists.append(Twist(cut=10 * KIB, end="silence"))
        rig.arrived(await rig.fetch())


async def test_a_connection_that_only_drips_is_cut(tmp_path: Path) -> None:
    """Bytes that come too slowly do not keep a connection alive."""
    tempo = Tempo(
        timedelta(milliseconds=300),
        64 * KIB,
        attempts=2,
        first=timedelta(milliseconds=1),
        most=timedelta(milliseconds=5),
    )
    async with rigged(tmp_path, tempo=tempo) as rig:
        file = rig.host.host("/m", BODY)
        file.twist = Twist(drip=10, drip_s=0.02)
        with pytest.raises(DownloadFailed, match="sends less than 65536 bytes"):
            await rig.fetch()


async def test_a_head_that_never_comes_is_not_waited_for(tmp_path: Path) -> None:
    """A server that takes the request and says nothing has failed."""
    async with rigged(tmp_path, tempo=Tempo(timedelta(milliseconds=200), 1, 2, timedelta(0), timedelta(0))) as rig:
        rig.host.otherwise = Answer(hang=True)
        with pytest.raises(DownloadFailed, match="no answer in time"):
            await rig.fetch(rig.at("/nothing"))


@pytest.mark.parametrize("twist", [busy(0), busy(0, 503), BROKEN])
async def test_a_server_that_is_busy_or_broken_for_a_moment_is_asked_again(rig: Rig, twist: Twist) -> None:
    """429 and 5xx pass, for the first request and for later ones."""
    file = rig.host.host("/m", BODY)
    file.twists.extend([twist, None, twist, twist, None])
    rig.arrived(await rig.fetch())


async def test_a_wait_that_is_too_long_is_told_instead(rig: Rig) -> None:
    """Retry-After of an hour, and nothing else goes on: the failure says when to come again."""
    file = rig.host.host("/m", BODY)
    file.twist = busy(3600)
    with pytest.raises(DownloadFailed) as caught:
        await rig.fetch()
    assert caught.value.retry_after == timedelta(hours=1)
    assert len(file.requests) == 1


async def test_bytes_that_are_wrong_once_are_fetched_again(rig: Rig) -> None:
    """A fault on the way is repaired by the second try."""
    body = made(20 * KIB)
    file = rig.host.host("/m", made(20 * KIB, seed=5))

    def repaired(request: Any) -> Twist | None:
        file.body = body if len(file.requests) > 1 else file.body
        return None

    file.chosen = repaired
    rig.arrived(await rig.fetch(sha256=digest(body)), body)


async def test_transfers_that_nobody_waits_for_stand_still(rig: Rig) -> None:
    """Paused, a prefetch brings nothing; when its priority rises it goes on by itself."""
    rig.host.host("/m", BODY)
    rig.priority = Priority.BACKGROUND
    rig.downloads.pause(True)
    fetching = asyncio.create_task(rig.fetch(), name="prefetch")
    await wait_until(rig.partial.exists)
    assert rig.host.requests == []
    rig.priority = Priority.JOB
    rig.arrived(await fetching)


async def test_a_pause_ends(rig: Rig) -> None:
    """What stood still goes on when it may."""
    rig.host.host("/m", BODY)
    rig.priority = Priority.BACKGROUND
    rig.downloads.pause(True)
    fetching = asyncio.create_task(rig.fetch(), name="prefetch")
    await wait_until(rig.partial.exists)
    rig.downloads.pause(False)
    rig.arrived(await fetching)


async def test_s3_without_credentials_of_its_own_is_told(rig: Rig) -> None:
    """An s3:// location where nobody set up S3."""
    with pytest.raises(DownloadFailed, match="s3://"):
        await rig.fetch(rig.at(url="s3://bucket/key", source="s3://bucket/key"))
