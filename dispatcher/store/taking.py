"""Hand-overs whose leases end, locked until the transaction is over: what every way to end one begins with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from sqlalchemy import Connection, Executable, Table, and_, delete, select

from dispatcher.store.database import SQLITE
from dispatcher.store.rows import AnyRow, given, json_of, listed, within
from dispatcher.store.schema import is_token, is_word, jobs, leases
from worker.errors import UNCOUNTED_CODES


@dataclass(frozen=True, slots=True)
class HandOver:
    """A hand-over whose lease was just ended: the job's row, and its lease's ``token``, ``node`` and ``cancelling``."""

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


def taken(connection: Connection, held: Sequence[tuple[str, int]]) -> list[HandOver]:
    """End the leases of (job id, token) that still are."""
    asked = {(job_id, token) for job_id, token in held if is_token(token) and is_word(job_id)}
    if connection.dialect.name != SQLITE:
        rows = json_of([{"job_id": job_id, "token": token} for job_id, token in sorted(asked)])
        return [HandOver(row, row) for row in connection.execute(_taking(), {"rows": rows})]
    found = connection.execute(_holding(), {"tokens": listed(connection, {token for _, token in asked})})
    return ended(connection, [row for row in found if (row.job_id, row.token) in asked])


@cache
def _taking() -> Executable:
    """As one statement. Whoever held the lock before may have ended a lease, which is not found then; who has it still
    has its job as it was."""
    asked = given("postgresql", leases.c.job_id, leases.c.token)
    whole = leases.join(asked, and_(leases.c.token == asked.c.token, leases.c.job_id == asked.c.job_id))
    held = select(leases).select_from(whole).order_by(leases.c.token).with_for_update(of=leases).cte("held")
    gone = delete(leases).where(leases.c.place == held.c.place).cte("gone")
    job = select(*jobs.c, held.c.node, held.c.cancelling).select_from(held.join(jobs, jobs.c.place == held.c.place))
    return job.add_cte(gone)


@cache
def _holding() -> Executable:
    return select(leases).where(within(SQLITE, leases.c.token, "tokens")).order_by(leases.c.token)


def ended(connection: Connection, locked: Sequence[AnyRow]) -> list[HandOver]:
    """End these leases; nobody else changes their jobs before this transaction is over."""
    if not locked:
        return []
    of = {row.place: row for row in locked}
    dialect, places = connection.dialect.name, {"places": listed(connection, of)}
    connection.execute(gone_from(dialect, leases), places)
    return [HandOver(row, of[row.place]) for row in connection.execute(_jobs_at(dialect), places)]


@cache
def gone_from(dialect: str, table: Table) -> Executable:
    return delete(table).where(within(dialect, table.c.place, "places"))


@cache
def _jobs_at(dialect: str) -> Executable:
    return select(jobs).where(within(dialect, jobs.c.place, "places"))
