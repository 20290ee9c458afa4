"""Opening a database, losing it, finding it again; what is refused, and in which words."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import psycopg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, text
from sqlalchemy.exc import OperationalError
from structlog.testing import capture_logs

from dispatcher.store import open_store
from dispatcher.store.base import StoreUnavailable
from dispatcher.store.database import TRIES, Database, connected, translating
from dispatcher.store.schema import VERSION_TABLE, metadata
from dispatcher.store.sql import SqlStore, url_of
from dispatcher.store.upgrade import LOCK
from tests.support.clock import START, FakeClock
from tests.support.databases import KINDS, Given, new_database, open_given
from tests.support.stores import ids, put
from tests.support.waiting import wait_until
from worker.clock import CorrectedClock, SystemClock
from worker.errors import ConfigError, InternalError

__all__ = ["open_given"]


def empty(kind: str, folder: Path) -> str:
    return f"sqlite:///{folder / 'new.db'}" if kind == "sqlite" else new_database("fresh")


@pytest.mark.parametrize("kind", KINDS)
async def test_several_open_an_empty_database(kind: str, tmp_path: Path) -> None:
    """Processes that start together on a new database all find it with its tables."""
    url = await asyncio.to_thread(empty, kind, tmp_path)
    stores = [open_store(url, FakeClock()) for _ in range(3)]
    await asyncio.gather(*(store.open() for store in stores))
    await put(stores[0], "a")
    assert await ids(stores[2]) == ["a"]
    for store in stores:
        await store.aclose()
        await store.aclose()


def _differences(connection: Connection) -> Any:
    options = {"version_table": VERSION_TABLE, "compare_type": True}
    return compare_metadata(MigrationContext.configure(connection, opts=options), metadata)


async def test_steps_lead_to_the_tables(given_db: Given) -> None:
    """The migrations end at the tables that the statements are written for."""
    database = Database(url_of(given_db.url))
    assert await database.write(_differences) == []
    await database.aclose()


@pytest.mark.parametrize("kind", KINDS)
async def test_foreign_database(kind: str, tmp_path: Path) -> None:
    """A database in which another program has such tables is refused and left as it is."""
    url = await asyncio.to_thread(empty, kind, tmp_path)
    engine = connected(url_of(url))
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE jobs (id INTEGER)"))
    store = SqlStore(url, FakeClock())
    with pytest.raises(ConfigError, match=r"another program's.*jobs"):
        await store.open()
    await store.aclose()
    with engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM jobs")).scalar() == 0
    engine.dispose()


@asynccontextmanager
async def another_at_the_tables(kind: str, url: str) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """Another process that brings this empty database up to date, until it is told to stop."""
    if kind == "sqlite":
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)) as db:
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("BEGIN IMMEDIATE")

            async def stop() -> None:
                db.rollback()

            yield stop
    else:
        async with await psycopg.AsyncConnection.connect(url) as other:
            await other.execute("SELECT pg_advisory_xact_lock(%s)", (LOCK,))
            yield other.rollback


@pytest.mark.parametrize("kind", KINDS)
async def test_another_is_at_the_tables(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that start meanwhile wait until it is done, and say so once; each may be told to stop."""
    monkeypatch.setattr("dispatcher.store.database.BUSY_S", 0.02)
    url = await asyncio.to_thread(empty, kind, tmp_path)
    store, stopped = SqlStore(url, FakeClock()), SqlStore(url, FakeClock())
    with capture_logs() as logs:
        async with another_at_the_tables(kind, url) as stop:
            opening = asyncio.create_task(store.open(), name="opening")
            await wait_until(lambda: len(logs) == 1)
            leaving = asyncio.create_task(stopped.open(), name="leaving")
            await wait_until(lambda: len(logs) == 2)
            leaving.cancel()
            await asyncio.wait({leaving})
            await stopped.aclose()
            assert not opening.done()
            await stop()
            await opening
    assert [line["event"] for line in logs] == ["database_upgrade_awaited"] * 2
    await put(store, "a")
    assert await ids(store) == ["a"]
    await store.aclose()


@pytest.mark.parametrize("kind", KINDS)
async def test_another_stays_at_the_tables(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the end it counts as an outage."""
    monkeypatch.setattr("dispatcher.store.database.BUSY_S", 0.02)
    monkeypatch.setattr("dispatcher.store.upgrade.PATIENCE_S", 0.0)
    url = await asyncio.to_thread(empty, kind, tmp_path)
    store = SqlStore(url, FakeClock())
    async with another_at_the_tables(kind, url):
        with pytest.raises(StoreUnavailable, match="another process"):
            await store.open()
    await store.aclose()


async def test_steps_have_all_the_time(given_db: Given) -> None:
    """No statement of theirs is cut off, and they wait for others' locks; whatever else is asked has its limits."""
    if given_db.kind == "sqlite":
        return
    database = Database(url_of(given_db.url))
    assert await database.migrate(_limits) == ["0", "5min", "0"]
    assert await database.write(_limits) == await database.read(_limits) == ["15s", "5s", "15s"]
    await database.aclose()


def _limits(connection: Connection) -> list[Any]:
    limits = ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout")
    return [connection.execute(text(f"SHOW {limit}")).scalar() for limit in limits]


async def test_newer_database(tmp_path: Path) -> None:
    """A database that a newer version has changed is refused."""
    url = f"sqlite:///{tmp_path / 'a.db'}"
    store = SqlStore(url, FakeClock())
    await store.open()
    await store.aclose()
    with sqlite3.connect(tmp_path / "a.db") as db:
        db.execute(f"UPDATE {VERSION_TABLE} SET version_num = '9999'")
    db.close()
    store = SqlStore(url, FakeClock())
    with pytest.raises(ConfigError, match="9999 of a newer sd-dispatcher"):
        await store.open()
    await store.aclose()


@pytest.mark.parametrize(
    "url", ["", "nonsense", "mysql://u@h/n", "sqlite://", "sqlite:///:memory:", "postgresql+asyncpg://h/n"]
)
def test_wrong_urls(url: str) -> None:
    """What is no URL of a database that we know is refused with what it should look like."""
    with pytest.raises(ConfigError, match="sqlite:///"):
        open_store(url, FakeClock())


async def test_wrong_file(tmp_path: Path) -> None:
    """A file that is no database, and a folder that is not there, are mistakes of the operator."""
    (tmp_path / "text.db").write_text("this is no database, however long it may be" * 100)
    for path in (tmp_path / "text.db", tmp_path / "nowhere" / "a.db"):
        store = SqlStore(f"sqlite:///{path}", FakeClock())
        with pytest.raises(ConfigError, match=path.name):
            await store.open()
        await store.aclose()


async def test_wrong_server(given_db: Given) -> None:
    """A server without that database is a mistake, one that does not answer an outage; no message has the password."""
    if given_db.kind == "sqlite":
        return
    missing = SqlStore(given_db.url.replace("/jobs?", "/missing?"), FakeClock())
    with pytest.raises(ConfigError, match="does not exist"):
        await missing.open()
    await missing.aclose()
    nobody = SqlStore("postgresql://u:secret@[::1]:1/jobs", FakeClock())
    with pytest.raises(StoreUnavailable) as raised:
        await nobody.open()
    assert "secret" not in str(raised.value)
    await nobody.aclose()


def _end_connections(url: str) -> None:
    others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'jobs' AND pid <> pg_backend_pid()"
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(others.encode())


async def test_connections_lost(given_db: Given) -> None:
    """A server that ended all connections is used again at once, and its news are heard again."""
    if given_db.kind == "sqlite":
        return
    store, other = await given_db.store(), await given_db.store()
    await wait_until(lambda: other.ticket() > 0)
    await put(store, "a")
    await wait_until(lambda: other.ticket() > 1)
    await asyncio.to_thread(_end_connections, given_db.url)
    await put(store, "b")
    assert await ids(store) == ["a", "b"]
    heard = other.ticket()
    await wait_until(lambda: other.ticket() > heard)


async def test_locked_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that another program keeps locked is an outage, and fine afterwards."""
    monkeypatch.setattr("dispatcher.store.database.BUSY_S", 0.02)
    store = SqlStore(f"sqlite:///{tmp_path / 'a.db'}", FakeClock())
    await store.open()
    db = sqlite3.connect(tmp_path / "a.db", isolation_level=None)
    db.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreUnavailable, match="locked"):
        await put(store, "a")
    assert await ids(store) == []
    db.execute("ROLLBACK")
    db.close()
    await put(store, "a")
    await store.aclose()


async def test_closed(given_db: Given) -> None:
    """A closed store does not answer."""
    store = await given_db.store()
    await store.aclose()
    with pytest.raises(StoreUnavailable, match="closed"):
        await store.job("a")


async def test_deadlock(given_db: Given) -> None:
    """A transaction that PostgreSQL chose to end is run again, and nobody notices."""
    if given_db.kind == "sqlite":
        return
    store = await given_db.store()
    await put(store, "a", "b")
    database = Database(url_of(given_db.url))
    both, runs = threading.Barrier(2), list[str]()

    def change(connection: Connection, first: str, second: str) -> None:
        runs.append(first)
        connection.execute(text("SET LOCAL deadlock_timeout = '20ms'"))
        connection.execute(text("UPDATE jobs SET code = :me WHERE id = :one"), {"me": first, "one": first})
        if len(runs) <= 2:
            both.wait(10)
        connection.execute(text("UPDATE jobs SET code = :me WHERE id = :one"), {"me": first, "one": second})

    await asyncio.gather(database.write(change, "a", "b"), database.write(change, "b", "a"))
    assert len(runs) >= 3
    assert {(await database.read(_code, one)) for one in ("a", "b")} in ({"a"}, {"b"})
    await database.aclose()


def _code(connection: Connection, job_id: str) -> Any:
    return connection.execute(text("SELECT code FROM jobs WHERE id = :id"), {"id": job_id}).scalar()


async def test_clashes_without_end(given_db: Given) -> None:
    """What clashes again and again is given up as an outage."""
    runs = 0

    def change(connection: Connection) -> None:
        nonlocal runs
        runs += 1
        raise OperationalError("x", {}, Exception("clash"), connection_invalidated=True)

    database = Database(url_of(given_db.url))
    with pytest.raises(StoreUnavailable, match="clash"):
        await database.write(change)
    assert runs == TRIES
    await database.aclose()


async def test_mistakes(given_db: Given) -> None:
    """A mistake of ours is told as such, with its cause."""
    database = Database(url_of(given_db.url))
    with pytest.raises(InternalError, match="nothing_such"):
        await database.read(lambda connection: connection.execute(text("SELECT nothing_such FROM jobs")))
    await database.aclose()
    with pytest.raises(ZeroDivisionError), translating("x"):
        raise ZeroDivisionError


async def test_clock_of_the_server(given_db: Given) -> None:
    """On PostgreSQL a clock that is wrong is corrected by the server's, so that processes agree about leases."""
    wrong = CorrectedClock(FakeClock())
    await given_db.store(wrong)
    if given_db.kind == "sqlite":
        assert wrong.now() == START
    else:
        assert abs((wrong.now() - SystemClock().now()).total_seconds()) < 60
