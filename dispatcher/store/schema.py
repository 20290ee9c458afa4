"""The tables, as they stand after the last migration. Nothing here touches a database.

``jobs`` is narrow and is written when a job changes hands; documents and results stand apart. Who holds a job stands in
``leases`` alone: renewing one writes no job, and its columns that change are in no index. ``attempts`` are the
hand-overs that ended. ``line`` is one row: the first of all in line, how often it was passed over, and a count of news.
``virtual_times`` say how far the fair order has come within each priority. ``backlog`` are signed changes of what
waits, by model: their sum is the truth, the sweep folds them.

Times are microseconds since 1970 in UTC, work milliseconds. ``minus_priority`` makes every order an ascending one.
Words compare by code point in both databases.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ColumnElement,
    Double,
    Identity,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    and_,
    false,
    literal_column,
)

VERSION_TABLE = "dispatcher_version"
HEAD = "0001"

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_MILLISECOND_S = 1000

metadata = MetaData()
Word = Text().with_variant(String(collation="C"), "postgresql")
Number = BigInteger().with_variant(Integer, "sqlite")
BRISK = {"autovacuum_vacuum_scale_factor": 0.02, "autovacuum_analyze_scale_factor": 0.05}
"""PostgreSQL: tables whose rows change all the time are vacuumed long before a fifth of them is dead."""


def stamp(at: datetime) -> int:
    return (at - _EPOCH) // _MICROSECOND


def moment(stamped: int) -> datetime:
    return _EPOCH + stamped * _MICROSECOND


def stamp_or_none(at: datetime | None) -> int | None:
    return None if at is None else stamp(at)


def moment_or_none(stamped: int | None) -> datetime | None:
    return None if stamped is None else moment(stamped)


def _numbered(name: str) -> Column[Any]:
    """A key that grows and is never given twice."""
    return Column(name, Number, Identity(), primary_key=True)


def _place() -> Column[Any]:
    """The job's, given by ``jobs``."""
    return Column("place", Number, primary_key=True, autoincrement=False)


jobs = Table(
    "jobs",
    metadata,
    _numbered("place"),
    Column("id", Word, nullable=False, unique=True),
    Column("fingerprint", Word, nullable=False),
    Column("status", Word, nullable=False),
    Column("key", Word, nullable=False),
    Column("minus_priority", Number, nullable=False),
    Column("rank", Double, nullable=False),
    Column("work_ms", Number, nullable=False),
    Column("owner", Word, nullable=False),
    Column("queued_at", Number, nullable=False),
    Column("visible_at", Number),
    Column("deadline", Number),
    Column("run", Integer, nullable=False, server_default="0"),
    Column("deliveries", Integer, nullable=False, server_default="0"),
    Column("handed", Integer, nullable=False, server_default="0"),
    Column("token", Number),
    Column("ended_at", Number),
    Column("code", Word),
    Column("needs", Text, nullable=False),
    sqlite_autoincrement=True,
    postgresql_with=BRISK,
)
"""``deliveries`` are the hand-overs of this run that count, ``handed`` all of all runs; ``token`` is the last one's."""

WAITING = jobs.c.status == literal_column("'waiting'")
DELAYED = jobs.c.status == literal_column("'delayed'")
DONE = jobs.c.status == literal_column("'done'")
UNHELD = jobs.c.status.in_([literal_column("'waiting'"), literal_column("'delayed'")])
OVER = jobs.c.status.in_([literal_column("'done'"), literal_column("'dead'")])
HAS_DEADLINE = jobs.c.deadline.is_not(None)
HANDED_MUCH = jobs.c.deliveries > literal_column("3")
"""Conditions word for word as the partial indexes have them: with a parameter in it none would be found to fit."""

TURN = (jobs.c.minus_priority, jobs.c.rank, jobs.c.id)


def _partial(name: str, *columns: Column[Any], where: ColumnElement[bool]) -> None:
    Index(name, *columns, postgresql_where=where, sqlite_where=where)


_partial("jobs_of_key", jobs.c.key, *TURN, where=WAITING)
_partial("jobs_in_line", *TURN, where=WAITING)
_partial("jobs_of_owner", jobs.c.owner, *TURN, where=WAITING)
_partial("jobs_delayed", jobs.c.visible_at, jobs.c.id, where=DELAYED)
_partial("jobs_due", jobs.c.deadline, where=and_(UNHELD, HAS_DEADLINE))
_partial("jobs_handed_much", jobs.c.deliveries, where=and_(UNHELD, HANDED_MUCH))
_partial("jobs_over", jobs.c.status, jobs.c.ended_at, jobs.c.id, where=OVER)

documents = Table("documents", metadata, _place(), Column("document", Text, nullable=False))

leases = Table(
    "leases",
    metadata,
    _numbered("token"),
    Column("place", Number, nullable=False, unique=True),
    Column("job_id", Word, nullable=False, unique=True),
    Column("node", Word, nullable=False),
    Column("minus_priority", Number, nullable=False),
    Column("rank", Double, nullable=False),
    Column("until", Number, nullable=False),
    Column("progress", Double),
    Column("hop", Word),
    Column("cancelling", Boolean, nullable=False, server_default=false()),
    sqlite_autoincrement=True,
    postgresql_with={"fillfactor": 50, **BRISK},
)

attempts = Table(
    "attempts",
    metadata,
    Column("token", Number, primary_key=True, autoincrement=False),
    Column("place", Number, nullable=False, index=True),
    Column("run", Integer, nullable=False),
    Column("worker", Word, nullable=False),
    Column("ended_at", Number, nullable=False),
    Column("code", Word),
    Column("charged", Boolean, nullable=False),
)

results = Table("results", metadata, _place(), Column("result", Text, nullable=False))

inline_results = Table(
    "inline_results",
    metadata,
    _numbered("number"),
    Column("place", Number, nullable=False, unique=True),
    Column("result", Text, nullable=False),
    sqlite_autoincrement=True,
)
"""The latest results that hold images themselves; ``results`` has all of them, without the images."""

line = Table(
    "line",
    metadata,
    Column("one", Integer, primary_key=True, autoincrement=False),
    Column("first", Word),
    Column("passed", Number, nullable=False, server_default="0"),
    Column("news", Number, nullable=False, server_default="0"),
    postgresql_with={"fillfactor": 10},
)

virtual_times = Table(
    "virtual_times",
    metadata,
    Column("minus_priority", Number, primary_key=True, autoincrement=False),
    Column("virtual", Double, nullable=False),
    Column("moved_at", Number, nullable=False),
)

backlog = Table(
    "backlog",
    metadata,
    _numbered("number"),
    Column("key", Word, nullable=False),
    Column("waiting", Number, nullable=False),
    Column("work_ms", Number, nullable=False),
    sqlite_autoincrement=True,
    postgresql_with=BRISK,
)

nodes = Table(
    "nodes",
    metadata,
    Column("id", Word, primary_key=True),
    Column("seen", Number, nullable=False),
    Column("report", Text, nullable=False),
    Column("orders", Text, nullable=False),
    postgresql_with={"fillfactor": 50, **BRISK},
)

roles = Table(
    "roles",
    metadata,
    Column("role", Word, primary_key=True),
    Column("holder", Word, nullable=False),
    Column("until", Number, nullable=False),
)

models = Table(
    "models",
    metadata,
    Column("kind", Word, primary_key=True),
    Column("name", Word, primary_key=True),
    Column("url", Text),
    Column("sha256", Word),
    Column("size", Number),
    Column("base", Word),
)

letters = Table(
    "letters",
    metadata,
    _numbered("id"),
    Column("place", Number, nullable=False, index=True),
    Column("job_id", Word, nullable=False),
    Column("event", Word, nullable=False),
    Column("document", Text, nullable=False),
    Column("result", Text, nullable=False),
    Column("tries", Integer, nullable=False, server_default="0"),
    Column("due_at", Number, nullable=False, index=True),
    sqlite_autoincrement=True,
)


def is_token(number: int) -> bool:
    """Whether a lease can have it: what no column holds is an error to PostgreSQL, and no lease's."""
    return 0 < number < 2**63


def is_word(text: str) -> bool:
    """Whether a column can hold it: PostgreSQL knows no NUL, and what has one is nobody's name."""
    return "\0" not in text


def work_ms(work_s: float) -> int:
    return round(work_s * _MILLISECOND_S)


def work_s(milliseconds: int) -> float:
    return milliseconds / _MILLISECOND_S
