"""What nobody asks for and has to happen: in small transactions, by as many processes at once as like.

Each step does a portion at the time given (a stamp) and says how many it found: under `PORTION` when none are left.
"""

from __future__ import annotations

from datetime import timedelta
from functools import cache
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    Executable,
    Select,
    and_,
    cast,
    delete,
    func,
    insert,
    literal_column,
    or_,
    select,
    update,
)

from dispatcher.store.base import Backlog
from dispatcher.store.database import SQLITE
from dispatcher.store.ending import end_here, give_back
from dispatcher.store.rows import PORTION, Tally, add, among, insert_into
from dispatcher.store.schema import (
    DELAYED,
    DONE,
    HANDED_MUCH,
    HAS_DEADLINE,
    UNHELD,
    WAITING,
    attempts,
    backlog,
    documents,
    inline_results,
    jobs,
    leases,
    letters,
    nodes,
    results,
    virtual_times,
    work_s,
)
from dispatcher.store.taking import HandOver, ended
from worker.errors import DeliveryLimit, Expired, WorkerError
from worker.queues.policy import Policy

KEEP_FOR = Policy().keep_for
FORGET_NODES = timedelta(days=1)
MORE_DELIVERIES = 3
"""A job past its limit is handed over so often still: a worker may find that it succeeded, the dispatcher cannot."""
SMALL_BOUND = 100
"""Behind so many waiting jobs of others at most does a user's first one start."""
UNFOLDED = 8
_MICROSECOND = timedelta(microseconds=1)

_Ended = tuple[HandOver, dict[str, Any]]


def vanished(connection: Connection, now: int, most: int) -> tuple[int, int]:
    """Take back leases that ran out; how many, and how many of their jobs had been handed over too often."""
    out = select(leases).where(leases.c.until <= now).order_by(leases.c.token).limit(PORTION)
    locked = connection.execute(out.with_for_update(skip_locked=True)).all()
    back: list[_Ended] = []
    over: list[_Ended] = []
    for hand in ended(connection, locked):
        is_over = hand.job.deliveries >= most + MORE_DELIVERIES and not hand.lease.cancelling
        (over if is_over else back).append((hand, hand.attempt(hand.lease.until, None)))
    tally = Tally()
    add(connection, attempts, [tried for _, tried in over])
    end_here(connection, [hand.job for hand, _ in over], DeliveryLimit(), now, tally)
    give_back(connection, back, now, tally)
    tally.write(connection)
    return len(locked), len(over)


def woken(connection: Connection, now: int) -> int:
    """Delayed jobs whose time has come wait again."""
    due = (
        select(jobs.c.place, jobs.c.key, jobs.c.work_ms)
        .where(DELAYED, jobs.c.visible_at <= now)
        .order_by(jobs.c.visible_at)
        .limit(PORTION)
        .with_for_update(skip_locked=True)
    )
    rows = connection.execute(due).all()
    if rows:
        places = [row.place for row in rows]
        connection.execute(
            update(jobs).where(among(connection, jobs.c.place, places)).values(status="waiting", visible_at=None)
        )
        tally = Tally()
        for row in rows:
            tally.comes(row.key, row.work_ms)
        tally.write(connection)
    return len(rows)


def expired(connection: Connection, now: int) -> int:
    """Jobs that nobody was handed before their deadline are dead."""
    too_late = and_(UNHELD, HAS_DEADLINE, jobs.c.deadline <= now, jobs.c.handed == 0)
    return _end_some(connection, too_late, Expired(), now)


def limited(connection: Connection, now: int, most: int) -> int:
    """So are those that were given back too often."""
    too_often = and_(UNHELD, HANDED_MUCH, jobs.c.deliveries >= most + MORE_DELIVERIES)
    return _end_some(connection, too_often, DeliveryLimit(), now)


def _end_some(connection: Connection, which: ColumnElement[bool], error: WorkerError, now: int) -> int:
    found = select(jobs).where(which).limit(PORTION).with_for_update(skip_locked=True)
    rows = connection.execute(found).all()
    tally = Tally()
    end_here(connection, rows, error, now, tally)
    tally.write(connection)
    return len(rows)


def forgotten(connection: Connection, now: int) -> int:
    """Done jobs of long ago, with all that is known of them; nodes not heard of for a day, unused priorities."""
    old = (
        select(jobs.c.place)
        .where(DONE, jobs.c.ended_at <= now - KEEP_FOR // _MICROSECOND)
        .order_by(jobs.c.ended_at)
        .limit(PORTION)
        .with_for_update(skip_locked=True)
    )
    places = list(connection.execute(old).scalars())
    if places:
        for table in (documents, results, inline_results, attempts, letters, jobs):
            connection.execute(delete(table).where(among(connection, table.c.place, places)))
    connection.execute(delete(nodes).where(nodes.c.seen <= now - FORGET_NODES // _MICROSECOND))
    connection.execute(delete(virtual_times).where(virtual_times.c.moved_at <= now - KEEP_FOR // _MICROSECOND))
    return len(places)


def read_backlog(connection: Connection) -> list[Backlog]:
    waiting, work = (cast(func.sum(column), BigInteger) for column in (backlog.c.waiting, backlog.c.work_ms))
    query = select(backlog.c.key, waiting, work).group_by(backlog.c.key).having(waiting != 0)
    return [Backlog(key, count, work_s(ms)) for key, count, ms in connection.execute(query)]


def folded(connection: Connection, _: int) -> int:
    """Changes of a model's backlog that have piled up become one, without a sum ever being wrong meanwhile."""
    if connection.dialect.name != SQLITE:
        return len(connection.execute(_folding()).all())
    found = connection.execute(select(backlog.c.number, backlog.c.key).where(backlog.c.key.in_(_piled()))).all()
    if found:
        gone = delete(backlog).where(among(connection, backlog.c.number, [row.number for row in found]))
        tally = Tally()
        for row in connection.execute(gone.returning(backlog.c.key, backlog.c.waiting, backlog.c.work_ms)):
            tally.count(row.key, row.waiting, row.work_ms)
        tally.write(connection)
    return len({row.key for row in found})


@cache
def _folding() -> Executable:
    """As one statement: the rows never leave the database."""
    mine = select(backlog.c.number).where(backlog.c.key.in_(_piled())).with_for_update(skip_locked=True)
    gone = delete(backlog).where(backlog.c.number.in_(mine.cte("mine").select()))
    gone_rows = gone.returning(backlog.c.key, backlog.c.waiting, backlog.c.work_ms).cte("gone")
    sums = (func.sum(gone_rows.c.waiting), func.sum(gone_rows.c.work_ms))
    whole = select(gone_rows.c.key, *sums).group_by(gone_rows.c.key).having(or_(*(one != 0 for one in sums)))
    return insert(backlog).from_select(("key", "waiting", "work_ms"), whole).returning(backlog.c.key)


def _piled() -> Select[tuple[str]]:
    """The models of which so many changes stand there that adding them up takes time."""
    piled = select(backlog.c.key).group_by(backlog.c.key).having(func.count() > literal_column(str(UNFOLDED)))
    return piled.limit(literal_column(str(PORTION)))


def advance(connection: Connection, now: int) -> None:
    """Move each priority's virtual time: to the smallest rank that is being served, but not past the small bound.

    What is served may stand far behind the first in line, since its model is warm somewhere; what stands first may be
    a job that no node can do. Neither alone says how far the line has come.
    """
    served = select(leases.c.minus_priority, func.min(leases.c.rank)).group_by(leases.c.minus_priority)
    for minus_priority, least in connection.execute(served).all():
        ahead = (
            select(jobs.c.rank)
            .where(WAITING, jobs.c.minus_priority == minus_priority)
            .order_by(jobs.c.rank, jobs.c.id)
            .offset(SMALL_BOUND - 1)
            .limit(1)
        )
        bound = connection.execute(ahead).scalar()
        to = least if bound is None else min(least, bound)
        _advance(connection, minus_priority, to, now)


def _advance(connection: Connection, minus_priority: int, to: float, now: int) -> None:
    row: dict[str, Any] = {"minus_priority": minus_priority, "virtual": to, "moved_at": now}
    adding = insert_into(connection, virtual_times).values(row)
    connection.execute(
        adding.on_conflict_do_update(
            index_elements=["minus_priority"],
            set_={"virtual": adding.excluded.virtual, "moved_at": adding.excluded.moved_at},
            where=virtual_times.c.virtual < adding.excluded.virtual,
        )
    )
