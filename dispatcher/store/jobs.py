"""What users do with jobs: submit, look, withdraw, run again. Each function runs within one transaction."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

from sqlalchemy import Connection, delete, insert, literal_column, select, update
from sqlalchemy.sql import ColumnElement

from dispatcher.store.base import JobRow, NewJob
from dispatcher.store.ending import end_here
from dispatcher.store.rows import (
    JOB_COLUMNS,
    JOBS_AND_LEASES,
    Tally,
    adding,
    among,
    job_rows,
    json_of,
    text_of_needs,
)
from dispatcher.store.schema import (
    UNHELD,
    WAITING,
    documents,
    inline_results,
    jobs,
    leases,
    letters,
    results,
    stamp_or_none,
    virtual_times,
    work_ms,
)
from dispatcher.words import NO_MODEL, Key
from worker.errors import IdConflict, InvalidJob, JobCancelled
from worker.result import Result

LEAST_COST_S = 0.001
LONGEST_WORD = 2000


def submit(connection: Connection, new: Sequence[NewJob], now: int) -> list[bool]:
    """All or none; True for each that is new."""
    wanted: dict[str, NewJob] = {}
    for job in new:
        _expect_storable(job)
        _expect_same(job.id, wanted.setdefault(job.id, job).fingerprint, job.fingerprint)
    known = _known(connection, wanted)
    fresh = [job for job in wanted.values() if job.id not in known]
    places = _insert(connection, fresh, now)
    if len(places) < len(fresh):
        _known(connection, wanted)
    tally = Tally()
    for job in fresh:
        if job.id in places:
            tally.comes(_key(job), work_ms(job.work_s))
    tally.write(connection)
    return [wanted[job.id] is job and job.id in places for job in new]


def _known(connection: Connection, wanted: dict[str, NewJob]) -> set[str]:
    """Which of these ids stand there already; raises `IdConflict` where with another document."""
    known: set[str] = set()
    for row in connection.execute(select(jobs.c.id, jobs.c.fingerprint).where(among(connection, jobs.c.id, wanted))):
        _expect_same(row.id, row.fingerprint, wanted[row.id].fingerprint)
        known.add(row.id)
    return known


def _expect_same(job_id: str, known: str, offered: str) -> None:
    if known != offered:
        raise IdConflict(f"another document is known under the id {job_id}")


def _expect_storable(job: NewJob) -> None:
    """Words by which jobs are found have to fit into an index, and PostgreSQL knows no NUL."""
    for word in (job.id, job.user, _key(job)):
        if "\0" in word or len(word.encode()) > LONGEST_WORD:
            raise InvalidJob(f"a name in the job {job.id[:128]!r} has more than {LONGEST_WORD} bytes or a NUL in it")


def _insert(connection: Connection, fresh: Sequence[NewJob], now: int) -> dict[str, int]:
    """The places of those that nobody else submitted meanwhile."""
    if not fresh:
        return {}
    ranks = _ranks(connection, fresh)
    rows = [_row(job, ranks[job.id], now) for job in sorted(fresh, key=lambda job: job.id)]
    insertion = adding(connection.dialect.name, jobs, tuple(rows[0]), jobs.c.id, jobs.c.place, skip="id")
    places = {row.id: row.place for row in connection.execute(insertion, {"rows": json_of(rows)})}
    texts = [{"place": places[job.id], "document": json_of(job.document)} for job in fresh if job.id in places]
    if texts:
        connection.execute(insert(documents), texts)
    return places


def _key(job: NewJob) -> Key:
    """The model by which it queues."""
    return job.needs[0].key if job.needs else NO_MODEL


def _row(job: NewJob, rank: float, now: int) -> dict[str, Any]:
    return {
        "id": job.id,
        "fingerprint": job.fingerprint,
        "status": "waiting",
        "key": _key(job),
        "minus_priority": -job.priority,
        "rank": rank,
        "work_ms": work_ms(job.work_s),
        "owner": job.user,
        "queued_at": now,
        "deadline": stamp_or_none(job.deadline),
        "needs": text_of_needs(job.needs),
    }


def _ranks(connection: Connection, fresh: Iterable[NewJob]) -> dict[str, float]:
    """Start-time fair queueing: each job costs its user what it will work, counted from where the line is now.

    Who has nothing waiting starts there, whatever he used before; who has, behind his own last job.
    """
    ranks: dict[str, float] = {}
    by_user = sorted(fresh, key=lambda job: (job.user, job.priority))
    for (user, priority), mine in groupby(by_user, key=lambda job: (job.user, job.priority)):
        rank = _start(connection, user, -priority)
        for job in mine:
            rank += max(job.work_s, LEAST_COST_S)
            ranks[job.id] = rank
    return ranks


def _start(connection: Connection, user: str, minus_priority: int) -> float:
    last = (
        select(jobs.c.rank)
        .where(WAITING, jobs.c.owner == user, jobs.c.minus_priority == minus_priority)
        .order_by(jobs.c.rank.desc())
        .limit(1)
    )
    virtual = select(virtual_times.c.virtual).where(virtual_times.c.minus_priority == minus_priority)
    found = (connection.execute(query).scalar() for query in (last, virtual))
    return max((rank for rank in found if rank is not None), default=0.0)


def job(connection: Connection, job_id: str) -> JobRow | None:
    """Everything, its result included: with the images where they are still kept."""
    row = connection.execute(select(*JOB_COLUMNS).select_from(JOBS_AND_LEASES).where(jobs.c.id == job_id)).first()
    if row is None:
        return None
    text = None
    for table in (inline_results, results):
        if text is None:
            text = connection.execute(select(table.c.result).where(table.c.place == row.place)).scalar()
    result = None if text is None else Result.model_validate_json(text)
    return replace(job_rows(connection, [row])[0], result=result)


def cancel(connection: Connection, job_id: str, now: int) -> bool:
    """Withdraw a job that nobody holds, mark one that is held; false when there is none or it is over.

    The lease is looked for first, as everywhere: who locks both in one order never waits in a circle.
    """
    while True:
        marked = update(leases).where(leases.c.job_id == job_id).values(cancelling=True)
        if connection.execute(marked).rowcount:
            return True
        unheld = select(jobs).where(jobs.c.id == job_id, UNHELD).with_for_update()
        if row := connection.execute(unheld).first():
            tally = Tally()
            end_here(connection, [row], JobCancelled(), now, tally)
            tally.write(connection)
            return True
        if not connection.execute(select(jobs.c.id).where(_is_open(job_id))).scalar():
            return False


def _is_open(job_id: str) -> ColumnElement[bool]:
    return (jobs.c.id == job_id) & jobs.c.status.in_(["waiting", "delayed", "leased"])


def requeue(connection: Connection, job_id: str, now: int) -> bool:
    """Begin a new run of a dead job, at the end of its user's line; a webhook that is still owed for its end is not."""
    dead = select(jobs).where(jobs.c.id == job_id, jobs.c.status == literal_column("'dead'")).with_for_update()
    row = connection.execute(dead).first()
    if row is None:
        return False
    for table in (results, inline_results, letters):
        connection.execute(delete(table).where(table.c.place == row.place))
    start = _start(connection, row.owner, row.minus_priority)
    again = update(jobs).where(jobs.c.place == row.place)
    connection.execute(
        again.values(
            status="waiting",
            run=row.run + 1,
            deliveries=0,
            rank=start + max(row.work_ms / 1000, LEAST_COST_S),
            queued_at=now,
            ended_at=None,
            code=None,
        )
    )
    tally = Tally()
    tally.comes(row.key, row.work_ms)
    tally.write(connection)
    return True
