"""What the worker knows of the model files beyond what the files show: one SQLite file that survives SIGKILL.

All of it blocks and belongs in one thread. The folders are the truth; a lost index costs the order of use and the
known hashes. So no write raises: one that fails leaves the index behind, and `Index.rewrite` brings it up to date.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from worker import log
from worker.errors import Owner
from worker.mentions import Place
from worker.models.base import Entry, Wanted

VERSION = 1
APPLICATION_ID = 0x7364776D
NAME = "models.db"
_BESIDE = ("", "-wal", "-shm", "-journal")
_UNUSABLE = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT})

_TABLES = (
    """
    CREATE TABLE entries (
        kind     TEXT NOT NULL,
        name     TEXT NOT NULL,
        size     INTEGER NOT NULL,
        used     INTEGER NOT NULL,
        sha256   TEXT,
        urls     TEXT NOT NULL,
        baked    INTEGER NOT NULL,
        mtime_ns INTEGER NOT NULL,
        PRIMARY KEY (kind, name)
    ) STRICT, WITHOUT ROWID
    """,
    """
    CREATE TABLE transfers (
        kind    TEXT NOT NULL,
        name    TEXT NOT NULL,
        key     TEXT NOT NULL,
        wanted  TEXT NOT NULL,
        landing TEXT,
        PRIMARY KEY (kind, name)
    ) STRICT, WITHOUT ROWID
    """,
)
"""``landing`` is the entry that a verified file is about to become: set just before it gets its name."""

_log = log.get(__name__)


class Found(StrEnum):
    """What there was when the index was opened."""

    NOTHING = "nothing"
    GOOD = "good"
    DAMAGED = "damaged"


@dataclass(frozen=True, slots=True)
class Transfer:
    """A transfer that was begun for a place. ``key`` names what the bytes are, ``wanted`` what was asked for."""

    place: Place
    key: str
    wanted: Wanted
    landing: Entry | None = None


@dataclass(frozen=True, slots=True)
class Records:
    entries: tuple[Entry, ...] = ()
    transfers: tuple[Transfer, ...] = ()


class Index:
    """``folder`` is made where it does not exist. Where it cannot be written the index is kept in memory alone."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME
        self.behind = False
        """Whether a write failed since the last `rewrite`."""
        self._db: sqlite3.Connection | None = None

    def open(self) -> tuple[Found, Records]:
        """What the last run recorded. A damaged file, or one of a newer version, is moved aside."""
        there = self.path.exists()
        try:
            return self._opened(there)
        except (sqlite3.DatabaseError, ValueError, KeyError, TypeError) as error:
            if not _is_damage(error):
                return self._in_memory(error)
            _log.warning("models_index_rebuilt", path=str(self.path), error=str(error))
        except OSError as error:
            return self._in_memory(error)
        self._move_aside()
        try:
            self._opened(there=False)
        except (sqlite3.Error, OSError) as error:
            self._in_memory(error)
        return Found.DAMAGED, Records()

    def put(self, entries: Iterable[Entry]) -> None:
        """Record these, new or changed."""
        rows = [_row(entry) for entry in entries]
        self._write(lambda db: db.executemany(_PUT, rows))

    def landed(self, entry: Entry) -> None:
        """Record a file whose transfer is over, and forget the transfer."""

        def write(db: sqlite3.Connection) -> None:
            db.execute(_PUT, _row(entry))
            db.execute(_ENDED, entry.place)

        self._write(write)

    def forget(self, places: Iterable[Place]) -> None:
        self._write(lambda db: db.executemany("DELETE FROM entries WHERE kind = ? AND name = ?", list(places)))

    def use(self, used: Mapping[Place, int]) -> None:
        """Record when these were last used."""
        rows = [(counter, *place) for place, counter in used.items()]
        self._write(lambda db: db.executemany("UPDATE entries SET used = ? WHERE kind = ? AND name = ?", rows))

    def begin(self, transfer: Transfer) -> None:
        """Record a transfer, in place of an earlier one for its place."""
        row = _transfer_row(transfer)
        self._write(lambda db: db.execute(_BEGUN, row))

    def ended(self, places: Iterable[Place]) -> None:
        """Forget the transfers for these places."""
        self._write(lambda db: db.executemany(_ENDED, list(places)))

    def look(self) -> None:
        """Notice that somebody deleted the file: what is written to it would be lost."""
        if self._db is not None and not self.path.exists():
            self.close()
            self.behind = True

    def rewrite(self, records: Records) -> None:
        """Record exactly this, in a new file where the old one cannot be used any more."""
        if self._db is None:
            self._move_aside()
            with contextlib.suppress(sqlite3.Error, OSError):
                self._opened(there=False)

        def write(db: sqlite3.Connection) -> None:
            db.execute("DELETE FROM entries")
            db.execute("DELETE FROM transfers")
            db.executemany(_PUT, [_row(entry) for entry in records.entries])
            db.executemany(_BEGUN, [_transfer_row(transfer) for transfer in records.transfers])

        self.behind = False
        self._write(write)

    def remove(self) -> None:
        """Close it and delete its file. Raises `OSError`."""
        self.close()
        for end in _BESIDE:
            Path(f"{self.path}{end}").unlink(missing_ok=True)

    def close(self) -> None:
        if self._db is not None:
            db, self._db = self._db, None
            with contextlib.suppress(sqlite3.Error):
                db.close()

    def _write(self, write: Callable[[sqlite3.Connection], Any]) -> None:
        if self._db is None:
            self.behind = True
            return
        try:
            with _writing(self._db):
                write(self._db)
        except sqlite3.Error as error:
            if not self.behind:
                _log.warning("models_index_failed", path=str(self.path), error=str(error))
            self.behind = True
            if _is_damage(error):
                self.close()

    def _opened(self, there: bool) -> tuple[Found, Records]:
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._db = _connect(str(self.path))
        self.path.chmod(0o600)
        return (Found.GOOD, _records(self._db)) if there else (Found.NOTHING, Records())

    def _in_memory(self, error: Exception) -> tuple[Found, Records]:
        _log.warning("models_index_not_written", path=str(self.path), error=str(error))
        self.close()
        self._db = _connect(":memory:")
        return Found.NOTHING, Records()

    def _move_aside(self) -> None:
        """Keep the last damaged file for who wants to know; its log must not be taken for that of a new one."""
        self.close()
        with contextlib.suppress(OSError):
            os.replace(self.path, f"{self.path}.damaged")  # noqa: PTH105 - the name only gains a suffix
        for end in _BESIDE:
            with contextlib.suppress(OSError):
                Path(f"{self.path}{end}").unlink()


def peek(folder: Path) -> Records:
    """What another process has recorded up to now; nothing where there is no index that can be read."""
    try:
        with contextlib.closing(sqlite3.connect(f"{(folder / NAME).as_uri()}?mode=ro", uri=True)) as db:
            return _records(db)
    except (sqlite3.Error, ValueError, KeyError, TypeError):
        return Records()


_PUT = "INSERT OR REPLACE INTO entries VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
_BEGUN = "INSERT OR REPLACE INTO transfers VALUES (?, ?, ?, ?, ?)"
_ENDED = "DELETE FROM transfers WHERE kind = ? AND name = ?"


def _connect(path: str) -> sqlite3.Connection:
    """Every commit is on disk before it returns. Raises `sqlite3.Error`, `ValueError` for a file of another kind."""
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    try:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.execute("PRAGMA journal_size_limit = 4194304")
        with _writing(db):
            _create(db)
        found = db.execute("PRAGMA quick_check").fetchone()[0]
        if found != "ok":
            raise ValueError(found)
    except (sqlite3.Error, ValueError):
        db.close()
        raise
    return db


def _create(db: sqlite3.Connection) -> None:
    version, owner = (int(db.execute(f"PRAGMA {name}").fetchone()[0]) for name in ("user_version", "application_id"))
    if version == 0 and owner == 0:
        for statement in _TABLES:
            db.execute(statement)
        db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        db.execute(f"PRAGMA user_version = {VERSION}")
    elif (version, owner) != (VERSION, APPLICATION_ID):
        raise ValueError(f"is of version {version} of another program or of a newer sd-worker")


@contextmanager
def _writing(db: sqlite3.Connection) -> Iterator[None]:
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    finally:
        if db.in_transaction:
            with contextlib.suppress(sqlite3.Error):
                db.execute("ROLLBACK")


def _is_damage(error: Exception) -> bool:
    """Whether the file itself is at fault, and not the disk, its rights or somebody else's lock."""
    if not isinstance(error, sqlite3.Error):
        return True
    return (getattr(error, "sqlite_errorcode", 0) & 0xFF) in _UNUSABLE


def _records(db: sqlite3.Connection) -> Records:
    entries = tuple(_entry(row) for row in db.execute("SELECT * FROM entries ORDER BY used"))
    return Records(entries, tuple(_transfer(row) for row in db.execute("SELECT * FROM transfers")))


def _row(entry: Entry) -> tuple[str, str, int, int, str | None, str, int, int]:
    urls = json.dumps(sorted(entry.urls))
    return (*entry.place, entry.size, entry.used, entry.sha256, urls, int(entry.baked), entry.mtime_ns)


def _entry(row: tuple[Any, ...]) -> Entry:
    kind, name, size, used, sha256, urls, baked, mtime_ns = row
    return Entry(Place(kind, name), size, used, sha256, frozenset(json.loads(urls)), bool(baked), mtime_ns)


def _transfer_row(transfer: Transfer) -> tuple[str, str, str, str, str | None]:
    wanted = transfer.wanted
    asked = {
        "kind": wanted.kind,
        "name": wanted.name,
        "url": wanted.url,
        "sha256": wanted.sha256,
        "size": wanted.size,
        "owner": wanted.owner.value,
        "claimed": wanted.claimed,
    }
    landing = None if transfer.landing is None else json.dumps(_row(transfer.landing))
    return (*transfer.place, transfer.key, json.dumps(asked), landing)


def _transfer(row: tuple[Any, ...]) -> Transfer:
    kind, name, key, wanted, landing = row
    asked = json.loads(wanted)
    return Transfer(
        Place(kind, name),
        key,
        Wanted(**{**asked, "owner": Owner(asked["owner"])}),
        None if landing is None else _entry(tuple(json.loads(landing))),
    )
