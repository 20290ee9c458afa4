"""The queue's file: its tables, its version, and how it is opened."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

from worker.errors import ConfigError

VERSION = 1
APPLICATION_ID = 0x73647771
_AGAIN_S = 0.02

_TABLES = (
    """
    CREATE TABLE jobs (
        place       INTEGER PRIMARY KEY AUTOINCREMENT,
        id          TEXT NOT NULL UNIQUE,
        fingerprint TEXT NOT NULL,
        priority    INTEGER NOT NULL,
        status      TEXT NOT NULL CHECK (status IN ('waiting', 'delayed', 'leased', 'done', 'dead')),
        queued_at   INTEGER NOT NULL,
        visible_at  INTEGER NOT NULL,
        token       INTEGER,
        run         INTEGER NOT NULL DEFAULT 0,
        cancelling  INTEGER NOT NULL DEFAULT 0,
        ended_at    INTEGER,
        code        TEXT
    ) STRICT
    """,
    "CREATE INDEX jobs_waiting ON jobs (priority DESC, queued_at, place) WHERE status = 'waiting'",
    "CREATE INDEX jobs_hidden ON jobs (visible_at) WHERE status IN ('delayed', 'leased')",
    "CREATE INDEX jobs_done ON jobs (ended_at) WHERE status = 'done'",
    "CREATE INDEX jobs_held ON jobs (token) WHERE token IS NOT NULL",
    """
    CREATE TABLE bodies (
        place INTEGER PRIMARY KEY REFERENCES jobs (place) ON DELETE CASCADE,
        body  BLOB NOT NULL
    ) STRICT
    """,
    """
    CREATE TABLE results (
        place  INTEGER PRIMARY KEY REFERENCES jobs (place) ON DELETE CASCADE,
        result BLOB NOT NULL
    ) STRICT
    """,
    """
    CREATE TABLE inline_results (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        place  INTEGER NOT NULL UNIQUE REFERENCES jobs (place) ON DELETE CASCADE,
        result BLOB NOT NULL
    ) STRICT
    """,
    """
    CREATE TABLE hand_overs (
        token    INTEGER PRIMARY KEY AUTOINCREMENT,
        place    INTEGER NOT NULL REFERENCES jobs (place) ON DELETE CASCADE,
        run      INTEGER NOT NULL,
        worker   TEXT NOT NULL,
        ended_at INTEGER,
        code     TEXT,
        charged  INTEGER NOT NULL DEFAULT 0
    ) STRICT
    """,
    "CREATE INDEX hand_overs_of ON hand_overs (place, token)",
)
"""Bodies and results stand apart, so that renewing a lease does not write a large body again; ``inline_results``
holds the results in which images stand, ``results`` all of them without images.

Times are microseconds since 1970 in UTC. ``jobs.token`` is the last hand-over's as long as its holder may still
answer it. A job whose lease ran out or whose delay is over keeps its status until the next claim.
"""


def connect(path: Path, busy: timedelta) -> sqlite3.Connection:
    """Open the file, made where it does not exist, every commit on disk before it returns.

    Raises `ConfigError` when it is another program's or a newer version's, and `sqlite3.Error`.
    """
    db = sqlite3.connect(path, timeout=busy.total_seconds(), isolation_level=None)
    try:
        _check_owner(db, path)
        _use_write_ahead_log(db, busy)
        db.execute("PRAGMA synchronous = FULL")
        db.execute("PRAGMA foreign_keys = ON")
        db.execute("PRAGMA journal_size_limit = 67108864")
        with writing(db):
            _create(db)
    except (sqlite3.Error, ConfigError):
        db.close()
        raise
    return db


@contextmanager
def writing(db: sqlite3.Connection) -> Iterator[None]:
    """A transaction that holds the write lock from its start, so that it never fails half-way for a lock."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    finally:
        if db.in_transaction:
            db.execute("ROLLBACK")


def _pragma(db: sqlite3.Connection, name: str) -> int:
    return int(db.execute(f"PRAGMA {name}").fetchone()[0])


def _check_owner(db: sqlite3.Connection, path: Path) -> None:
    is_empty = db.execute("SELECT 1 FROM sqlite_schema LIMIT 1").fetchone() is None
    version, owner = _pragma(db, "user_version"), _pragma(db, "application_id")
    if owner != APPLICATION_ID and not is_empty:
        raise ConfigError(f"{path} is another program's database, not a queue of sd-worker")
    if version > VERSION:
        raise ConfigError(f"{path} has schema version {version} of a newer sd-worker; this one knows up to {VERSION}")


def _use_write_ahead_log(db: sqlite3.Connection, busy: timedelta) -> None:
    """Two processes that switch a new file at once get an error without any waiting: try again for ``busy``."""
    give_up = time.monotonic() + busy.total_seconds()
    while True:
        try:
            db.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > give_up:
                raise
            time.sleep(_AGAIN_S)
        else:
            return


def _create(db: sqlite3.Connection) -> None:
    if _pragma(db, "user_version") == 0:
        for statement in _TABLES:
            db.execute(statement)
        db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        db.execute(f"PRAGMA user_version = {VERSION}")
