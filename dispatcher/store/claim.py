"""The dispatch path: what stands first, and handing it over. A handful of statements, however many jobs wait."""

from __future__ import annotations

import json
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
    insert,
    literal_column,
    or_,
    select,
    true,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY

from dispatcher.store.base import Grant, Pick
from dispatcher.store.database import SQLITE
from dispatcher.store.rows import WAITING_COLUMNS, AnyRow, Tally, attempts_of, document_of, portions, waiting_of
from dispatcher.store.schema import TURN, WAITING, documents, jobs, leases, line, moment
from dispatcher.words import Key, Waiting

_COLUMNS = (*WAITING_COLUMNS, jobs.c.deliveries, jobs.c.handed)
_STARTABLE = and_(WAITING, or_(jobs.c.deadline.is_(None), jobs.c.deadline > bindparam("now", type_=BigInteger)))

Board = tuple[dict[Key, list[Waiting]], Waiting | None, int]


@cache
def _heads(dialect: str, *, locked: bool) -> Executable:
    """The first ``each`` of each of ``keys``; ``locked``: for this transaction, without those that others have."""
    if dialect == SQLITE:
        return _sqlite_heads()
    key = func.unnest(cast(bindparam("keys"), ARRAY(Text))).table_valued("key", name="wanted").render_derived()
    first: Select[Any] = (
        select(*_COLUMNS).where(_STARTABLE if locked else WAITING, jobs.c.key == key.c.key).order_by(*TURN)
    )
    if locked:
        first = first.with_for_update(skip_locked=True)
    head = first.limit(bindparam("each")).lateral("head")
    return select(head).select_from(key.join(head, true()))


def _sqlite_heads() -> Executable:
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
    return select(*_COLUMNS).select_from(key.join(jobs, jobs.c.place.in_(first)))


def _keys(connection: Connection, keys: Collection[Key]) -> Any:
    return json.dumps(list(keys)) if connection.dialect.name == SQLITE else list(keys)


FIRST_IN_LINE = (
    select(*WAITING_COLUMNS, line.c.first, line.c.passed)
    .select_from(jobs.join(line, true()))
    .where(WAITING)
    .order_by(*TURN)
    .limit(literal_column("1"))
)


def board(connection: Connection, keys: Collection[Key], each: int) -> Board:
    """The first of each key in order, the first of all, and how often that was passed over."""
    heads: defaultdict[Key, list[Waiting]] = defaultdict(list)
    if keys and each > 0:
        query = _heads(connection.dialect.name, locked=False)
        for row in connection.execute(query, {"keys": _keys(connection, keys), "each": each}):
            heads[row.key].append(waiting_of(row))
    for found in heads.values():
        found.sort(key=lambda job: job.order)
    first = connection.execute(FIRST_IN_LINE).first()
    if first is None:
        return dict(heads), None, 0
    return dict(heads), waiting_of(first), first.passed if first.first == first.id else 0


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
    places = list(nodes)
    texts = connection.execute(select(documents).where(documents.c.place.in_(places)))
    text_of = {row.place: row.document for row in texts}
    earlier = attempts_of(connection, [row.place for row in rows if row.handed], run=True)
    return [
        None
        if row is None
        else Grant(
            job=waiting_of(row),
            document=document_of(text_of[row.place]),
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
    parameters = {"keys": _keys(connection, left), "each": max(left.values()) + len(taken), "now": now}
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
    found: dict[str, AnyRow] = {}
    for portion in portions(ids):
        query = select(*_COLUMNS).where(jobs.c.id.in_(portion), _STARTABLE).with_for_update(skip_locked=True)
        found |= {row.id: row for row in connection.execute(query, {"now": now})}
    return found


_LEASED = (
    update(jobs)
    .where(jobs.c.place == bindparam("at"))
    .values(
        status="leased",
        token=bindparam("by"),
        deliveries=jobs.c.deliveries + 1,
        handed=jobs.c.handed + 1,
        visible_at=None,
    )
)


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
    added = connection.execute(insert(leases).returning(leases.c.place, leases.c.token), held)
    tokens = {row.place: row.token for row in added}
    connection.execute(_LEASED, [{"at": place, "by": token} for place, token in tokens.items()])
    tally = Tally()
    for row in rows:
        tally.add(row, -1)
    tally.write(connection)
    return tokens


def _count_passing(connection: Connection, rows: Sequence[AnyRow], first: str | None) -> None:
    """All but the first in line went before it, if it still waits. The last write: all grants share the row."""
    others = sum(row.id != first for row in rows)
    if first is None or not others:
        return
    still = select(jobs.c.place).where(jobs.c.id == first, WAITING).exists()
    count = case((line.c.first == first, line.c.passed + others), else_=others)
    connection.execute(update(line).where(still).values(first=first, passed=count))
