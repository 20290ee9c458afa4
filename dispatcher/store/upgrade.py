"""Bringing a database to the present tables, and refusing one that is not ours."""

from __future__ import annotations

import re
import sqlite3
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, inspect, text
from sqlalchemy.exc import DBAPIError

from dispatcher.store.database import SQLITE
from dispatcher.store.schema import HEAD, VERSION_TABLE, metadata
from worker.errors import ConfigError

_LOCK = 0x73646469
_KNOWN = re.compile(r"\d{4}")
_MISCONFIGURED = frozenset(
    {sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_NOTADB}
)
_REFUSED = ("password authentication failed", "does not exist", "no pg_hba.conf entry", "permission denied")


def upgrade(connection: Connection) -> None:
    """Run the steps that this database lacks; several processes may try at once.

    Raises `ConfigError` when it is a newer version's, or another program's.
    """
    if connection.dialect.name != SQLITE:
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
    version = version_of(connection)
    if version == HEAD:
        return
    if version is not None and (not _KNOWN.fullmatch(version) or version > HEAD):
        raise ConfigError(f"the database has schema {version} of a newer sd-dispatcher; this one knows up to {HEAD}")
    _run_steps(connection)


def version_of(connection: Connection) -> str | None:
    """The step that the database has come to; None where it is empty."""
    found = inspect(connection)
    if found.has_table(VERSION_TABLE):
        version: str | None = connection.execute(text(f"SELECT version_num FROM {VERSION_TABLE}")).scalar()  # noqa: S608
        return version
    if taken := sorted(set(found.get_table_names()) & set(metadata.tables)):
        raise ConfigError(f"the database is another program's: it has tables named {', '.join(taken)}")
    return None


def _run_steps(connection: Connection) -> None:
    from alembic import command
    from alembic.config import Config

    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")).replace("%", "%%"))
    command.upgrade(config, "head")


def is_misconfigured(error: BaseException | None) -> bool:
    """Whether a database that could not be opened will not open later either."""
    cause: Any = error.orig if isinstance(error, DBAPIError) else None
    if isinstance(cause, sqlite3.Error):
        return int(getattr(cause, "sqlite_errorcode", 0)) & 0xFF in _MISCONFIGURED
    return cause is not None and any(said in str(cause) for said in _REFUSED)
