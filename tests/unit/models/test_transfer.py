"""The decisions of a transfer: pieces, patience, bandwidth, and what an answer means."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from datetime import UTC, datetime, timedelta

import pytest

from tests.support.virtual import elapse, virtual
from worker.errors import AuthFailed, DownloadFailed, ModelCorrupt, ModelForbidden, ModelNotFound, Owner, WorkerError
from worker.models.answers import Part, Span, check_kind, is_of_content, length_of, part_of, refusal, strong_tag
from worker.models.bandwidth import Bandwidth
from worker.models.base import Location, Priority, Tempo
from worker.models.connection import Head
from worker.models.download import most_telling
from worker.models.pieces import ENDLESS, MIB, Piece, Sizes, Work
from worker.models.stamina import Quiet, Stamina

NOW = datetime(2026, 1, 1, tzinfo=UTC)
TEMPO = Tempo(stall=timedelta(seconds=10), stall_bytes=100, attempts=3, first=timedelta(seconds=1))


def test_pieces_suit_the_file() -> None:
    """Several for each connection, none too small to be worth asking for, none too large."""
    sizes = Sizes()
    assert sizes.piece(None, 8) == sizes.piece(10 * MIB, 8) == 4 * MIB
    assert sizes.piece(320 * MIB, 8) == 10 * MIB
    assert sizes.piece(100_000 * MIB, 8) == 32 * MIB


def test_pieces_are_handed_out_in_order_and_given_back_first() -> None:
    """What is left of a piece that failed goes to the next who asks."""
    work = Work(deque([Piece(0, 10), Piece(10, 20)]), splits=True, least=100)
    first = work.take()
    assert first is not None
    first.start = 4
    work.give_back(first)
    again, second = work.take(), work.take()
    assert again is first
    assert second is not None
    assert (again.start, again.end, second.start) == (4, 10, 10)
    again.start = 10
    work.give_back(again)
    assert work.take() is None


def test_an_idle_connection_takes_half_of_the_longest_piece() -> None:
    """So that no slow connection keeps the others waiting at the end; small rests are not worth it."""
    work = Work(deque([Piece(0, 100), Piece(100, 300)]), splits=True, least=50)
    work.take(), work.take()
    half = work.take()
    assert half is not None
    assert (half.start, half.end) == (200, 300)
    assert sorted((piece.start, piece.end) for piece in work.active) == [(0, 100), (100, 200), (200, 300)]
    smaller = [work.take() for _ in range(4)]
    assert [piece is None for piece in smaller] == [False, False, False, True]


def test_a_stream_is_not_divided() -> None:
    """A source without ranges has one connection."""
    work = Work(deque([Piece(0, ENDLESS)]), splits=False, least=1)
    assert work.take() is not None
    assert work.take() is None


def test_quiet_is_too_little_for_too_long() -> None:
    """Enough bytes begin the time anew; bytes in small doses do not."""
    quiet = Quiet(TEMPO)
    assert not quiet.saw(100, 9)
    assert not quiet.saw(50, 9.9)
    assert not quiet.saw(50, 9.9)
    assert not quiet.saw(1, 5)
    assert quiet.saw(98, 5)


def test_tries_are_refilled_by_bytes_alone() -> None:
    """A transfer that advances may fail for ever, one that does not has its attempts."""
    reached = 0
    stamina = Stamina(TEMPO, random.Random(1), lambda: reached)
    for _ in range(50):
        reached += 100
        stamina.after(DownloadFailed("cut"))
    reached += 99
    stamina.after(DownloadFailed("cut"))
    with pytest.raises(DownloadFailed, match="the last"):
        stamina.after(DownloadFailed("the last"))


def test_waits_grow_until_a_request_went_well() -> None:
    """And are never shorter than what the server asked for."""
    reached = 0
    stamina = Stamina(TEMPO, random.Random(1), lambda: reached)
    waits = []
    for _ in range(6):
        reached += 1000
        waits.append(stamina.after(DownloadFailed("busy")))
    assert waits[-1] > TEMPO.first
    stamina.well()
    reached += 1000
    assert stamina.after(DownloadFailed("busy")) <= TEMPO.first
    reached += 1000
    assert stamina.after(DownloadFailed("busy", retry_after=timedelta(hours=1))) == timedelta(hours=1)


@virtual
async def test_a_cap_holds_over_all_who_pay() -> None:
    """So many bytes a second together, whoever they are for."""
    bandwidth = Bandwidth(1000)

    async def pays(count: int) -> None:
        for _ in range(count):
            await bandwidth.pay(100)

    await asyncio.gather(pays(20), pays(10))
    assert asyncio.get_running_loop().time() == pytest.approx(3.0)
    assert bandwidth.share is not None


@virtual
async def test_time_that_was_not_used_is_not_saved_up() -> None:
    """After a pause the cap is what it was."""
    bandwidth = Bandwidth(1000)
    loop = asyncio.get_running_loop()
    await elapse(100)
    began = loop.time()
    await bandwidth.pay(500)
    assert loop.time() - began == pytest.approx(0.5)


@virtual
async def test_without_a_cap_nobody_waits() -> None:
    """Nor is what comes at once limited."""
    bandwidth = Bandwidth()
    await bandwidth.pay(10**12)
    assert asyncio.get_running_loop().time() == 0
    assert bandwidth.share is None


@virtual
async def test_only_the_background_stands_still() -> None:
    """Until the pause ends, or its priority has risen."""
    bandwidth, priority = Bandwidth(), Priority.BACKGROUND
    bandwidth.pause(True)
    await bandwidth.passage(lambda: Priority.START)
    rising = asyncio.create_task(bandwidth.passage(lambda: priority), name="rising")
    waiting = asyncio.create_task(bandwidth.passage(lambda: Priority.BACKGROUND), name="waiting")
    await elapse(5)
    assert not rising.done()
    priority = Priority.JOB
    await rising
    assert not waiting.done()
    bandwidth.pause(False)
    await waiting


def head(status: int = 200, **headers: str) -> Head:
    return Head(status, {name.replace("_", "-"): value for name, value in headers.items()})


def at(url: str = "https://files.example/m", owner: Owner = Owner.OPERATOR) -> Location:
    return Location(url, "the source", owner=owner)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("bytes 10-19/100", Part(Span(10, 20), 100)),
        ("bytes 10-99/100", Part(Span(10, 100), 100)),
        *[
            (text, None)
            for text in (
                *("", "bytes 0-19/100", "bytes 10-100/100", "bytes 10-5/100", "bytes 10-19/*", "bytes */100"),
                *("items 10-19/100", "bytes 10-19", f"bytes 10-19/{'9' * 30}", "bytes=10-19/100"),
            )
        ],
    ],
)
def test_a_part_is_believed_only_from_where_it_was_asked_for(text: str, expected: Part | None) -> None:
    """With a size, and within it."""
    assert part_of(head(206, content_range=text), 10) == expected
    assert part_of(head(200, content_range=text), 10) is None


def test_validators_and_lengths_are_those_that_can_be_trusted() -> None:
    """Weak tags promise nothing; a coded body's length is not the file's; only a hash means the same everywhere."""
    assert strong_tag(head(etag='"a"')) == '"a"'
    assert [strong_tag(head(etag=tag)) for tag in ("", '""', 'W/"a"', "a", '"a')] == [None] * 5
    assert length_of(head(content_length="12")) == 12
    assert length_of(head(content_length="12", transfer_encoding="chunked")) is None
    assert length_of(head(content_length="-1")) is None
    assert is_of_content(f'"{"a1" * 16}-12"')
    assert is_of_content(f'"{"a1" * 32}"')
    assert not is_of_content('"65a1-1234"')


@pytest.mark.parametrize(
    ("kind", "name", "refused"),
    [
        ("application/octet-stream", "a.safetensors", False),
        ("binary/octet-stream", "a.safetensors", False),
        ("text/plain", "a.safetensors", False),
        ("", "a.safetensors", False),
        ("text/html; charset=utf-8", "a.safetensors", True),
        ("APPLICATION/JSON", "a", True),
        ("application/atom+xml", "a.ckpt", True),
        ("application/json", "folder/config.JSON", False),
        ("application/xml", "a.yaml", False),
    ],
)
def test_pages_and_documents_are_no_models(kind: str, name: str, refused: bool) -> None:
    """By their media type, unless the name is that of a document."""
    if refused:
        with pytest.raises(ModelCorrupt, match="instead of a model"):
            check_kind(head(content_type=kind), name, at())
    else:
        check_kind(head(content_type=kind), name, at())


CIVITAI, HUB = "https://civitai.com/api/download/models/1", "https://huggingface.co/org/repo/resolve/main/a.safetensors"


@pytest.mark.parametrize(
    ("status", "url", "has_token", "says"),
    [
        (401, CIVITAI, False, "this model needs a CIVITAI_TOKEN"),
        (401, CIVITAI, True, "refused CIVITAI_TOKEN"),
        (403, CIVITAI, True, "grants no access"),
        (401, HUB, False, "this model needs an HF_TOKEN"),
        (403, HUB, True, "accept the licence of org/repo on huggingface.co with the account of HF_TOKEN"),
        (403, "s3://bucket/key", False, "no such object"),
        (401, "https://files.example/m", True, "the credentials are refused"),
        (401, "https://civitai.com.evil.example/m", False, "it needs credentials"),
    ],
)
def test_a_refusal_says_what_would_help(status: int, url: str, has_token: bool, says: str) -> None:
    """In the user's words, as the job's fault or the operator's."""
    for owner, kind in ((Owner.JOB, ModelForbidden), (Owner.OPERATOR, AuthFailed)):
        error = refusal(head(status), at(url, owner), has_token=has_token, now=NOW)
        assert type(error) is kind
        assert says in error.message
        assert str(status) in error.message


@pytest.mark.parametrize(
    ("status", "kind", "later"),
    [
        (404, ModelNotFound, None),
        (410, ModelNotFound, None),
        (429, DownloadFailed, timedelta(seconds=7)),
        (503, DownloadFailed, timedelta(seconds=7)),
        (500, DownloadFailed, timedelta(seconds=7)),
        (418, DownloadFailed, None),
    ],
)
def test_a_status_is_final_or_passing(status: int, kind: type[WorkerError], later: timedelta | None) -> None:
    """What passes tells when to come again, where the server said so."""
    error = refusal(head(status, retry_after="7"), at(), has_token=False, now=NOW)
    assert type(error) is kind
    assert error.retry_after == later


def test_of_several_failures_the_most_telling_comes_out() -> None:
    """Credentials that the operator must mend, then what may pass, then what never will."""
    never, passing, refused = ModelNotFound("no"), DownloadFailed("away"), AuthFailed("who?")
    assert most_telling([never, passing, refused]) is refused
    assert most_telling([never, passing]) is passing
    assert most_telling([never, ModelForbidden("no")]).code == "model_forbidden"
    assert isinstance(most_telling([]), ModelNotFound)
