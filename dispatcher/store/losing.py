"""Jobs that a node lost with a run of it, which it tells of at its next start. All within the caller's transaction."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import timedelta
from functools import cache

from sqlalchemy import Connection, Executable, and_, bindparam, select, update

from dispatcher.store.base import JobRow, Loss
from dispatcher.store.ending import end_here, give_back, rows_of
from dispatcher.store.rows import Tally, add, attempts_of, given, json_of
from dispatcher.store.schema import Word, attempts, is_token, leases
from dispatcher.store.taking import HandOver, taken
from worker.errors import Disposition, Fault, engine_fault
from worker.queues.base import Attempt
from worker.queues.policy import is_charged_loss, rest_of
from worker.wire import NODE_RESTARTED

_MICROSECOND = timedelta(microseconds=1)


def lose(connection: Connection, node: str, losses: Sequence[Loss], most: int, now: int) -> list[JobRow]:
    """End what is leased to the node still, and note how those ended whose lease has run out; what became of the first.

    A job that brings nodes down is charged for it from the second node on, and dead when it was charged ``most`` times.
    """
    known = {one.token: one for one in losses if is_token(one.token)}
    held = taken(connection, _held(connection, node, known.values()))
    gone = {hand.lease.token for hand in held}
    _note(connection, node, {token: one.code for token, one in known.items() if token not in gone})
    earlier = attempts_of(connection, [hand.job.place for hand in held], run=True)
    tally = Tally()
    for hand in held:
        _lost(connection, hand, known[hand.lease.token].code, earlier.get(hand.job.place, ()), most, now, tally)
    tally.write(connection)
    return rows_of(connection, [hand.job.id for hand in held])


def _lost(
    connection: Connection, hand: HandOver, code: str, tried: Sequence[Attempt], most: int, now: int, tally: Tally
) -> None:
    charged = is_charged_loss(code, hand.lease.node, tried)
    row = hand.attempt(now, code, charged=charged)
    if charged and sum(one.charged for one in tried) + 1 >= most and not hand.lease.cancelling:
        add(connection, attempts, [row])
        error = engine_fault(code).blamed(Fault.JOB, Disposition.REJECT)
        end_here(connection, [hand.job], error, now, tally)
        return
    rest = timedelta(0) if code == NODE_RESTARTED else rest_of(len(tried))
    give_back(connection, [(hand, row)], now, tally, visible=now + rest // _MICROSECOND if rest else None)


def _held(connection: Connection, node: str, losses: Iterable[Loss]) -> list[tuple[str, int]]:
    """Those that are leased to this node, and to no other."""
    asked = json_of([{"job_id": one.job_id, "token": one.token} for one in losses])
    rows = connection.execute(_holding(connection.dialect.name), {"rows": asked, "node": node})
    return [(row.job_id, row.token) for row in rows]


@cache
def _holding(dialect: str) -> Executable:
    asked = given(dialect, leases.c.job_id, leases.c.token)
    whole = leases.join(asked, and_(leases.c.token == asked.c.token, leases.c.job_id == asked.c.job_id))
    mine = leases.c.node == bindparam("node", type_=Word)
    return select(leases.c.job_id, leases.c.token).select_from(whole).where(mine)


def _note(connection: Connection, node: str, codes: dict[int, str]) -> None:
    """Hand-overs of this node that vanished get the code that nobody knew then."""
    asked = json_of([{"token": token} for token in codes])
    rows = connection.execute(_vanished(connection.dialect.name), {"rows": asked, "node": node}).all()
    earlier = attempts_of(connection, {row.place for row in rows}, run=True)
    for row in rows:
        code = codes[row.token]
        charged = is_charged_loss(code, node, earlier.get(row.place, ()))
        connection.execute(update(attempts).where(attempts.c.token == row.token).values(code=code, charged=charged))


@cache
def _vanished(dialect: str) -> Executable:
    asked = given(dialect, attempts.c.token)
    whole = attempts.join(asked, attempts.c.token == asked.c.token)
    mine = and_(attempts.c.worker == bindparam("node", type_=Word), attempts.c.code.is_(None))
    return select(attempts.c.token, attempts.c.place).select_from(whole).where(mine)
