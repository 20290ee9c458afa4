"""The dispatch path: what stands first, and handing it over. A handful of statements, however many jobs wait."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import timedelta
from functools import cache
from typing import Any

from sqlalchemy import (
    BigInteger,
    Connection,
    Executable,
    Select,
    Text,
    bindparam,
    case,
    cast,
    func,
    literal_column,
    not_,
    or_,
    select,
    true,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY

from dispatcher.store.base import Grant, Pick
from dispatcher.store.database import SQLITE
from dispatcher.store.handing import COLUMNS, NOW, STARTABLE, Handed, hand_over
from dispatcher.store.rows import (
    WAITING_COLUMNS,
    AnyRow,
    attempts_of,
    document_of,
    listed,
    waiting_of,
    within,
)
from dispatcher.store.schema import TURN, WAITING, jobs, line, moment
from dispatcher.words import Key, Waiting
from worker.queues.base import Attempt

Board = tuple[dict[Key, list[Waiting]], Waiting | None, int]


@cache
def _heads(*, locked: bool) -> Executable:
    """The first of each of ``keys``, as many as ``each`` says in its place; ``locked``: for this transaction, without
    those that others have."""
    keys, each = cast(bindparam("keys"), ARRAY(Text)), cast(bindparam("each"), ARRAY(BigInteger))
    wanted = func.unnest(keys, each).table_valued("key", "each", name="wanted").render_derived()
    first: Select[Any] = (
        select(*COLUMNS).where(STARTABLE if locked else WAITING, jobs.c.key == wanted.c.key).order_by(*TURN)
    )
    if locked:
        first = first.with_for_update(skip_locked=True)
    head = first.limit(wanted.c.each).lateral("head")
    return select(head).select_from(wanted.join(head, true()))


@cache
def _sqlite_heads(*, startable: bool) -> Executable:
    """There nobody else writes meanwhile; without LATERAL the places are found first, by index, key after key, and as
    many of each."""
    key = func.json_each(bindparam("keys")).table_valued("value", name="wanted")
    one = jobs.alias("one")
    first = (
        select(one.c.place)
        .where(one.c.status == literal_column("'waiting'"), one.c.key == key.c.value)
        .order_by(one.c.minus_priority, one.c.rank, one.c.id)
        .limit(bindparam("each"))
        .correlate(key)
    )
    if startable:
        first = first.where(or_(one.c.deadline.is_(None), one.c.deadline > NOW, one.c.handed > 0))
    return select(*COLUMNS).select_from(key.join(jobs, jobs.c.place.in_(first)))


@cache
def _first_in_line(dialect: str) -> Executable:
    """Without those of ``but``."""
    passed = select(line.c.passed).where(line.c.first == jobs.c.id).scalar_subquery()
    query = select(*WAITING_COLUMNS, func.coalesce(passed, 0).label("passed")).where(WAITING)
    others = query.where(not_(within(dialect, jobs.c.id, "but")))
    return others.order_by(*TURN).limit(literal_column("1"))


def _first_of(
    connection: Connection, wanted: Mapping[Key, int], *, locked: bool, now: int = 0
) -> defaultdict[Key, list[AnyRow]]:
    """The first rows of each key, at most as many as is said there, in no order."""
    found: defaultdict[Key, list[AnyRow]] = defaultdict(list)
    if not wanted:
        return found
    if connection.dialect.name != SQLITE:
        parameters = {"keys": list(wanted), "each": list(wanted.values()), "now": now}
        rows = connection.execute(_heads(locked=locked), parameters).all()
    else:
        rows = []
        for each in sorted(set(wanted.values())):
            keys = listed(connection, [key for key, many in wanted.items() if many == each])
            rows += connection.execute(_sqlite_heads(startable=locked), {"keys": keys, "each": each, "now": now}).all()
    for row in rows:
        found[row.key].append(row)
    return found


def board(connection: Connection, wanted: Mapping[Key, int], but: Collection[str]) -> Board:
    """The first of each key in order, the first of all ``but`` some, and how often that was passed over."""
    heads = {
        key: sorted(map(waiting_of, rows), key=lambda job: job.order)
        for key, rows in _first_of(connection, wanted, locked=False).items()
    }
    first = connection.execute(_first_in_line(connection.dialect.name), {"but": listed(connection, but)}).first()
    if first is None:
        return heads, None, 0
    return heads, waiting_of(first), first.passed


def grant(
    connection: Connection, picks: Sequence[Pick], lease: timedelta, passed: str | None, now: int
) -> list[Grant | None]:
    """Lease what can be had of these, in their order."""
    until = now + lease // timedelta(microseconds=1)
    asked = {pick.job_id: pick.node for pick in reversed(picks) if pick.job_id is not None}
    got = hand_over(connection, asked, until, now)
    ids = list(_first_uses(got, picks))
    if None in ids:
        ids = _with_spare(connection, picks, ids, now)
        spare = {job_id: pick.node for job_id, pick in zip(ids, picks, strict=True) if job_id and job_id not in got}
        got |= hand_over(connection, spare, until, now)
    _count_passing(connection, got, passed)
    earlier = attempts_of(connection, [row.place for row, _ in got.values() if row.handed], run=True)
    return [_granted(got[one], earlier, lease) if one in got else None for one in ids]


def _first_uses(got: Collection[str], picks: Sequence[Pick]) -> Iterator[str | None]:
    """The job that each pick got; of several that asked for one, the first has it."""
    left = set(got)
    for pick in picks:
        is_its = pick.job_id in left
        left.discard(pick.job_id or "")
        yield pick.job_id if is_its else None


def _with_spare(connection: Connection, picks: Sequence[Pick], ids: Sequence[str | None], now: int) -> list[str | None]:
    """Who has not got the job that was asked for is to get the first of its key that is left."""
    left = Counter(pick.key for pick, job_id in zip(picks, ids, strict=True) if job_id is None)
    spare = _first_of(connection, left, locked=True, now=now)
    for rows in spare.values():
        rows.sort(key=lambda row: (row.minus_priority, row.rank, row.id), reverse=True)
    return [
        job_id or (spare[pick.key].pop().id if spare[pick.key] else None)
        for pick, job_id in zip(picks, ids, strict=True)
    ]


def _granted(handed: Handed, earlier: Mapping[int, tuple[Attempt, ...]], lease: timedelta) -> Grant:
    row, token = handed
    return Grant(
        job=waiting_of(row),
        document=document_of(row.document),
        token=token,
        deliveries=row.deliveries + 1,
        attempts=earlier.get(row.place, ()),
        lease=lease,
        queued_at=moment(row.queued_at),
        redelivered=row.handed > 0,
    )


_FIRST, _OTHERS = bindparam("now_first", type_=Text), bindparam("others", type_=BigInteger)
_PASSING = (
    update(line)
    .where(select(jobs.c.place).where(jobs.c.id == _FIRST, WAITING).exists())
    .values(first=_FIRST, passed=case((line.c.first == _FIRST, line.c.passed + _OTHERS), else_=_OTHERS))
)


def _count_passing(connection: Connection, got: Collection[str], first: str | None) -> None:
    """All but the first in line went before it, if it still waits. The last write: all grants share the row."""
    if first is not None and got and first not in got:
        connection.execute(_PASSING, {"now_first": first, "others": len(got)})
