"""Leasing jobs by their ids: one statement on PostgreSQL, where each more costs a way to the server and back."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

from sqlalchemy import BigInteger, Connection, Executable, and_, bindparam, func, insert, or_, select, update

from dispatcher.store.database import SQLITE
from dispatcher.store.rows import WAITING_COLUMNS, AnyRow, Tally, adding, given, json_of, listed, within
from dispatcher.store.schema import WAITING, backlog, documents, jobs, leases

NOW = bindparam("now", type_=BigInteger)
_UNTIL = bindparam("until", type_=BigInteger)
STARTABLE = and_(WAITING, or_(jobs.c.deadline.is_(None), jobs.c.deadline > NOW, jobs.c.handed > 0))
"""Past its deadline only a job that may have succeeded already is handed over: a worker can tell."""

COLUMNS = (*WAITING_COLUMNS, jobs.c.deliveries, jobs.c.handed)
_LEASE = ("place", "job_id", "node", "minus_priority", "rank", "until")

Handed = tuple[AnyRow, int]
"""A job as it was (`COLUMNS` and ``document``), and the token of its lease."""


def hand_over(connection: Connection, nodes: Mapping[str, str], until: int, now: int) -> dict[str, Handed]:
    """Lease the jobs of these ids, each to its node, that still wait and that nobody else is about to lease."""
    if not nodes:
        return {}
    if connection.dialect.name == SQLITE:
        return _step_by_step(connection, nodes, until, now)
    rows = json_of([{"job_id": job_id, "node": nodes[job_id]} for job_id in sorted(nodes)])
    parameters = {"rows": rows, "ids": sorted(nodes), "until": until, "now": now}
    return {row.id: (row, row.token) for row in connection.execute(_at_once(), parameters)}


@cache
def _at_once() -> Executable:
    dialect = "postgresql"
    free = select(*COLUMNS).where(within(dialect, jobs.c.id, "ids"), STARTABLE)
    mine = free.with_for_update(skip_locked=True).cte("mine")
    to = given(dialect, leases.c.job_id, leases.c.node)
    lease = select(mine.c.place, mine.c.id, to.c.node, mine.c.minus_priority, mine.c.rank, _UNTIL)
    lease = lease.select_from(mine.join(to, to.c.job_id == mine.c.id))
    held = insert(leases).from_select(_LEASE, lease).returning(leases.c.place, leases.c.token).cte("held")
    counts = {"deliveries": jobs.c.deliveries + 1, "handed": jobs.c.handed + 1}
    leased = update(jobs).where(jobs.c.place == held.c.place).values(status="leased", token=held.c.token, **counts)
    fewer = select(mine.c.key, -func.count(), -func.sum(mine.c.work_ms)).group_by(mine.c.key)
    noted = insert(backlog).from_select(("key", "waiting", "work_ms"), fewer)
    whole = mine.join(held, held.c.place == mine.c.place).join(documents, documents.c.place == mine.c.place)
    found = select(*mine.c, held.c.token, documents.c.document).select_from(whole)
    return found.add_cte(leased.cte("leased"), noted.cte("noted"))


def _step_by_step(connection: Connection, nodes: Mapping[str, str], until: int, now: int) -> dict[str, Handed]:
    found = connection.execute(_free(SQLITE), {"ids": listed(connection, nodes), "now": now}).all()
    if not found:
        return {}
    rows = [(row.place, row.id, nodes[row.id], row.minus_priority, row.rank, until) for row in found]
    held = json_of([dict(zip(_LEASE, row, strict=True)) for row in rows])
    added = adding(SQLITE, leases, _LEASE, leases.c.place, leases.c.token)
    tokens = {row.place: row.token for row in connection.execute(added, {"rows": held})}
    connection.execute(_leasing(SQLITE), {"places": listed(connection, tokens)})
    tally = Tally()
    for row in found:
        tally.goes(row.key, row.work_ms)
    tally.write(connection)
    return {row.id: (row, tokens[row.place]) for row in found}


@cache
def _free(dialect: str) -> Executable:
    whole = jobs.join(documents, documents.c.place == jobs.c.place)
    return select(*COLUMNS, documents.c.document).select_from(whole).where(within(dialect, jobs.c.id, "ids"), STARTABLE)


@cache
def _leasing(dialect: str) -> Executable:
    these = update(jobs).where(jobs.c.place == leases.c.place, within(dialect, jobs.c.place, "places"))
    counts = {"deliveries": jobs.c.deliveries + 1, "handed": jobs.c.handed + 1}
    return these.values(status="leased", token=leases.c.token, **counts)
