"""Lists of jobs, page after page: each part is read from the index that has its order, whatever the number of jobs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import merge
from itertools import islice
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, and_, literal_column, select, tuple_

from dispatcher.store.base import JobRow
from dispatcher.store.rows import JOB_COLUMNS, JOBS_AND_LEASES, AnyRow, job_rows
from dispatcher.store.schema import DELAYED, OVER, TURN, WAITING, jobs, leases


@dataclass(frozen=True, slots=True)
class _Part:
    """Jobs that stand together in the list, in the order of the columns; ``falling``: the greatest first."""

    statuses: frozenset[str]
    where: ColumnElement[bool]
    order: tuple[Any, ...]
    falling: bool = False

    def query(self, owner: str | None, after: AnyRow | None, limit: int) -> Select[Any]:
        order = [column.desc() if self.falling else column for column in self.order]
        most: ColumnElement[int] = literal_column(str(limit))
        query = select(*JOB_COLUMNS).select_from(JOBS_AND_LEASES).where(self.where).order_by(*order).limit(most)
        if owner is not None:
            query = query.where(jobs.c.owner == owner)
        if after is None:
            return query
        here, there = tuple_(*self.order), tuple_(*(getattr(after, column.name) for column in self.order))
        return query.where(here < there if self.falling else here > there)


_LATEST = (jobs.c.ended_at, jobs.c.id)
_HELD = _Part(
    frozenset({"leased"}), and_(leases.c.token.is_not(None), jobs.c.status == literal_column("'leased'")), TURN
)
_WAITS = _Part(frozenset({"waiting"}), WAITING, TURN)
_LATER = _Part(frozenset({"delayed"}), DELAYED, (jobs.c.visible_at, jobs.c.id))
_DONE, _DEAD = (
    _Part(frozenset({status}), and_(OVER, jobs.c.status == literal_column(f"'{status}'")), _LATEST, falling=True)
    for status in ("done", "dead")
)
_Group = tuple[_Part, ...]
_GROUPS: tuple[_Group, ...] = ((_HELD,), (_WAITS,), (_LATER,), (_DONE, _DEAD))
"""Those who have had their turn, those who wait for it, those who will; then what is over, the latest end first."""


def jobs_of(
    connection: Connection, status: str | None, owner: str | None, limit: int, after: str | None
) -> list[JobRow]:
    """A page of the list, beginning behind the job of that id; from the start where that is not known (any more)."""
    last = None if after is None else connection.execute(select(jobs).where(jobs.c.id == after)).first()
    found: list[AnyRow] = []
    for group in _groups_from(last):
        parts = [part for part in group if status is None or status in part.statuses]
        behind = last if last is not None and _holds(group, last) else None
        pages = [connection.execute(part.query(owner, behind, limit - len(found))).all() for part in parts]
        found += islice(_merged(pages), limit - len(found))
        if len(found) >= limit:
            break
    return job_rows(connection, found)


def _groups_from(last: AnyRow | None) -> Sequence[_Group]:
    return [group for number, group in enumerate(_GROUPS) if last is None or number >= _place_of(last)]


def _place_of(row: AnyRow) -> int:
    return next(number for number, group in enumerate(_GROUPS) if _holds(group, row))


def _holds(group: _Group, row: AnyRow) -> bool:
    return any(row.status in part.statuses for part in group)


def _merged(pages: Sequence[Sequence[AnyRow]]) -> Sequence[AnyRow]:
    if len(pages) == 1:
        return pages[0]
    return list(merge(*pages, key=lambda row: (row.ended_at, row.id), reverse=True))
