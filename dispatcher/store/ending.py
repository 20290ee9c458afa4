"""How jobs come back, and how they end in the dispatcher's own hands. All within the caller's transaction."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import timedelta
from functools import cache
from types import MappingProxyType
from typing import Any

from sqlalchemy import Connection, Executable, select, update

from dispatcher.store.base import JobRow
from dispatcher.store.rows import (
    JOB_COLUMNS,
    JOBS_AND_LEASES,
    AnyRow,
    Tally,
    add,
    attempts_of,
    document_of,
    documents_of,
    given,
    job_rows,
    json_of,
    listed,
    within,
)
from dispatcher.store.schema import attempts, documents, jobs, letters, moment, results
from dispatcher.store.taking import HandOver, gone_from, taken
from worker import __version__
from worker.errors import JobCancelled, WorkerError
from worker.queues.base import Attempt
from worker.queues.policy import CANCELLED
from worker.result import AttemptResult, ErrorResult, Result, WorkerResult

_MOVED = ("place", "status", "deliveries", "visible_at", "ended_at", "code")
DISPATCHER = "dispatcher"
"""The name in results of jobs that nobody held when they ended."""


@cache
def _moving(dialect: str) -> Executable:
    to = given(dialect, *(jobs.c[name] for name in _MOVED))
    values = {name: to.c[name] for name in _MOVED if name != "place"}
    return update(jobs).where(jobs.c.place == to.c.place).values(values)


def move(connection: Connection, moves: Sequence[dict[str, Any]]) -> None:
    """Bring jobs into another state, as `moved` has it."""
    if moves:
        connection.execute(_moving(connection.dialect.name), {"rows": json_of(moves)})


def moved(
    place: int, to: str, counted: int, *, visible: int | None = None, ended: int | None = None, why: str | None = None
) -> dict[str, Any]:
    """The row of a job in another state."""
    return dict(zip(_MOVED, (place, to, counted, visible, ended, why), strict=True))


def rows_of(connection: Connection, job_ids: Collection[str]) -> list[JobRow]:
    """These jobs as they stand now."""
    ids = {"ids": listed(connection, job_ids)}
    return job_rows(connection, connection.execute(_rows_of(connection.dialect.name), ids).all())


@cache
def _rows_of(dialect: str) -> Executable:
    return select(*JOB_COLUMNS).select_from(JOBS_AND_LEASES).where(within(dialect, jobs.c.id, "ids"))


def drop_documents(connection: Connection, places: Sequence[int]) -> None:
    """What is over needs them no more."""
    if places:
        connection.execute(gone_from(connection.dialect.name, documents), {"places": listed(connection, places)})


def release(
    connection: Connection,
    held: tuple[str, int],
    code: str,
    delay: timedelta,
    charged: bool,
    worker: str,
    now: int,
) -> JobRow | None:
    """Given back by its holder; None when the token is stale. Cancelled meanwhile: over, its webhook owed."""
    for hand in taken(connection, [held]):
        tally = Tally()
        tried = hand.attempt(now, code, charged=charged, worker=worker)
        visible = now + delay // timedelta(microseconds=1) if delay > timedelta(0) else None
        give_back(connection, [(hand, tried)], now, tally, visible=visible)
        tally.write(connection)
        return rows_of(connection, [hand.job.id])[0]
    return None


def give_back(
    connection: Connection,
    hands: Sequence[tuple[HandOver, dict[str, Any]]],
    now: int,
    tally: Tally,
    *,
    visible: int | None = None,
) -> None:
    """Jobs of hand-overs that ended so (rows of ``attempts``) wait again, or after a delay; cancelled ones do not."""
    if not hands:
        return
    add(connection, attempts, [tried for _, tried in hands])
    unwanted = [hand for hand, _ in hands if hand.lease.cancelling]
    to = "waiting" if visible is None else "delayed"
    wanted = [(hand, tried) for hand, tried in hands if not hand.lease.cancelling]
    if wanted:
        moves = [moved(hand.job.place, to, hand.counted(tried["code"]), visible=visible) for hand, tried in wanted]
        move(connection, moves)
    for hand, _ in wanted if visible is None else ():
        tally.comes(hand.job.key, hand.job.work_ms)
    counted = {hand.job.place: hand.counted(tried["code"]) for hand, tried in hands}
    end_here(connection, [hand.job for hand in unwanted], JobCancelled(), now, tally, counted)


def end_here(
    connection: Connection,
    rows: Sequence[AnyRow],
    error: WorkerError,
    now: int,
    tally: Tally,
    counted: Mapping[int, int] = MappingProxyType({}),
) -> None:
    """End jobs that nobody holds (rows of ``jobs``, locked), and owe their webhooks: done if cancelled, else dead.

    ``counted``: the deliveries of those whose hand-over has just ended, by place.
    """
    if not rows:
        return
    places = [row.place for row in rows]
    tried = attempts_of(connection, places, run=True)
    texts = documents_of(connection, places)
    status = "done" if error.code == CANCELLED else "dead"
    kept, owed = [], []
    for row in rows:
        text = texts[row.place]
        result = _result(row, document_of(text), tried.get(row.place, ()), error, now)
        kept.append({"place": row.place, "result": result.to_json().decode()})
        owed.append(
            {
                "place": row.place,
                "job_id": row.id,
                "event": result.status,
                "document": text,
                "result": kept[-1]["result"],
                "due_at": now,
            }
        )
        if row.status == "waiting":
            tally.goes(row.key, row.work_ms)
    move(
        connection,
        [moved(row.place, status, counted.get(row.place, row.deliveries), ended=now, why=error.code) for row in rows],
    )
    add(connection, results, kept)
    add(connection, letters, owed)
    if status == "done":
        drop_documents(connection, places)


def _result(row: AnyRow, document: dict[str, Any], ended: Sequence[Attempt], error: WorkerError, now: int) -> Result:
    return Result(
        id=row.id,
        status="cancelled" if error.code == CANCELLED else "failed",
        error=ErrorResult(code=error.code, message=error.message, retryable=error.retryable, fault=error.fault),
        attempts=tuple(AttemptResult(worker=one.worker, ended=one.ended, code=one.code) for one in ended),
        worker=WorkerResult(id=DISPATCHER, version=__version__),
        metadata=document.get("metadata"),
        created_at=moment(row.queued_at),
        finished_at=moment(now),
    )
