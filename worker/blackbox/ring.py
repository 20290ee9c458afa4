"""A file of fixed size that holds the latest records, whatever instant its writer is killed at.

Slots of equal size, one record each; a record goes over the oldest one. Each says its number, its length and a
checksum, so that one that was written in part is not taken for a record. Nothing is forced to the disk: what the kernel
was given survives the process, and a power cut costs some seconds.
"""

from __future__ import annotations

import fcntl
import os
import stat
import struct
import threading
import zlib
from contextlib import suppress
from pathlib import Path

SLOTS, SLOT = 32, 8192
SIZE = SLOTS * SLOT
"""Bytes of the file."""

_HEAD = struct.Struct(">4sQII")
_MAGIC = b"sdw1"
MOST = SLOT - _HEAD.size
"""Bytes of the longest record."""


class Ring:
    """One at a time has the file, until `close` or the process's end. Everything blocks; any thread may call."""

    def __init__(self, path: Path) -> None:
        """Open the file, made where it does not exist. Raises `OSError`: `BlockingIOError` while another has it."""
        self._lock = threading.Lock()
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _check(self._file)
            _reserve(self._file)
            found = self._read()
        except OSError:
            os.close(self._file)
            raise
        self.records = tuple(text for _, text in found)
        """What stood there when it was opened, the oldest first."""
        self._next = found[-1][0] + 1 if found else 0
        self._closed = False

    def append(self, record: bytes) -> None:
        """Put it in place of the oldest; nothing after `close`. Raises `OSError`, and `ValueError` for too much."""
        if len(record) > MOST:
            raise ValueError(f"a record of {len(record)} bytes, at most {MOST} fit")
        with self._lock:
            if self._closed:
                return
            head = _HEAD.pack(_MAGIC, self._next, len(record), _sum(self._next, record))
            os.pwrite(self._file, head + record, self._next % SLOTS * SLOT)
            self._next += 1

    def close(self) -> None:
        """May be called again."""
        with self._lock:
            if not self._closed:
                self._closed = True
                os.close(self._file)

    def _read(self) -> list[tuple[int, bytes]]:
        whole = os.pread(self._file, SIZE, 0)
        found = [_record(whole[at : at + SLOT], at // SLOT) for at in range(0, len(whole), SLOT)]
        return sorted(one for one in found if one is not None)


def _record(slot: bytes, place: int) -> tuple[int, bytes] | None:
    """The number and the text of the record in a slot; None where there is no whole one."""
    if len(slot) < _HEAD.size:
        return None
    magic, number, length, checksum = _HEAD.unpack_from(slot)
    text = slot[_HEAD.size : _HEAD.size + length]
    if magic != _MAGIC or number % SLOTS != place or len(text) != length or _sum(number, text) != checksum:
        return None
    return number, text


def _sum(number: int, text: bytes) -> int:
    return zlib.crc32(text, number & 0xFFFFFFFF)


def _check(file: int) -> None:
    """What is no file of ours is left alone: the folder may be one where anybody writes."""
    found = os.fstat(file)
    if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
        raise PermissionError(f"it belongs to user {found.st_uid}")


def _reserve(file: int) -> None:
    """Its place on the disk is taken for good, so that a full one is no reason to record nothing."""
    if os.fstat(file).st_size != SIZE:
        os.ftruncate(file, SIZE)
    with suppress(OSError):
        os.posix_fallocate(file, 0, SIZE)
