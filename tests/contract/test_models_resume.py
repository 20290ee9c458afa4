"""What an earlier try left is used again, and only where it is surely the same file."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.fetching import BODY, KIB, Rig, digest, made, rigged
from tests.support.model_host import HostedFile, Twist
from tests.support.waiting import wait_until
from worker.errors import DownloadFailed
from worker.models.partial import forget, read_record, sidecar_of


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with rigged(tmp_path) as made_rig:
        yield made_rig


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
    assert forget(rig.partial) > 0
    assert list(rig.partial.parent.iterdir()) == []
    assert forget(rig.partial) == 0
