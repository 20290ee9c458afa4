"""Rows of the tables as the words of the seam, and the few statements that several verbs share."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from functools import cache, lru_cache
from typing import Any, TypeVar

import pydantic_core
from sqlalchemy import (
    JSON,
    Column,
    ColumnElement,
    Connection,
    Executable,
    FromClause,
    Row,
    Table,
    Text,
    any_,
    bindparam,
    cast,
    column,
    func,
    literal,
    select,
    true,
    type_coerce,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.dialects.postgresql import ARRAY

from dispatcher.store.base import JobRow
from dispatcher.store.database import SQLITE
from dispatcher.store.schema import attempts, backlog, documents, jobs, leases, line, moment, moment_or_none, work_s
from dispatcher.words import Key, Need, Waiting
from worker.queues.base import Attempt

T = TypeVar("T")
CHANNEL = "sd_dispatcher_jobs"
PORTION = 500
"""So many rows a statement or sweep's step at most: short transactions, short lists of parameters."""

WAITING_COLUMNS = (
    jobs.c.place,
    jobs.c.id,
    jobs.c.key,
    jobs.c.needs,
    jobs.c.minus_priority,
    jobs.c.rank,
    jobs.c.work_ms,
    jobs.c.owner,
    jobs.c.queued_at,
)
AnyRow = Row[*tuple[Any, ...]]


@cache
def given(dialect: str, *columns: Column[Any]) -> FromClause:
    """Rows handed over in one parameter, ``rows`` (`json_of` a list of objects): one statement for any number of them.

    Reading a parameter a value costs more than the statement itself, and no two lengths of a list have the same plan.
    """
    rows = bindparam("rows", type_=Text)
    if dialect != SQLITE:
        fields = [column(one.name, one.type) for one in columns]
        records = func.json_to_recordset(cast(rows, JSON)).table_valued(*fields, name="given")
        return records.render_derived(with_types=True)
    each = func.json_each(rows).table_valued("value", name="each")
    return select(
        *(type_coerce(func.json_extract(each.c.value, f"$.{one.name}"), one.type).label(one.name) for one in columns)
    ).subquery("given")


@cache
def adding(dialect: str, table: Table, names: tuple[str, ...], *returned: Column[Any], skip: str = "") -> Executable:
    """`adding_from`; ``skip``: but for those whose value of that column is there already."""
    insertion = adding_from(dialect, table, names)
    if skip:
        insertion = insertion.on_conflict_do_nothing(index_elements=[skip])
    return insertion.returning(*returned) if returned else insertion


def adding_from(dialect: str, table: Table, names: tuple[str, ...]) -> postgresql.Insert | sqlite.Insert:
    """INSERT of rows given with these columns, in their order."""
    source = given(dialect, *(table.c[name] for name in names))
    into = (sqlite.insert if dialect == SQLITE else postgresql.insert)(table)
    return into.from_select(names, select(*(source.c[name] for name in names)).where(true()))


def add(connection: Connection, table: Table, rows: Sequence[dict[str, Any]]) -> None:
    """Insert rows, which have all the same columns."""
    if rows:
        connection.execute(adding(connection.dialect.name, table, tuple(rows[0])), {"rows": json_of(rows)})


def within(dialect: str, column: ColumnElement[Any], name: str) -> ColumnElement[bool]:
    """``column IN`` the list that the parameter of that name holds, as `listed` makes it."""
    if dialect == SQLITE:
        return column.in_(select(func.json_each(bindparam(name, type_=Text)).table_valued("value").c.value))
    return column == any_(bindparam(name, type_=ARRAY(column.type)))


def listed(connection: Connection, values: Collection[Any]) -> Any:
    """A list as one parameter."""
    return json_of(list(values)) if connection.dialect.name == SQLITE else list(values)


def among(connection: Connection, column: ColumnElement[Any], values: Collection[Any]) -> ColumnElement[bool]:
    """The same with the list in it."""
    if connection.dialect.name == SQLITE:
        return column.in_(select(func.json_each(listed(connection, values)).table_valued("value").c.value))
    return column == any_(literal(listed(connection, values), ARRAY(column.type)))


def insert_into(connection: Connection, table: Table) -> postgresql.Insert | sqlite.Insert:
    """The database's own INSERT, which knows ``ON CONFLICT``."""
    return sqlite.insert(table) if connection.dialect.name == SQLITE else postgresql.insert(table)


def json_of(value: Any) -> str:
    return pydantic_core.to_json(value).decode()


def document_of(text: str) -> dict[str, Any]:
    document: dict[str, Any] = pydantic_core.from_json(text)
    return document


def text_of_needs(needs: Sequence[Need]) -> str:
    fields = ("key", "kind", "name", "size", "url", "sha256")
    return json_of([[getattr(need, name) for name in fields] for need in needs])


@lru_cache(maxsize=8192)
def needs_of(text: str) -> tuple[Need, ...]:
    """Remembered: the same few thousand stand in very many jobs."""
    return tuple(Need(*fields) for fields in pydantic_core.from_json(text))


def waiting_of(row: AnyRow) -> Waiting:
    return Waiting(
        id=row.id,
        needs=needs_of(row.needs),
        priority=-row.minus_priority,
        rank=row.rank,
        work_s=work_s(row.work_ms),
        user=row.owner,
        since=moment(row.queued_at),
    )


def attempts_of(connection: Connection, places: Collection[int], *, run: bool) -> dict[int, tuple[Attempt, ...]]:
    """The hand-overs that ended, oldest first; ``run``: those of the present run only."""
    found: defaultdict[int, list[Attempt]] = defaultdict(list)
    if places:
        query = _attempts(connection.dialect.name, run=run)
        for row in connection.execute(query, {"places": listed(connection, places)}):
            found[row.place].append(Attempt(row.worker, moment(row.ended_at), row.code, row.charged))
    return {place: tuple(tried) for place, tried in found.items()}


@cache
def _attempts(dialect: str, *, run: bool) -> Executable:
    query = select(attempts).where(within(dialect, attempts.c.place, "places")).order_by(attempts.c.token)
    if run:
        query = query.join(jobs, (jobs.c.place == attempts.c.place) & (jobs.c.run == attempts.c.run))
    return query


@cache
def _documents(dialect: str) -> Executable:
    return select(documents).where(within(dialect, documents.c.place, "places"))


def documents_of(connection: Connection, places: Collection[int]) -> dict[int, str]:
    """The texts of these jobs' documents."""
    found = connection.execute(_documents(connection.dialect.name), {"places": listed(connection, places)})
    return {row.place: row.document for row in found}


JOB_COLUMNS = (*jobs.c, leases.c.node, leases.c.until, leases.c.progress, leases.c.hop, leases.c.cancelling)
JOBS_AND_LEASES = jobs.outerjoin(leases, leases.c.place == jobs.c.place)


def job_rows(connection: Connection, rows: Sequence[AnyRow]) -> list[JobRow]:
    """Rows of ``JOB_COLUMNS`` with their attempts, without results."""
    ended = attempts_of(connection, [row.place for row in rows if row.handed], run=False)
    return [_job_row(row, ended.get(row.place, ())) for row in rows]


def _job_row(row: AnyRow, ended: tuple[Attempt, ...]) -> JobRow:
    is_held = row.status == "leased"
    return JobRow(
        id=row.id,
        status=row.status,
        user=row.owner,
        priority=-row.minus_priority,
        needs=needs_of(row.needs),
        queued_at=moment(row.queued_at),
        deliveries=row.deliveries,
        attempts=ended,
        rank=row.rank,
        node=row.node,
        token=row.token if is_held else None,
        lease_until=moment_or_none(row.until),
        visible_at=moment_or_none(row.visible_at) if row.status == "delayed" else None,
        cancelling=bool(row.cancelling),
        ended=moment_or_none(row.ended_at),
        code=row.code,
        progress=row.progress,
        hop=row.hop,
    )


class Tally:
    """What comes to wait and what no longer does within one transaction, by model."""

    def __init__(self) -> None:
        self._changes: defaultdict[str, list[int]] = defaultdict(lambda: [0, 0])
        self._is_news = False

    def comes(self, key: Key, work_ms: int) -> None:
        self.count(key, 1, work_ms)
        self._is_news = True

    def goes(self, key: Key, work_ms: int) -> None:
        self.count(key, -1, -work_ms)

    def count(self, key: Key, waiting: int, work_ms: int) -> None:
        change = self._changes[key]
        change[0] += waiting
        change[1] += work_ms

    def write(self, connection: Connection) -> None:
        """Append the changes, and wake whoever waits for jobs where some came."""
        changes = sorted((key, *change) for key, change in self._changes.items() if any(change))
        add(connection, backlog, [{"key": key, "waiting": n, "work_ms": work} for key, n, work in changes])
        if self._is_news:
            announce(connection)


def announce(connection: Connection) -> None:
    """Tell every process that jobs came to wait, once this transaction is committed."""
    if connection.dialect.name == SQLITE:
        connection.execute(update(line).values(news=line.c.news + 1))
    else:
        connection.execute(select(func.pg_notify(CHANNEL, "")))
