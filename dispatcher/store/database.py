"""The database in threads of its own: connections, transactions, and its errors as ours."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

from sqlalchemy import URL, Connection, Engine, NullPool, create_engine, event
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import InternalError as DatabaseBroken
from sqlalchemy.exc import TimeoutError as PoolTimeout

from dispatcher.store.base import StoreUnavailable
from worker.errors import InternalError

T = TypeVar("T")
TRIES = 5
SQLITE = "sqlite"
THREADS = {"sqlite": (1, 1), "postgresql": (3, 2)}
"""For writing and for reading: SQLite has one writer at a time, whoever waits for it."""
BUSY_S = 5.0
_AGAIN_S = 0.02
_PLANS = "-c jit=off -c plan_cache_mode=force_generic_plan"
"""Statements go by an index whatever their parameters are, and planning one anew takes as long as running it. Those of
which that is not so are run by `planned_anew`."""

SERVER: Mapping[str, Any] = {
    "application_name": "sd-dispatcher",
    "connect_timeout": 5,
    "options": f"{_PLANS} -c statement_timeout=15s -c lock_timeout=5s -c idle_in_transaction_session_timeout=15s",
    "keepalives_idle": 15,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,
}
_LIMITS = "-c jit=off -c statement_timeout=0 -c lock_timeout=5min -c idle_in_transaction_session_timeout=0"
"""Of a connection that changes tables: a step over many rows takes as long as it takes."""

_PASSING = (OperationalError, InterfaceError, DatabaseBroken, PoolTimeout)
_SQLITE_MISTAKES = frozenset(
    {
        0,
        sqlite3.SQLITE_ERROR,
        sqlite3.SQLITE_TOOBIG,
        sqlite3.SQLITE_CONSTRAINT,
        sqlite3.SQLITE_MISMATCH,
        sqlite3.SQLITE_MISUSE,
        sqlite3.SQLITE_RANGE,
    }
)
_CLASH = frozenset({"40001", "40P01"})


@contextmanager
def translating(place: str) -> Iterator[None]:
    """The libraries' errors as `StoreUnavailable`; what only a mistake of ours can cause as `InternalError`."""
    try:
        yield
    except SQLAlchemyError as error:
        why = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
        if _is_mistake(error):
            raise InternalError(f"{place}: {why}") from error
        raise StoreUnavailable(f"{place}: {why}") from error


def _is_mistake(error: SQLAlchemyError) -> bool:
    """SQLite's classes tell little, its codes all; PostgreSQL's classes are by cause."""
    cause = getattr(error, "orig", None)
    if isinstance(cause, sqlite3.Error):
        return (getattr(cause, "sqlite_errorcode", 0) & 0xFF) in _SQLITE_MISTAKES
    return not isinstance(error, _PASSING)


def connected(url: URL) -> Engine:
    """An engine for the URL; nothing is opened yet."""
    size = sum(THREADS[url.get_backend_name()])
    if url.get_backend_name() == SQLITE:
        engine = create_engine(url, pool_size=size, max_overflow=0, connect_args={"timeout": BUSY_S})
        event.listen(engine, "connect", _prepare)
        event.listen(engine, "begin", _begin)
        return engine
    return create_engine(
        url, pool_size=size, max_overflow=0, pool_timeout=10, use_native_hstore=False, connect_args=dict(SERVER)
    )


def _unlimited(url: URL) -> Engine:
    """An engine that opens a connection for each transaction."""
    return create_engine(url, poolclass=NullPool, use_native_hstore=False, connect_args={**SERVER, "options": _LIMITS})


def planned_anew(connection: Connection, change: Callable[..., T], *arguments: Any) -> T:
    """A change whose best plan depends on its parameters: what is due by now may be nothing or all there is."""
    if connection.dialect.name != SQLITE:
        connection.exec_driver_sql("SET LOCAL plan_cache_mode = force_custom_plan")
    return change(connection, *arguments)


def _prepare(db: sqlite3.Connection, _: Any) -> None:
    """Every commit on disk before it returns; readers do not wait for the writer."""
    db.isolation_level = None
    _use_write_ahead_log(db)
    for pragma in ("synchronous = FULL", "journal_size_limit = 67108864", "cache_size = -65536", "temp_store = MEMORY"):
        db.execute(f"PRAGMA {pragma}")


def _use_write_ahead_log(db: sqlite3.Connection) -> None:
    """Two processes that switch a new file at once get an error without any waiting: try again."""
    give_up = time.monotonic() + BUSY_S
    while True:
        try:
            db.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > give_up:
                raise
            time.sleep(_AGAIN_S)
        else:
            return


def _begin(connection: Connection) -> None:
    """A transaction that writes has the write lock from its start, so that it never fails half-way for a lock."""
    if not connection.get_execution_options().get("reading"):
        connection.exec_driver_sql("BEGIN IMMEDIATE")


class Database:
    """Runs what is asked in its threads, each as one transaction.

    Every verb raises `StoreUnavailable`. A transaction that clashed with another, or found its connection broken before
    it was to be committed, has changed nothing and is run again, up to ``TRIES`` times in all.
    """

    def __init__(self, url: URL) -> None:
        self.url = url
        self.place = url.render_as_string(hide_password=True)
        self.is_sqlite = url.get_backend_name() == SQLITE
        self._engine = connected(url)
        self._reader = self._engine.execution_options(
            **({"reading": True} if self.is_sqlite else {"isolation_level": "AUTOCOMMIT"})
        )
        writing, reading = THREADS[url.get_backend_name()]
        self._writing = ThreadPoolExecutor(writing, thread_name_prefix="store-write")
        self._reading = ThreadPoolExecutor(reading, thread_name_prefix="store-read")
        self._closed = False

    async def write(self, change: Callable[..., T], *arguments: Any) -> T:
        """One transaction of ``change(connection, *arguments)``; a caller that is cancelled does not learn its end."""
        return await self._run(self._writing, self._engine, change, arguments)

    async def read(self, look: Callable[..., T], *arguments: Any) -> T:
        """The same for what only reads; each statement sees what was committed before it."""
        return await self._run(self._reading, self._reader, look, arguments)

    async def migrate(self, change: Callable[..., T]) -> T:
        """As `write`, by a connection of its own that has no limits of time but one for waiting for others' locks."""
        engine = self._engine if self.is_sqlite else _unlimited(self.url)
        return await self._run(self._writing, engine, change, ())

    async def aclose(self) -> None:
        """After what is running; may be called again."""
        if self._closed:
            return
        self._closed = True
        await asyncio.gather(*(asyncio.to_thread(threads.shutdown) for threads in (self._writing, self._reading)))
        self._engine.dispose()

    async def _run(self, threads: ThreadPoolExecutor, engine: Engine, do: Callable[..., T], arguments: Any) -> T:
        if self._closed:
            raise StoreUnavailable(f"{self.place} was closed")
        return await asyncio.wrap_future(threads.submit(self._perform, engine, do, arguments))

    def _perform(self, engine: Engine, do: Callable[..., T], arguments: tuple[Any, ...]) -> T:
        tries = 0
        while True:
            tries += 1
            with translating(self.place), engine.connect() as connection:
                try:
                    value = do(connection, *arguments)
                except DBAPIError as error:
                    if tries < TRIES and _is_undone(error):
                        continue
                    raise
                connection.commit()
                return value


def _is_undone(error: DBAPIError) -> bool:
    """Whether nothing was changed, and the very same may well succeed."""
    return error.connection_invalidated or getattr(error.orig, "sqlstate", None) in _CLASH
