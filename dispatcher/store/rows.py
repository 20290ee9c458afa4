"""Rows of the tables as the words of the seam, and the few statements that several verbs share."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import islice
from typing import Any, TypeVar

import pydantic_core
from sqlalchemy import Connection, Row, Table, func, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite

from dispatcher.store.base import JobRow
from dispatcher.store.database import SQLITE
from dispatcher.store.schema import attempts, backlog, jobs, leases, line, moment, moment_or_none, work_s
from dispatcher.words import Need, Waiting
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


def portions(items: Iterable[T], size: int = PORTION) -> Iterator[list[T]]:
    rest = iter(items)
    while portion := list(islice(rest, size)):
        yield portion


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
    for portion in portions(places):
        query = select(attempts).where(attempts.c.place.in_(portion)).order_by(attempts.c.token)
        if run:
            query = query.join(jobs, (jobs.c.place == attempts.c.place) & (jobs.c.run == attempts.c.run))
        for row in connection.execute(query):
            found[row.place].append(Attempt(row.worker, moment(row.ended_at), row.code, row.charged))
    return {place: tuple(ended) for place, ended in found.items()}


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

    def add(self, row: AnyRow, sign: int) -> None:
        """``row`` has ``key`` and ``work_ms``; the sign is 1 for a job that comes to wait."""
        self.count(row.key, row.work_ms, sign)

    def count(self, key: str, work_ms: int, sign: int) -> None:
        change = self._changes[key]
        change[0] += sign
        change[1] += sign * work_ms
        self._is_news |= sign > 0

    def write(self, connection: Connection) -> None:
        """Append the changes, and wake whoever waits for jobs where some came."""
        rows = [
            {"key": key, "waiting": waiting, "work_ms": work} for key, (waiting, work) in sorted(self._changes.items())
        ]
        if rows:
            connection.execute(insert(backlog), rows)
        if self._is_news:
            announce(connection)


def announce(connection: Connection) -> None:
    """Tell every process that jobs came to wait, once this transaction is committed."""
    if connection.dialect.name == SQLITE:
        connection.execute(update(line).values(news=line.c.news + 1))
    else:
        connection.execute(select(func.pg_notify(CHANNEL, "")))
