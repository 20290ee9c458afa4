"""Keeping a lease. It touches one narrow row, and none of its indexes."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from sqlalchemy import Connection, bindparam, func, select, tuple_, update

from dispatcher.store.base import Extended
from dispatcher.store.rows import portions
from dispatcher.store.schema import leases

Held = tuple[str, int, float | None, str | None]

_RENEW = (
    update(leases)
    .where(leases.c.token == bindparam("held"))
    .values(
        until=bindparam("to"),
        progress=func.coalesce(bindparam("at", type_=leases.c.progress.type), leases.c.progress),
        hop=func.coalesce(bindparam("where", type_=leases.c.hop.type), leases.c.hop),
    )
)


def extend(connection: Connection, held: Sequence[Held], lease: timedelta, now: int) -> Extended:
    """Renew what is still held, also where it has run out; in the order of tokens, so that nobody waits in a circle."""
    until = now + lease // timedelta(microseconds=1)
    asked = {(job_id, token): (progress, hop) for job_id, token, progress, hop in held}
    ours: dict[str, bool] = {}
    for portion in portions(sorted(asked, key=lambda one: one[1])):
        still = (
            select(leases.c.job_id, leases.c.token, leases.c.cancelling)
            .where(tuple_(leases.c.job_id, leases.c.token).in_(portion))
            .order_by(leases.c.token)
            .with_for_update()
        )
        renewed = []
        for row in connection.execute(still):
            progress, hop = asked[row.job_id, row.token]
            renewed.append({"held": row.token, "to": until, "at": progress, "where": hop})
            ours[row.job_id] = bool(row.cancelling)
        if renewed:
            connection.execute(_RENEW, renewed)
    lost = frozenset(job_id for job_id, _ in asked if job_id not in ours)
    return Extended(lost=lost, cancelled=frozenset(job_id for job_id, marked in ours.items() if marked))
