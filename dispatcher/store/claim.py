"""The dispatch path: what stands first, and handing it over. A handful of statements, however many jobs wait."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from datetime import timedelta
from functools import cache
from typing import Any

from sqlalchemy import (
    BigInteger,
    Connection,
    Executable,
    Select,
    Text,
    and_,
    bindparam,
    case,
    cast,
    func,
    literal_column,
    or_,
    select,
    true,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY

from dispatcher.store.base import Grant, Pick
from dispatcher.store.database import SQLITE
from dispatcher.store.rows import (
    WAITING_COLUMNS,
    AnyRow,
    Tally,
    adding,
    attempts_of,
    document_of,
    documents_of,
    json_of,
    listed,
    waiting_of,
    within,
)
from dispatcher.store.schema import TURN, WAITING, jobs, leases, line, moment
from dispatcher.words import Key, Waiting

_COLUMNS = (*WAITING_COLUMNS, jobs.c.deliveries, jobs.c.handed)
_NOW = bindparam("now", type_=BigInteger)
_STARTABLE = and_(WAITING, or_(jobs.c.deadline.is_(None), jobs.c.deadline > _NOW, jobs.c.handed > 0))
"""Past its deadline only a job that may have succeeded already is handed over: a worker can tell."""

Board = tuple[dict[Key, list[Waiting]], Waiting | None, int]


@cache
def _heads(dialect: str, *, locked: bool) -> Executable:
    """The first ``each`` of each of ``keys``; ``locked``: for this transaction, without those that others have."""
    if dialect == SQLITE:
        return _sqlite_heads(startable=locked)
    key = func.unnest(cast(bindparam("keys"), ARRAY(Text))).table_valued("key", name="wanted").render_derived()
    first: Select[Any] = (
        select(*_COLUMNS).where(_STARTABLE if locked else WAITING, jobs.c.key == key.c.key).order_by(*TURN)
    )
    if locked:
        first = first.with_for_update(skip_locked=True)
    head = first.limit(bindparam("each")).lateral("head")
    return select(head).select_from(key.join(head, true()))


def _sqlite_heads(*, startable: bool) -> Executable:
    """There nobody else writes meanwhile; without LATERAL the places are found first, by index, key after key."""
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
        first = first.where(or_(one.c.deadline.is_(None), one.c.deadline > _NOW, one.c.handed > 0))
    return select(*_COLUMNS).select_from(key.join(jobs, jobs.c.place.in_(first)))


_PASSED = select(line.c.passed).where(line.c.first == jobs.c.id).scalar_subquery()
FIRST_IN_LINE = (
    select(*WAITING_COLUMNS, func.coalesce(_PASSED, 0).label("passed"))
    .where(WAITING)
    .order_by(*TURN)
    .limit(literal_column("1"))
)


def board(connection: Connection, keys: Collection[Key], each: int) -> Board:
    """The first of each key in order, the first of all, and how often that was passed over."""
    heads: defaultdict[Key, list[Waiting]] = defaultdict(list)
    if keys and each > 0:
        query = _heads(connection.dialect.name, locked=False)
        for row in connection.execute(query, {"keys": listed(connection, keys), "each": each}):
            heads[row.key].append(waiting_of(row))
    for found in heads.values():
        found.sort(key=lambda job: job.order)
    first = connection.execute(FIRST_IN_LINE).first()
    if first is None:
        return dict(heads), None, 0
    return dict(heads), waiting_of(first), first.passed


def grant(
    connection: Connection, picks: Sequence[Pick], lease: timedelta, passed: str | None, now: int
) -> list[Grant | None]:
    """Lease what can be had of these, in their order."""
    chosen = _chosen(connection, picks, now)
    rows = [row for row in chosen if row is not None]
    if not rows:
        return [None] * len(picks)
    nodes = {row.place: pick.node for row, pick in zip(chosen, picks, strict=True) if row is not None}
    tokens = _lease(connection, rows, nodes, now + lease // timedelta(microseconds=1))
    _count_passing(connection, rows, passed)
    texts = documents_of(connection, nodes)
    earlier = attempts_of(connection, [row.place for row in rows if row.handed], run=True)
    return [
        None
        if row is None
        else Grant(
            job=waiting_of(row),
            document=document_of(texts[row.place]),
            token=tokens[row.place],
            deliveries=row.deliveries + 1,
            attempts=earlier.get(row.place, ()),
            lease=lease,
            queued_at=moment(row.queued_at),
            redelivered=row.handed > 0,
        )
        for row in chosen
    ]


def _chosen(connection: Connection, picks: Sequence[Pick], now: int) -> list[AnyRow | None]:
    """For each pick its row of ``jobs``, locked and still waiting: by id, else the first of its key."""
    free = _locked(connection, {pick.job_id for pick in picks if pick.job_id is not None}, now)
    chosen = [free.pop(pick.job_id, None) if pick.job_id is not None else None for pick in picks]
    left = Counter(pick.key for pick, row in zip(picks, chosen, strict=True) if row is None)
    if not left:
        return chosen
    taken = {row.place for row in chosen if row is not None}
    parameters = {"keys": listed(connection, left), "each": max(left.values()) + len(taken), "now": now}
    spare: defaultdict[Key, list[AnyRow]] = defaultdict(list)
    for row in connection.execute(_heads(connection.dialect.name, locked=True), parameters):
        if row.place not in taken:
            spare[row.key].append(row)
    for rows in spare.values():
        rows.sort(key=lambda row: (row.minus_priority, row.rank, row.id), reverse=True)
    for number, pick in enumerate(picks):
        if chosen[number] is None and spare[pick.key]:
            chosen[number] = spare[pick.key].pop()
    return chosen


def _locked(connection: Connection, ids: Collection[str], now: int) -> dict[str, AnyRow]:
    if not ids:
        return {}
    parameters = {"ids": listed(connection, ids), "now": now}
    return {row.id: row for row in connection.execute(_locking(connection.dialect.name), parameters)}


@cache
def _locking(dialect: str) -> Executable:
    these = select(*_COLUMNS).where(within(dialect, jobs.c.id, "ids"), _STARTABLE)
    return these.with_for_update(skip_locked=True)


@cache
def _leasing(dialect: str) -> Executable:
    these = update(jobs).where(jobs.c.place == leases.c.place, within(dialect, jobs.c.place, "places"))
    count = {"deliveries": jobs.c.deliveries + 1, "handed": jobs.c.handed + 1}
    return these.values(status="leased", token=leases.c.token, **count)


def _lease(connection: Connection, rows: Sequence[AnyRow], nodes: dict[int, str], until: int) -> dict[int, int]:
    """The fencing token of each place."""
    held = [
        {
            "place": row.place,
            "job_id": row.id,
            "node": nodes[row.place],
            "minus_priority": row.minus_priority,
            "rank": row.rank,
            "until": until,
        }
        for row in rows
    ]
    added = adding(connection.dialect.name, leases, tuple(held[0]), leases.c.place, leases.c.token)
    tokens = {row.place: row.token for row in connection.execute(added, {"rows": json_of(held)})}
    connection.execute(_leasing(connection.dialect.name), {"places": listed(connection, tokens)})
    tally = Tally()
    for row in rows:
        tally.goes(row.key, row.work_ms)
    tally.write(connection)
    return tokens


_FIRST, _OTHERS = bindparam("now_first", type_=Text), bindparam("others", type_=BigInteger)
_PASSING = (
    update(line)
    .where(select(jobs.c.place).where(jobs.c.id == _FIRST, WAITING).exists())
    .values(first=_FIRST, passed=case((line.c.first == _FIRST, line.c.passed + _OTHERS), else_=_OTHERS))
)


def _count_passing(connection: Connection, rows: Sequence[AnyRow], first: str | None) -> None:
    """All but the first in line went before it, if it still waits. The last write: all grants share the row."""
    others = sum(row.id != first for row in rows)
    if first is None or not others:
        return
    connection.execute(_PASSING, {"now_first": first, "others": others})
