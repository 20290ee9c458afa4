"""How hand-overs and jobs end: by the holder, or in the dispatcher's own hands. All within the caller's transaction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from types import MappingProxyType
from typing import Any

from sqlalchemy import Connection, Executable, Table, delete, select, update

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
from dispatcher.store.schema import attempts, documents, inline_results, jobs, leases, letters, moment, results
from worker import __version__
from worker.errors import UNCOUNTED_CODES, JobCancelled, WorkerError
from worker.queues.base import Attempt
from worker.queues.policy import CANCELLED, Policy, end_code, has_images, is_charged, job_code
from worker.result import AttemptResult, ErrorResult, Result, WorkerResult

KEEP_INLINE = Policy().keep_inline
_MOVED = ("place", "status", "deliveries", "visible_at", "ended_at", "code")
DISPATCHER = "dispatcher"
"""The name in results of jobs that nobody held when they ended."""


@dataclass(frozen=True, slots=True)
class Ending:
    """A job that its holder says is over."""

    job_id: str
    token: int
    result: Result
    dead: bool

    @property
    def status(self) -> str:
        return "dead" if self.dead else "done"

    @property
    def code(self) -> str | None:
        return job_code(self.result, dead=self.dead)


@dataclass(frozen=True, slots=True)
class HandOver:
    """A hand-over whose lease was just ended: the job's row, and how it was held."""

    job: AnyRow
    lease: AnyRow

    def attempt(self, ended_at: int, code: str | None, *, charged: bool = False, worker: str = "") -> dict[str, Any]:
        """Its row in ``attempts``."""
        return {
            "token": self.lease.token,
            "place": self.job.place,
            "run": self.job.run,
            "worker": worker or self.lease.node,
            "ended_at": ended_at,
            "code": code,
            "charged": charged,
        }

    def counted(self, code: str | None) -> int:
        """The job's deliveries once it has ended with the code."""
        deliveries: int = self.job.deliveries
        return deliveries - (code in UNCOUNTED_CODES)


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


def end(connection: Connection, endings: Sequence[Ending], now: int) -> list[JobRow | None]:
    """Over, by their holders; None for those whose token is stale."""
    by_token = {one.token: one for one in endings}
    held = [(hand, by_token[hand.lease.token]) for hand in taken(connection, [(e.job_id, e.token) for e in endings])]
    if held:
        tried = [hand.attempt(now, end_code(one.result), charged=is_charged(one.result)) for hand, one in held]
        add(connection, attempts, tried)
        move(
            connection,
            [
                moved(hand.job.place, one.status, hand.counted(end_code(one.result)), ended=now, why=one.code)
                for hand, one in held
            ],
        )
        _keep_results(connection, [(hand.job.place, one.result) for hand, one in held])
        _drop_documents(connection, [hand.job.place for hand, one in held if not one.dead])
    return _ended(connection, endings)


def taken(connection: Connection, held: Sequence[tuple[str, int]]) -> list[HandOver]:
    """End the leases of (job id, token) that still are."""
    asked = set(held)
    found = connection.execute(_holding(connection.dialect.name), {"tokens": listed(connection, {t for _, t in asked})})
    return ended(connection, [row for row in found if (row.job_id, row.token) in asked])


@cache
def _holding(dialect: str) -> Executable:
    return select(leases).where(within(dialect, leases.c.token, "tokens")).order_by(leases.c.token).with_for_update()


def ended(connection: Connection, locked: Sequence[AnyRow]) -> list[HandOver]:
    """End these leases; nobody else changes their jobs before this transaction is over."""
    if not locked:
        return []
    of = {row.place: row for row in locked}
    dialect, places = connection.dialect.name, {"places": listed(connection, of)}
    connection.execute(_gone_from(dialect, leases), places)
    return [HandOver(row, of[row.place]) for row in connection.execute(_jobs_at(dialect), places)]


@cache
def _gone_from(dialect: str, table: Table) -> Executable:
    return delete(table).where(within(dialect, table.c.place, "places"))


@cache
def _jobs_at(dialect: str) -> Executable:
    return select(jobs).where(within(dialect, jobs.c.place, "places"))


def _ended(connection: Connection, endings: Sequence[Ending]) -> list[JobRow | None]:
    """What stands there now; None where that is not what was asked for."""
    ids = {"ids": listed(connection, {one.job_id for one in endings})}
    rows = connection.execute(_rows_of(connection.dialect.name), ids).all()
    found = {
        (row.token, row.status, row.code): told for row, told in zip(rows, job_rows(connection, rows), strict=True)
    }
    told = [found.get((one.token, one.status, one.code)) for one in endings]
    return [row if row is not None and row.id == one.job_id else None for row, one in zip(told, endings, strict=True)]


@cache
def _rows_of(dialect: str) -> Executable:
    return select(*JOB_COLUMNS).select_from(JOBS_AND_LEASES).where(within(dialect, jobs.c.id, "ids"))


def _keep_results(connection: Connection, found: Sequence[tuple[int, Result]]) -> None:
    rows = [{"place": place, "result": result.to_json(base64=False).decode()} for place, result in found]
    add(connection, results, rows)
    whole = [{"place": place, "result": result.to_json().decode()} for place, result in found if has_images(result)]
    if whole:
        add(connection, inline_results, whole)
        latest = select(inline_results.c.number).order_by(inline_results.c.number.desc())
        last_kept = latest.limit(1).offset(KEEP_INLINE - 1).scalar_subquery()
        connection.execute(delete(inline_results).where(inline_results.c.number < last_kept))


def _drop_documents(connection: Connection, places: Sequence[int]) -> None:
    if places:
        connection.execute(_gone_from(connection.dialect.name, documents), {"places": listed(connection, places)})


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
        ids = {"ids": listed(connection, [hand.job.id])}
        return job_rows(connection, connection.execute(_rows_of(connection.dialect.name), ids).all())[0]
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
        _drop_documents(connection, places)


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
