"""The bytes that are there, the record of them, and when they may be used again."""

from __future__ import annotations

import errno
import hashlib
import os
import random
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.errors import DiskFull, DownloadFailed
from worker.models.partial import (
    Digest,
    Partial,
    Record,
    Resume,
    Spans,
    forget,
    read_record,
    resume_of,
    sidecar_of,
    unwritable,
    writing,
)

URL, OTHER = "https://one.example/m", "https://two.example/m"
HASH = '"0123456789abcdef0123456789abcdef"'
DONE = [(0, 10)]


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 20)), max_size=12), st.integers(0, 90))
@settings(max_examples=200, deadline=None)
def test_spans_are_the_set_of_the_bytes_that_were_added(added: list[tuple[int, int]], size: int) -> None:
    """In any order, overlapping or not: total, frontier and what is missing are those of the set."""
    spans, bytes_there = Spans(), set[int]()
    for start, length in added:
        spans.add(start, start + length)
        bytes_there |= set(range(start, start + length))
    listed = list(spans)
    assert {byte for span in listed for byte in range(span.start, span.end)} == bytes_there
    assert all(before.end < after.start for before, after in pairwise(listed))
    assert spans.total == len(bytes_there)
    assert spans.frontier == next(byte for byte in range(100) if byte not in bytes_there)
    missing = {byte for span in spans.missing(size) for byte in range(span.start, span.end)}
    assert missing == set(range(size)) - bytes_there


@pytest.mark.parametrize(
    ("record", "url", "sha256", "expected"),
    [
        (Record(URL, 20, "aa", '"v1"', done=[]), URL, "aa", None),
        (Record(URL, 20, "aa", '"v1"', done=DONE), URL, "bb", None),
        (Record(URL, 20, None, '"v1"', done=DONE), URL, None, Resume('"v1"')),
        (Record(URL, 20, None, '"v1"', done=DONE), OTHER, None, None),
        (Record(URL, 20, None, HASH, done=DONE), OTHER, None, Resume(HASH)),
        (Record(URL, 20, "aa", '"v1"', done=DONE), OTHER, "aa", Resume()),
        (Record(URL, 20, "aa", HASH, done=DONE), OTHER, "aa", Resume()),
        (Record(URL, 20, "aa", '"v1"', done=DONE), OTHER, None, None),
        (Record(URL, 20, "aa", None, done=DONE), URL, "aa", Resume()),
        (Record(URL, 20, None, None, "a date", done=DONE), URL, None, Resume("a date")),
        (Record(URL, 20, None, None, "a date", done=DONE), OTHER, None, None),
        (Record(URL, 20, None, None, None, done=DONE), URL, None, None),
    ],
    ids=[
        *("nothing-there", "other-hash", "tag", "tag-of-another-host", "hash-as-tag", "same-hash", "same-hash-and-tag"),
        *("hash-unknown-now", "hash-alone", "date", "date-of-another-host", "nothing-known"),
    ],
)
def test_bytes_are_used_again_only_where_they_are_surely_the_same(
    record: Record, url: str, sha256: str | None, expected: Resume | None
) -> None:
    """By hash anywhere, by tag or date at the same URL, by a tag that is a hash elsewhere; else never."""
    assert resume_of(record, url, sha256) == expected


def opened(path: Path) -> Partial:
    partial = Partial(path)
    partial.open()
    return partial


def written(partial: Partial, offset: int, data: bytes) -> None:
    os.pwrite(partial.fd, data, offset)
    partial.wrote(offset, len(data))


def test_what_was_saved_is_there_again(tmp_path: Path) -> None:
    """Spans, size and validators; the bytes that were not saved are not believed."""
    partial = opened(tmp_path / "sub" / "a.part")
    partial.begin(Record(URL, 100, "aa", '"v1"'))
    written(partial, 0, b"a" * 10)
    written(partial, 50, b"b" * 10)
    partial.save(partial.snapshot())
    written(partial, 10, b"c" * 10)
    partial.close()
    again = opened(partial.path)
    assert (again.size, again.record.etag, list(again.spans)) == (100, '"v1"', [(0, 10), (50, 60)])
    again.close()


def test_a_record_from_before_a_new_beginning_is_not_saved_after_it(tmp_path: Path) -> None:
    """A checkpoint that was late would name bytes that are gone."""
    partial = opened(tmp_path / "a.part")
    partial.begin(Record(URL, 100))
    written(partial, 0, b"a" * 10)
    late = partial.snapshot()
    partial.begin(Record(URL, 200))
    partial.save(late)
    assert (read_record(partial.sidecar).size, read_record(partial.sidecar).done) == (200, [])
    partial.close()


def test_a_record_that_says_nothing_new_is_not_written_again(tmp_path: Path) -> None:
    """Checkpoints of a transfer that stands still cost nothing."""
    partial = opened(tmp_path / "a.part")
    partial.begin(Record(URL, 100))
    before = partial.sidecar.stat().st_ino
    partial.save(partial.snapshot())
    assert partial.sidecar.stat().st_ino == before
    partial.close()


def test_a_finished_file_has_its_size_and_no_record(tmp_path: Path) -> None:
    """What lies beyond the end is cut off."""
    partial = opened(tmp_path / "a.part")
    partial.begin(Record(URL, 10))
    written(partial, 0, b"a" * 20)
    assert partial.is_whole
    partial.finish(10)
    partial.leave()
    assert partial.path.read_bytes() == b"a" * 10
    assert not partial.sidecar.exists()


def test_what_is_left_without_a_byte_is_removed(tmp_path: Path) -> None:
    """Nothing came, so nothing stays; with bytes both files stay."""
    empty, begun = opened(tmp_path / "a.part"), opened(tmp_path / "b.part")
    empty.begin(Record(URL, 10))
    begun.begin(Record(URL, 10))
    written(begun, 0, b"a")
    for partial in (empty, begun):
        partial.leave()
        partial.leave()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.part", "b.part.json"]


def test_what_cannot_be_saved_in_the_end_spoils_nothing(tmp_path: Path) -> None:
    """On a full disk the older record stays, and no half-written one lies beside it."""
    partial = opened(tmp_path / "a.part")
    partial.begin(Record(URL, 10))
    written(partial, 0, b"a")
    blocking = sidecar_of(partial.path).with_name("a.part.json.new")
    blocking.mkdir()
    with pytest.raises(DownloadFailed, match="cannot be written"):
        partial.save(partial.snapshot())
    partial.leave()
    assert read_record(partial.sidecar).done == []


def test_only_one_may_write(tmp_path: Path) -> None:
    """The lock goes with the file, whichever process holds it."""
    partial = opened(tmp_path / "a.part")
    with pytest.raises(DownloadFailed, match="another process"):
        opened(partial.path)
    partial.close()
    opened(partial.path).close()


def test_forgetting_tells_the_bytes_of_disk(tmp_path: Path) -> None:
    """Holes in the file were never taken."""
    partial = opened(tmp_path / "a.part")
    partial.begin(Record(URL, 1 << 30))
    written(partial, 1 << 29, b"a" * 4096)
    partial.close()
    assert 4096 <= forget(partial.path) <= 1 << 20
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("number", "expected"),
    [(errno.ENOSPC, DiskFull), (errno.EDQUOT, DiskFull), (errno.EIO, DownloadFailed), (errno.EROFS, DownloadFailed)],
)
def test_the_systems_refusals_have_names(number: int, expected: type[Exception], tmp_path: Path) -> None:
    """No space is `DiskFull`, anything else a failed download."""
    assert isinstance(unwritable(OSError(number, os.strerror(number)), tmp_path), expected)
    with pytest.raises(expected), writing(tmp_path):
        raise OSError(number, os.strerror(number))


async def test_a_digest_follows_a_growing_file(tmp_path: Path) -> None:
    """As far as it is told to and no further; at the end it is that of the file."""
    data = random.Random(1).randbytes(3_000_000)
    path = tmp_path / "a"
    path.write_bytes(data)
    fd = os.open(path, os.O_RDONLY)
    try:
        with ThreadPoolExecutor(1) as threads:
            digest = Digest(fd, threads)
            for to in (10, 10, 1_500_000, len(data), len(data) + 5):
                await digest.advance(to)
                assert digest.at == min(to, len(data))
    finally:
        os.close(fd)
    assert digest.hexdigest() == hashlib.sha256(data).hexdigest()
