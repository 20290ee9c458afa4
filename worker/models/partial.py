"""A file that has not come whole yet: the bytes that are there, the record of them beside it, and their SHA-256.

The record ``<file>.json`` names only bytes that were fsynced before it was written, and is itself replaced
atomically: after a crash it may know less than what is there, never more.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import hashlib
import os
import threading
from bisect import bisect_left
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from worker.errors import DiskFull, DownloadFailed
from worker.models.answers import Span, is_of_content
from worker.models.threads import in_thread

VERSION = 1
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_READ = 1024 * 1024
_HASHED_AT_ONCE = 32 * 1024 * 1024


class Spans:
    """A set of bytes as the fewest spans, in order."""

    def __init__(self) -> None:
        self._spans: list[Span] = []

    def __iter__(self) -> Iterator[Span]:
        return iter(self._spans)

    @property
    def total(self) -> int:
        return sum(span.length for span in self._spans)

    @property
    def frontier(self) -> int:
        """Up to where all is there from the start on."""
        return self._spans[0].end if self._spans and self._spans[0].start == 0 else 0

    def add(self, start: int, end: int) -> None:
        """What overlaps or touches becomes one."""
        if end <= start:
            return
        first = bisect_left(self._spans, start, key=lambda span: span.end)
        last = first
        while last < len(self._spans) and self._spans[last].start <= end:
            last += 1
        joined = self._spans[first:last]
        merged = Span(min([start, *(s.start for s in joined)]), max([end, *(s.end for s in joined)]))
        self._spans[first:last] = [merged]

    def missing(self, size: int) -> list[Span]:
        """What is not there of the first ``size`` bytes."""
        edges = [0, *(edge for span in self._spans for edge in span), size]
        gaps = (Span(start, min(end, size)) for start, end in zip(edges[::2], edges[1::2], strict=True))
        return [gap for gap in gaps if gap.length > 0]


@dataclass(slots=True)
class Record:
    """What is known of the bytes: whose they are (``url`` canonical), their validators, and which are there."""

    url: str = ""
    size: int | None = None
    sha256: str | None = None
    etag: str | None = None
    modified: str | None = None
    done: list[tuple[int, int]] = field(default_factory=list)
    v: int = VERSION


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A record as it was, and after how many beginnings: what began anew meanwhile makes it void."""

    began: int
    record: Record


_RECORD = TypeAdapter(Record)


@dataclass(frozen=True, slots=True)
class Resume:
    """That bytes of an earlier try may be used; ``if_range`` is the condition under which the source agrees."""

    if_range: str | None = None


def resume_of(record: Record, url: str, sha256: str | None) -> Resume | None:
    """Whether what is there may be continued from this URL; None when it must begin anew.

    The same hash means the same bytes wherever they come from. A strong entity tag does at the same URL, and
    elsewhere only if it is a hash itself; a date does at the same URL. Anything else could mix two files.
    """
    if not record.done:
        return None
    if record.sha256 and sha256 and record.sha256 != sha256:
        return None
    same_hash = bool(sha256) and record.sha256 == sha256
    if record.etag and (record.url == url or (is_of_content(record.etag) and not same_hash)):
        return Resume(record.etag)
    if same_hash:
        return Resume()
    return Resume(record.modified) if record.modified and record.url == url else None


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn the system's refusals into ours: `DiskFull` without space, `DownloadFailed` for any other."""
    try:
        yield
    except OSError as error:
        raise unwritable(error, path) from None


def unwritable(error: OSError, path: Path) -> DiskFull | DownloadFailed:
    if error.errno in _FULL:
        return DiskFull(f"no space is left for {path.name}")
    return DownloadFailed(f"{path.name} cannot be written: {error.strerror}")


class Partial:
    """The file and its record; `open` it before anything else, `close` it in the end. One process at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.record = Record()
        self.spans = Spans()
        self.fd = -1
        self._began = 0
        self._saved: Snapshot | None = None
        self._saving = threading.Lock()

    @property
    def sidecar(self) -> Path:
        return sidecar_of(self.path)

    @property
    def size(self) -> int | None:
        return self.record.size

    @property
    def is_whole(self) -> bool:
        return self.size is not None and self.spans.frontier >= self.size

    def open(self) -> None:
        """Open or create the file and believe its record as far as the file bears it out.

        Raises `DownloadFailed` while another process writes to it.
        """
        with writing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self.close()
                raise DownloadFailed(f"{self.path.name} is being fetched by another process") from None
            self.record = read_record(self.sidecar)
            there = os.fstat(self.fd).st_size
        for start, end in self.record.done:
            self.spans.add(start, min(end, there))

    def begin(self, record: Record) -> None:
        """Forget the bytes and begin with this. For a thread, while no other writes to the file."""
        with self._saving:
            self._began += 1
            self._saved = None
            with writing(self.path):
                os.ftruncate(self.fd, 0)
            self.record, self.spans = record, Spans()
        self.save(self.snapshot())

    def wrote(self, offset: int, count: int) -> None:
        self.spans.add(offset, offset + count)

    def snapshot(self) -> Snapshot:
        """The record of all bytes that are written by now."""
        return Snapshot(self._began, replace(self.record, done=[(span.start, span.end) for span in self.spans]))

    def save(self, snapshot: Snapshot) -> None:
        """Put the file on disk, then the record that says so; nothing where that is so already. For a thread."""
        with self._saving, writing(self.path):
            if snapshot == self._saved or snapshot.began != self._began:
                return
            os.fdatasync(self.fd)
            _replace(self.sidecar, _RECORD.dump_json(snapshot.record))
            self._saved = snapshot

    def finish(self, size: int) -> None:
        """It is whole with these bytes: cut it there, put it on disk, drop the record. For a thread."""
        with writing(self.path):
            os.ftruncate(self.fd, size)
            os.fsync(self.fd)
            self.sidecar.unlink(missing_ok=True)
        self.close()

    def leave(self) -> None:
        """Close it so that it can be resumed; nothing stays where nothing came. For a thread."""
        if self.fd < 0:
            return
        try:
            if self.spans.total == 0:
                forget(self.path)
                return
            with contextlib.suppress(DiskFull, DownloadFailed):
                self.save(self.snapshot())
        finally:
            self.close()

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class Digest:
    """The SHA-256 of a file from its start, computed in threads while the file grows; ``at`` is how far it is."""

    def __init__(self, fd: int, threads: ThreadPoolExecutor) -> None:
        self.at = 0
        self._fd = fd
        self._threads = threads
        self._sha256 = hashlib.sha256()
        self._buffer = memoryview(bytearray(_READ))

    async def advance(self, to: int) -> None:
        """Go on up to there, or to the end of the file where that is shorter; returns after the thread has."""
        before = -1
        while before < self.at < to:
            before = self.at
            await in_thread(self._threads, functools.partial(self._update, min(to, self.at + _HASHED_AT_ONCE)))

    def hexdigest(self) -> str:
        return self._sha256.hexdigest()

    def _update(self, to: int) -> None:
        while self.at < to:
            count = os.preadv(self._fd, [self._buffer[: min(_READ, to - self.at)]], self.at)
            if count == 0:
                return
            self._sha256.update(self._buffer[:count])
            self.at += count


def sidecar_of(partial: Path) -> Path:
    return partial.with_name(f"{partial.name}.json")


def read_record(sidecar: Path) -> Record:
    """An empty one where there is none that can be used."""
    try:
        record = _RECORD.validate_json(sidecar.read_bytes())
    except (OSError, ValidationError):
        return Record()
    return record if record.v == VERSION else Record()


def forget(partial: Path) -> int:
    """Delete the file and its record; the bytes of disk that this freed."""
    freed = 0
    with contextlib.suppress(FileNotFoundError):
        there = partial.stat()
        freed = min(there.st_size, there.st_blocks * 512)
        partial.unlink()
    sidecar_of(partial).unlink(missing_ok=True)
    return freed


def _replace(path: Path, data: bytes) -> None:
    temporary = path.with_name(f"{path.name}.new")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
