"""Downloads over real sockets, from a server that does everything wrong that such servers do."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import random
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.support.model_host import (
    BROKEN,
    FORBIDDEN,
    GONE,
    LOGIN_PAGE,
    NOT_FOUND,
    UNAUTHORIZED,
    HostedFile,
    ModelHost,
    Twist,
    busy,
    redirect,
)
from tests.support.receiver import Answer
from tests.support.waiting import wait_until
from worker.clock import SystemClock
from worker.errors import (
    AuthFailed,
    DiskFull,
    DownloadFailed,
    ModelCorrupt,
    ModelForbidden,
    ModelNotFound,
    ModelTooLarge,
    Owner,
    UrlForbidden,
    WorkerError,
)
from worker.models.base import Fetched, Location, Priority, Tempo, Wanted
from worker.models.download import Downloads
from worker.models.partial import read_record, sidecar_of
from worker.models.pieces import Sizes
from worker.settings.models import ModelsSettings
from worker.urls import Guard

KIB = 1024
NAME = "model.dat"
TEMPO = Tempo(
    stall=timedelta(seconds=5), stall_bytes=1, first=timedelta(milliseconds=1), most=timedelta(milliseconds=5)
)
SIZES = Sizes(piece_least=64 * KIB, piece_most=128 * KIB, turn=32 * KIB, step=128 * KIB)


def made(size: int, seed: int = 1) -> bytes:
    """Bytes that begin as no page or document does."""
    return b"\x00model" + random.Random(seed).randbytes(size - 6)


BODY = made(1000 * KIB + 123)


def digest(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


@dataclass
class Rig:
    """A fetcher and what it was asked and told."""

    downloads: Downloads
    host: ModelHost
    partial: Path
    rooms: list[int] = field(default_factory=list)
    seen: list[tuple[int, int | None]] = field(default_factory=list)
    priority: Priority = Priority.JOB
    refuses: Callable[[int], WorkerError | None] = lambda total: None

    async def room(self, total: int) -> None:
        self.rooms.append(total)
        refusal = self.refuses(total)
        if refusal is not None:
            raise refusal

    def at(self, path: str = "/m", **changes: Any) -> Location:
        return Location(**{"url": self.host.url(path), "source": "the mirror", **changes})

    async def fetch(self, *locations: Location, name: str = NAME, **wanted: Any) -> Fetched:
        return await self.located(lambda: _each(*(locations or (self.at(),))), name=name, **wanted)

    async def located(self, locate: Callable[[], AsyncIterator[Location]], name: str = NAME, **wanted: Any) -> Fetched:
        return await self.downloads.fetch(
            locate,
            self.partial,
            Wanted("checkpoint", name, **wanted),
            room=self.room,
            on_bytes=lambda there, size: self.seen.append((there, size)),
            priority=lambda: self.priority,
        )

    def arrived(self, fetched: Fetched, body: bytes = BODY) -> None:
        """The file is there, whole, and its record gone."""
        assert fetched.path == self.partial
        assert self.partial.read_bytes() == body
        assert (fetched.size, fetched.sha256) == (len(body), digest(body))
        assert sorted(path.name for path in self.partial.parent.iterdir()) == [self.partial.name]

    async def cut_off(self, file: HostedFile, after: int, **wanted: Any) -> None:
        """Have a first try brought so many bytes at least, and cancelled then."""
        file.twist = Twist(cut=after, end="hold")
        fetching = asyncio.create_task(self.fetch(**wanted), name="first-try")
        await wait_until(lambda: self.seen and self.seen[-1][0] >= after)
        fetching.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await fetching
        file.twist = Twist()
        file.requests.clear()
        file.sent = 0


async def _each(*locations: Location) -> AsyncIterator[Location]:
    for location in locations:
        yield location


@contextlib.asynccontextmanager
async def rigged(folder: Path, **changes: Any) -> AsyncIterator[Rig]:
    settings = ModelsSettings(**{"connections": 4, **changes.pop("settings", {})})
    given: dict[str, Any] = {"tempo": TEMPO, "sizes": SIZES, "checkpoint": timedelta(milliseconds=5), **changes}
    guard = given.pop("guard", Guard())
    downloads = Downloads(settings, guard, clock=SystemClock(), rng=random.Random(1), **given)
    async with ModelHost() as host:
        try:
            yield Rig(downloads, host, folder / "parts" / "one.part")
        finally:
            await downloads.aclose()


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


async def test_a_cancelled_fetch_is_resumed_by_the_next(rig: Rig) -> None:
    """Only what is missing comes again, under the condition that the file is still the same."""
    file = rig.host.host("/m", BODY)
    await rig.cut_off(file, 60 * KIB)
    rig.arrived(await rig.fetch())
    assert {request.headers.get("if-range") for request in file.requests} == {'"v1"'}
    assert file.sent < len(BODY)


async def test_a_file_that_changed_meanwhile_is_not_mixed_with_the_old_one(rig: Rig) -> None:
    """The source answers the condition with the whole new file, and that very answer is used."""
    file = rig.host.host("/m", BODY)
    await rig.cut_off(file, 60 * KIB)
    file.body, file.etag = made(300 * KIB, seed=2), '"v2"'
    rig.arrived(await rig.fetch(), file.body)
    assert len(file.requests) == 1


async def test_a_file_that_changes_between_two_ranges_begins_anew(rig: Rig) -> None:
    """A connection that meets another tag stops all the others; the new file is fetched whole."""
    file = rig.host.host("/m", BODY)
    later = made(len(BODY), seed=3)

    def change(request: Any) -> Twist | None:
        if len(file.requests) == 3:
            file.body, file.etag = later, '"v2"'
        return None

    file.chosen = change
    rig.arrived(await rig.fetch(), later)


async def test_a_file_that_never_stays_the_same_is_given_up(rig: Rig) -> None:
    """Ranges of another file at every request, from a server that hears no condition."""
    file = rig.host.host("/m", HostedFile(BODY, conditional=False))
    file.chosen = lambda request: Twist(headers={"etag": f'"{len(file.requests)}"'})
    with pytest.raises(DownloadFailed, match="changes while it is fetched"):
        await rig.fetch()


async def test_without_a_validator_or_a_hash_nothing_is_resumed(rig: Rig) -> None:
    """What cannot be shown to be the same file begins anew."""
    file = rig.host.host("/m", HostedFile(BODY, etag='W/"weak"', modified=None))
    await rig.cut_off(file, 60 * KIB)
    rig.arrived(await rig.fetch())
    assert file.ranges_asked[0].startswith("bytes=0-")
    assert file.sent >= len(BODY)


async def test_a_date_is_enough_at_the_same_url(rig: Rig) -> None:
    """A weak tag is no condition; then the date of the last change is."""
    file = rig.host.host("/m", HostedFile(BODY, etag='W/"weak"'))
    await rig.cut_off(file, 60 * KIB)
    rig.arrived(await rig.fetch())
    assert all(request.headers["if-range"].endswith("GMT") for request in file.requests)
    assert file.sent < len(BODY)


async def test_with_a_hash_another_source_goes_on_where_the_first_stopped(rig: Rig) -> None:
    """The same content under another URL is the same file."""
    sha256 = digest(BODY)
    await rig.cut_off(rig.host.host("/m", BODY), 60 * KIB, sha256=sha256)
    other = rig.host.host("/other", HostedFile(BODY, etag='"elsewhere"'))
    rig.arrived(await rig.fetch(rig.at("/other"), sha256=sha256))
    assert other.sent < len(BODY)


async def test_without_a_hash_another_source_begins_anew(rig: Rig) -> None:
    """Tags that two servers made up on their own say nothing about each other's files."""
    await rig.cut_off(rig.host.host("/m", BODY), 60 * KIB)
    other = rig.host.host("/other", BODY)
    rig.arrived(await rig.fetch(rig.at("/other")))
    assert other.sent >= len(BODY)


async def test_a_whole_file_of_known_hash_asks_nobody(rig: Rig) -> None:
    """When the process ended between the last byte and the end, the bytes are only verified again."""
    body = made(50 * KIB)
    file = rig.host.host("/m", body)
    rig.refuses = lambda total: None
    rig.arrived(await rig.fetch(sha256=digest(body)), body)
    sidecar_of(rig.partial).write_text(
        json.dumps({"url": "x", "size": len(body), "sha256": digest(body), "done": [[0, len(body)]]})
    )
    file.requests.clear()
    rig.arrived(await rig.fetch(sha256=digest(body)), body)
    assert file.requests == []


async def test_a_whole_file_without_hash_is_confirmed_by_its_last_byte(rig: Rig) -> None:
    """One byte under the condition tells that it is still the same file."""
    body = made(50 * KIB)
    file = rig.host.host("/m", body)
    rig.arrived(await rig.fetch(), body)
    record = {"url": rig.host.url("/m"), "size": len(body), "etag": '"v1"', "done": [[0, len(body)]]}
    sidecar_of(rig.partial).write_text(json.dumps(record))
    file.sent = 0
    rig.arrived(await rig.fetch(), body)
    assert file.sent == 1


@pytest.mark.parametrize("size", [0, 1000, 50 * KIB - 1, 60 * KIB])
async def test_a_record_of_another_size_begins_anew(rig: Rig, size: int) -> None:
    """A total that differs from the record's, and a range beyond the end, mean another file."""
    body = made(50 * KIB)
    rig.host.host("/m", body)
    rig.partial.parent.mkdir(parents=True)
    rig.partial.write_bytes(b"x" * size)
    record = {"url": rig.host.url("/m"), "size": size + 5, "etag": '"v1"', "done": [[0, size]]}
    sidecar_of(rig.partial).write_text(json.dumps(record))
    rig.arrived(await rig.fetch(), body)


@pytest.mark.parametrize("record", ["", "{", "[]", '{"v": 99, "done": [[0, 1000]]}', '{"done": "all"}'])
async def test_a_record_that_makes_no_sense_is_none(rig: Rig, record: str) -> None:
    """The bytes beside it are not believed."""
    body = made(50 * KIB)
    rig.host.host("/m", body)
    rig.partial.parent.mkdir(parents=True)
    rig.partial.write_bytes(b"x" * 1000)
    sidecar_of(rig.partial).write_text(record)
    rig.arrived(await rig.fetch(), body)


async def test_a_record_is_believed_only_as_far_as_the_file_goes(rig: Rig) -> None:
    """A file that is shorter than its record says misses the rest."""
    file = rig.host.host("/m", BODY)
    await rig.cut_off(file, 60 * KIB)
    with rig.partial.open("r+b") as partial:
        partial.truncate(10 * KIB)
    rig.arrived(await rig.fetch())
    assert file.sent >= len(BODY) - 10 * KIB


async def test_the_record_is_kept_up_to_date_while_bytes_come(rig: Rig) -> None:
    """A killed process finds most of what it had, whoever it was."""
    file = rig.host.host("/m", BODY)
    file.twist = Twist(cut=50 * KIB, end="hold")
    fetching = asyncio.create_task(rig.fetch(), name="fetching")
    await wait_until(lambda: sum(end - start for start, end in read_record(sidecar_of(rig.partial)).done) > 40 * KIB)
    assert read_record(sidecar_of(rig.partial)).size == len(BODY)
    file.released.set()
    rig.arrived(await fetching)


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


@pytest.mark.parametrize("twist", [NOT_FOUND, GONE])
async def test_a_source_without_the_file_gives_way_to_the_next(rig: Rig, twist: Twist) -> None:
    """404 and 410 are final for this source, at once."""
    first = rig.host.host("/first", HostedFile(BODY, twist=twist))
    rig.host.host("/m", BODY)
    fetched = await rig.fetch(rig.at("/first", source="the first"), rig.at())
    rig.arrived(fetched)
    assert fetched.location.source == "the mirror"
    assert len(first.requests) == 1


async def test_no_source_at_all_has_it(rig: Rig) -> None:
    """When every location says 404 the model is not found."""
    rig.host.host("/m", HostedFile(BODY, twist=NOT_FOUND))
    with pytest.raises(ModelNotFound, match="answers 404"):
        await rig.fetch()
    assert list(rig.partial.parent.iterdir()) == []


async def test_nowhere_to_look_is_not_found(rig: Rig) -> None:
    """A finder that names no place."""

    async def nowhere() -> AsyncIterator[Location]:
        return
        yield

    with pytest.raises(ModelNotFound):
        await rig.located(nowhere)


async def test_of_several_failures_the_one_that_may_pass_comes_out(rig: Rig) -> None:
    """A source that is away outweighs one that has no such file."""
    rig.host.host("/gone", HostedFile(BODY, twist=NOT_FOUND))
    rig.host.host("/away", HostedFile(BODY, twist=BROKEN))
    with pytest.raises(DownloadFailed, match="answers 500"):
        await rig.fetch(rig.at("/away"), rig.at("/gone"))


async def test_what_the_finder_raises_counts_with_the_rest(rig: Rig) -> None:
    """A broken first source, then the finder finds no other: the broken one is told."""
    rig.host.host("/away", HostedFile(BODY, twist=BROKEN))

    async def one_and_no_more() -> AsyncIterator[Location]:
        yield rig.at("/away")
        raise ModelNotFound("nowhere else")

    with pytest.raises(DownloadFailed):
        await rig.located(one_and_no_more)


@pytest.mark.parametrize(
    ("owner", "expected"), [(Owner.JOB, ModelForbidden), (Owner.OPERATOR, AuthFailed)], ids=["job", "operator"]
)
@pytest.mark.parametrize("twist", [UNAUTHORIZED, FORBIDDEN])
async def test_who_is_refused_depends_on_who_named_the_source(
    rig: Rig, owner: Owner, expected: type[WorkerError], twist: Twist
) -> None:
    """A job's URL that answers 401 or 403 is the job's fault, the operator's own source is theirs."""
    file = rig.host.host("/m", HostedFile(BODY, twist=twist))
    with pytest.raises(expected):
        await rig.fetch(rig.at(owner=owner))
    assert len(file.requests) == 1


@pytest.mark.parametrize("kind", ["text/html", "application/json", "application/problem+json", "text/xml"])
async def test_a_page_is_never_saved_as_a_model(rig: Rig, kind: str) -> None:
    """Login pages and error documents with status 200 are refused before anything is written."""
    file = rig.host.host("/m", HostedFile(BODY, content_type=kind))
    with pytest.raises(ModelCorrupt, match="instead of a model"):
        await rig.fetch()
    assert list(rig.partial.parent.iterdir()) == []
    assert len(file.requests) == 1
    file.twist = LOGIN_PAGE
    with pytest.raises(ModelCorrupt, match="instead of a model"):
        await rig.fetch()


async def test_a_document_of_that_name_may_be_one(rig: Rig) -> None:
    """A model's own configuration is JSON."""
    body = b'{"model_type": "clip"}'
    rig.host.host("/m", HostedFile(body, content_type="application/json"))
    with pytest.raises(ModelCorrupt, match=r"the mirror: config\.json"):
        await rig.fetch(name="config.json")


async def test_a_compressed_answer_is_refused(rig: Rig) -> None:
    """Its bytes are not the file's, and nobody asked for it."""
    file = rig.host.host("/m", HostedFile(made(20 * KIB), twist=Twist(gzipped=True, whole=True)))
    with pytest.raises(DownloadFailed, match="compressed"):
        await rig.fetch()
    assert {request.headers["accept-encoding"] for request in file.requests} == {"identity"}


async def test_bytes_of_another_hash_are_tried_once_more_and_then_elsewhere(rig: Rig) -> None:
    """A mismatch deletes what came; the same source has one more try, then it is the next one's turn."""
    wrong = rig.host.host("/wrong", made(50 * KIB, seed=9))
    rig.host.host("/m", BODY)
    rig.arrived(await rig.fetch(rig.at("/wrong"), rig.at(), sha256=digest(BODY)))
    assert len(wrong.requests) == 2


async def test_bytes_that_are_wrong_once_are_fetched_again(rig: Rig) -> None:
    """A fault on the way is repaired by the second try."""
    body = made(20 * KIB)
    file = rig.host.host("/m", made(20 * KIB, seed=5))

    def repaired(request: Any) -> Twist | None:
        file.body = body if len(file.requests) > 1 else file.body
        return None

    file.chosen = repaired
    rig.arrived(await rig.fetch(sha256=digest(body)), body)


async def test_a_model_that_is_corrupt_everywhere_leaves_nothing(rig: Rig) -> None:
    """The last word is the mismatch, with both hashes, and nothing is left on disk."""
    rig.host.host("/m", BODY)
    with pytest.raises(ModelCorrupt, match=f"sha256 {digest(BODY)} instead of {'0' * 64}"):
        await rig.fetch(sha256="0" * 64)
    assert list(rig.partial.parent.iterdir()) == []


async def test_a_file_that_is_no_model_is_refused(rig: Rig) -> None:
    """Without any hash the header still tells: a safetensors file that is none."""
    rig.host.host("/m", made(20 * KIB))
    with pytest.raises(ModelCorrupt, match="the mirror"):
        await rig.fetch(name="m.safetensors")


async def test_a_promise_that_contradicts_what_is_wanted_is_not_even_tried(rig: Rig) -> None:
    """A location of another hash or size has another file."""
    file = rig.host.host("/m", BODY)
    with pytest.raises(ModelCorrupt, match="another file"):
        await rig.fetch(rig.at(sha256="1" * 64), rig.at(size=5), sha256="2" * 64, size=len(BODY))
    assert file.requests == []


async def test_another_size_than_promised_is_refused_before_writing(rig: Rig) -> None:
    """The size that the server tells is compared first."""
    rig.host.host("/m", BODY)
    with pytest.raises(ModelCorrupt, match="were promised"):
        await rig.fetch(size=len(BODY) + 1)
    assert rig.rooms == []


@pytest.mark.parametrize("promised", [10 * KIB, 30 * KIB])
async def test_a_stream_of_another_size_than_promised_is_refused(rig: Rig, promised: int) -> None:
    """Where the server tells no size, more than was promised stops it, and less is found at the end."""
    rig.host.host("/m", HostedFile(made(20 * KIB), twist=Twist(chunked=True, whole=True)))
    with pytest.raises(ModelCorrupt, match=r"promised|instead of"):
        await rig.fetch(size=promised)
    assert set(rig.rooms) == {promised}


async def test_a_token_goes_to_its_own_host_alone(rig: Rig) -> None:
    """A redirect to another origin gets no credentials, and all later ranges go straight there."""
    async with ModelHost() as storage:
        stored = storage.host("/bytes", BODY)
        api = rig.host.host("/m", HostedFile(BODY, token="secret", twist=redirect(storage.url("/bytes"))))
        rig.arrived(await rig.fetch(rig.at(headers={"Authorization": "Bearer secret"})))
        assert len(api.requests) == 1
        assert all("authorization" not in request.headers for request in stored.requests)


async def test_a_token_follows_a_redirect_within_its_host(rig: Rig) -> None:
    """The same origin is the same host."""
    rig.host.host("/m", HostedFile(BODY, token="secret", twist=redirect("/moved")))
    rig.host.host("/moved", HostedFile(BODY, token="secret"))
    rig.arrived(await rig.fetch(rig.at(headers={"Authorization": "Bearer secret"})))


async def test_user_and_password_of_a_url_become_a_header(rig: Rig) -> None:
    """The operator's URL may hold them; they are in no message."""
    file = rig.host.host("/m", HostedFile(BODY, twist=UNAUTHORIZED))
    url = rig.host.url("/m").replace("http://", "http://user:pass@")
    with pytest.raises(AuthFailed) as caught:
        await rig.fetch(rig.at(url=url))
    assert file.requests[0].headers["authorization"] == "Basic dXNlcjpwYXNz"
    assert "pass@" not in caught.value.message


@pytest.mark.parametrize(
    ("target", "says"),
    [("/m", "too often"), ("", "without saying where"), ("ftp://x/", "not an http"), ("http://x:port/", "no URL")],
)
async def test_redirects_that_lead_nowhere_end(rig: Rig, target: str, says: str) -> None:
    """At most five, each to an http or https URL."""
    file = rig.host.host("/m", HostedFile(BODY, twist=redirect(target)))
    with pytest.raises(DownloadFailed, match=says):
        await rig.fetch()
    assert len(file.requests) <= 6 * TEMPO.attempts


async def test_a_link_that_ends_on_the_way_is_resolved_anew_by_its_redirect(rig: Rig) -> None:
    """403 at the place that a redirect led to: the redirect is asked again."""
    stored = rig.host.host("/bytes", HostedFile(BODY, signature="1"))
    api = rig.host.host("/m", BODY)

    def link(request: Any) -> Twist | None:
        return redirect(f"/bytes?sig={stored.signature}")

    def ends(request: Any) -> Twist | None:
        if len(stored.requests) == 3:
            stored.signature = "2"
        return None

    api.chosen, stored.chosen = link, ends
    rig.arrived(await rig.fetch())
    assert len(api.requests) >= 2


async def test_a_link_that_ends_on_the_way_is_asked_of_the_finder_anew(rig: Rig) -> None:
    """A location that expires: the locations are asked for again, and the bytes that came are kept."""
    file = rig.host.host("/m", HostedFile(BODY, signature="1"))
    asked: list[str | None] = []

    async def locate() -> AsyncIterator[Location]:
        asked.append(file.signature)
        yield rig.at(f"/m?sig={file.signature}", expires=True)

    def ends(request: Any) -> Twist | None:
        if file.signature == "1" and len(file.requests) == 4:
            file.signature = "2"
        return None

    file.chosen = ends
    rig.arrived(await rig.located(locate, sha256=digest(BODY)))
    assert asked == ["1", "2"]


async def test_a_link_that_never_worked_is_forbidden(rig: Rig) -> None:
    """No bytes came, so that the link was not what ended."""
    rig.host.host("/m", HostedFile(BODY, signature="1"))
    with pytest.raises(AuthFailed, match="403"):
        await rig.fetch(rig.at("/m?sig=2", expires=True))


async def test_a_guarded_location_reaches_public_addresses_only(rig: Rig) -> None:
    """What a job names is checked before the first connection."""
    rig.host.host("/m", BODY)
    with pytest.raises(UrlForbidden):
        await rig.fetch(rig.at(guarded=True, owner=Owner.JOB))
    assert rig.host.requests == []


async def test_a_guarded_location_is_checked_after_each_redirect(tmp_path: Path) -> None:
    """An allowed host that sends us to one that is not."""
    async with rigged(tmp_path, guard=Guard(hosts=frozenset({"::1"}))) as rig:
        rig.host.host("/m", HostedFile(BODY, twist=redirect("http://169.254.169.254/latest")))
        with pytest.raises(UrlForbidden):
            await rig.fetch(rig.at(guarded=True, owner=Owner.JOB))
        rig.host.host("/m", BODY)
        rig.arrived(await rig.fetch(rig.at(guarded=True, owner=Owner.JOB)))


async def test_a_host_that_cannot_be_reached_gives_way_to_the_next(rig: Rig) -> None:
    """Refused connections and unknown names fail after their tries."""
    rig.host.host("/m", BODY)
    async with ModelHost() as gone:
        port = gone.port
    dead = rig.at(url=f"http://[::1]:{port}/m", source="the dead")
    unknown = rig.at(url="http://no-such-host.invalid/m", source="the unknown")
    rig.arrived(await rig.fetch(dead, unknown, rig.at()))


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


async def test_a_partial_file_has_one_writer(rig: Rig) -> None:
    """Another process that fetches the same file finds it taken."""
    file = rig.host.host("/m", BODY)
    file.twist = Twist(cut=0, end="hold")
    fetching = asyncio.create_task(rig.fetch(), name="first")
    await wait_until(lambda: file.requests)
    with pytest.raises(DownloadFailed, match="another process"):
        await rig.fetch()
    file.released.set()
    rig.arrived(await fetching)


async def test_what_is_forgotten_is_gone(rig: Rig) -> None:
    """File and record, and the bytes that this freed."""
    await rig.cut_off(rig.host.host("/m", BODY), 60 * KIB)
    assert rig.downloads.forget(rig.partial) > 0
    assert list(rig.partial.parent.iterdir()) == []
    assert rig.downloads.forget(rig.partial) == 0


async def test_s3_without_credentials_of_its_own_is_told(rig: Rig) -> None:
    """An s3:// location where nobody set up S3."""
    with pytest.raises(DownloadFailed, match="s3://"):
        await rig.fetch(rig.at(url="s3://bucket/key", source="s3://bucket/key"))
