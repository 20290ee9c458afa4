"""Bringing a database to the present tables, and refusing one that is not ours."""

from __future__ import annotations

import asyncio
import re
import sqlite3
from pathlib import Path
from typing import Any

import structlog
from sqlalchemy import Connection, inspect, text
from sqlalchemy.exc import DBAPIError

from dispatcher.store.base import StoreUnavailable
from dispatcher.store.database import SQLITE, Database
from dispatcher.store.schema import HEAD, VERSION_TABLE, metadata
from worker.errors import ConfigError

log = structlog.get_logger()

LOCK = 0x73646469
"""PostgreSQL's advisory lock of whoever changes the tables."""

PATIENCE_S = 600.0
LOOK_S = 0.1
_KNOWN = re.compile(r"\d{4}")
_MISCONFIGURED = frozenset(
    {sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_NOTADB}
)
_REFUSED = ("password authentication failed", "does not exist", "no pg_hba.conf entry", "permission denied")


async def brought_up(database: Database) -> None:
    """Bring a database to the present tables, or wait until another process has: ten minutes at most.

    Raises `ConfigError` as `upgrade` does and for a database that will not open, `StoreUnavailable` for one that does
    not answer or that another process keeps for longer.
    """
    loop = asyncio.get_running_loop()
    began = loop.time()
    told = False
    while not await _is_done(database):
        if loop.time() - began > PATIENCE_S:
            raise StoreUnavailable(f"{database.place}: another process has been changing its tables for too long")
        if not told:
            log.info("database_upgrade_awaited", database=database.place)
        told = True
        await asyncio.sleep(LOOK_S)


async def _is_done(database: Database) -> bool:
    """Whether the tables are the present ones, if need be by our doing; False while another process is at them."""
    try:
        return await database.read(version_of) == HEAD or await database.migrate(upgrade)
    except StoreUnavailable as error:
        if _is_locked(error.__cause__):
            return False
        if is_misconfigured(error.__cause__):
            raise ConfigError(str(error)) from error
        raise


def upgrade(connection: Connection) -> bool:
    """Run the steps that this database lacks; False where another process just does.

    Raises `ConfigError` when it is a newer version's, or another program's.
    """
    if connection.dialect.name != SQLITE:
        free = connection.execute(text("SELECT pg_try_advisory_xact_lock(:lock)"), {"lock": LOCK}).scalar()
        if not free:
            return False
    version = version_of(connection)
    if version == HEAD:
        return True
    if version is None:
        _check_ours(connection)
    elif not _KNOWN.fullmatch(version) or version > HEAD:
        raise ConfigError(f"the database has schema {version} of a newer sd-dispatcher; this one knows up to {HEAD}")
    _run_steps(connection)
    return True


def version_of(connection: Connection) -> str | None:
    """The step that the database has come to; None where it has none of ours."""
    if not inspect(connection).has_table(VERSION_TABLE):
        return None
    version: str | None = connection.execute(text(f"SELECT version_num FROM {VERSION_TABLE}")).scalar()  # noqa: S608
    return version


def _check_ours(connection: Connection) -> None:
    if taken := sorted(set(inspect(connection).get_table_names()) & set(metadata.tables)):
        raise ConfigError(f"the database is another program's: it has tables named {', '.join(taken)}")


def _run_steps(connection: Connection) -> None:
    from alembic import command
    from alembic.config import Config

    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")).replace("%", "%%"))
    command.upgrade(config, "head")


def _is_locked(error: BaseException | None) -> bool:
    """Whether another process holds the SQLite file's lock for writing."""
    cause: Any = error.orig if isinstance(error, DBAPIError) else None
    return isinstance(cause, sqlite3.Error) and _code(cause) == sqlite3.SQLITE_BUSY


def is_misconfigured(error: BaseException | None) -> bool:
    """Whether a database that could not be opened will not open later either."""
    cause: Any = error.orig if isinstance(error, DBAPIError) else None
    if isinstance(cause, sqlite3.Error):
        return _code(cause) in _MISCONFIGURED
    return cause is not None and any(said in str(cause) for said in _REFUSED)


def _code(error: sqlite3.Error) -> int:
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF
