"""One connection in one thread of its own, and SQLite's errors as ours."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

from worker.errors import ConfigError, InternalError, QueueUnavailable
from worker.queues.sqlite.schema import connect

T = TypeVar("T")

_BUGS = (
    sqlite3.ProgrammingError,
    sqlite3.InterfaceError,
    sqlite3.IntegrityError,
    sqlite3.DataError,
    sqlite3.NotSupportedError,
    sqlite3.InternalError,
)
_PASSING = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})
_MISCONFIGURED = frozenset(
    {sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_NOTADB}
)
_SAID = {
    sqlite3.SQLITE_BUSY: "is locked by another process",
    sqlite3.SQLITE_LOCKED: "is locked by another process",
    sqlite3.SQLITE_CANTOPEN: "cannot be opened: is its folder there and writable?",
    sqlite3.SQLITE_READONLY: "is read-only",
    sqlite3.SQLITE_PERM: "must not be written",
    sqlite3.SQLITE_NOTADB: "is not an SQLite database",
    sqlite3.SQLITE_CORRUPT: "is damaged",
    sqlite3.SQLITE_FULL: "cannot grow: the disk is full",
}


@contextmanager
def translating(path: Path, *, opening: bool = False) -> Iterator[None]:
    """SQLite's errors as `QueueUnavailable`; as `ConfigError` where a file that is being opened is the wrong one.

    What only a mistake of ours can cause is an `InternalError`.
    """
    try:
        yield
    except _BUGS as error:
        raise InternalError(f"{path}: {error}") from error
    except sqlite3.Error as error:
        code = _code(error)
        message = f"{path} {_SAID[code]}" if code in _SAID else f"{path}: {error}"
        if opening and code in _MISCONFIGURED:
            raise ConfigError(message) from error
        raise QueueUnavailable(message) from error


def _code(error: sqlite3.Error) -> int:
    """The primary result code; 0 where the module itself raised."""
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF


class SqliteThread:
    """Runs operations on the connection one after the other.

    The file is opened by the first operation, and again by the next one after an error that is not a mere
    lock. A locked file is waited for up to ``busy``, and later operations wait behind.
    """

    def __init__(self, path: Path, busy: timedelta) -> None:
        self.path = path
        self._busy = busy
        self._db: sqlite3.Connection | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="sqlite-queue")
        self._closed = False

    def submit(self, operation: Callable[[sqlite3.Connection], T]) -> Future[T]:
        """Queue an operation; raises `QueueUnavailable` after `aclose`."""
        if self._closed:
            raise QueueUnavailable(f"{self.path} was closed")
        return self._thread.submit(self._perform, operation)

    async def run(self, operation: Callable[[sqlite3.Connection], T]) -> T:
        """Run an operation; one that has not begun when we are cancelled never runs."""
        return await asyncio.wrap_future(self.submit(operation))

    async def aclose(self) -> None:
        """Close the connection after the operations that are queued; may be called again."""
        if self._closed:
            return
        self._closed = True
        closing = self._thread.submit(self._drop)
        self._thread.shutdown(wait=False)
        await asyncio.wrap_future(closing)

    def _perform(self, operation: Callable[[sqlite3.Connection], T]) -> T:
        if self._db is None:
            with translating(self.path, opening=True):
                self._db = connect(self.path, self._busy)
        with translating(self.path):
            try:
                return operation(self._db)
            except sqlite3.Error as error:
                if _code(error) not in _PASSING:
                    self._drop()
                raise

    def _drop(self) -> None:
        if self._db is not None:
            db, self._db = self._db, None
            db.close()
