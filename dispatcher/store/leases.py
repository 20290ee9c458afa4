"""Keeping a lease. It touches one narrow row, and none of its indexes."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from functools import cache

from sqlalchemy import BigInteger, Connection, Executable, and_, bindparam, case, func, update

from dispatcher.store.base import Extended
from dispatcher.store.rows import given, json_of
from dispatcher.store.schema import is_token, leases

Held = tuple[str, int, float | None, str | None]
_GIVEN = (leases.c.job_id, leases.c.token, leases.c.progress, leases.c.hop)


@cache
def _renewing(dialect: str) -> Executable:
    held = given(dialect, *_GIVEN)
    renewal = update(leases).where(and_(leases.c.token == held.c.token, leases.c.job_id == held.c.job_id))
    to = bindparam("to", type_=BigInteger)
    values = {
        "until": case((leases.c.until > to, leases.c.until), else_=to),
        "progress": func.coalesce(held.c.progress, leases.c.progress),
        "hop": func.coalesce(held.c.hop, leases.c.hop),
    }
    return renewal.values(values).returning(leases.c.job_id, leases.c.cancelling)


def extend(connection: Connection, held: Sequence[Held], lease: timedelta, now: int) -> Extended:
    """Renew what is still held, also where it has run out; a renewal that comes late never shortens a lease."""
    until = now + lease // timedelta(microseconds=1)
    latest = {(job_id, token): (job_id, token, progress, hop) for job_id, token, progress, hop in held}
    names = [column.name for column in _GIVEN]
    rows = json_of([dict(zip(names, one, strict=True)) for (_, token), one in latest.items() if is_token(token)])
    renewed = connection.execute(_renewing(connection.dialect.name), {"rows": rows, "to": until}).all()
    lost = {job_id for job_id, _ in latest} - {row.job_id for row in renewed}
    return Extended(lost=frozenset(lost), cancelled=frozenset(row.job_id for row in renewed if row.cancelling))
