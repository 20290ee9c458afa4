"""Owed webhooks: each process takes some for a while, and says what became of them."""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import Connection, delete, select, update

from dispatcher.store.base import Letter
from dispatcher.store.rows import among, document_of
from dispatcher.store.schema import letters
from worker.result import Result


def take(connection: Connection, limit: int, lease: timedelta, now: int) -> list[Letter]:
    """The longest due first; they are nobody else's until the lease ends."""
    due = (
        select(letters)
        .where(letters.c.due_at <= now)
        .order_by(letters.c.due_at, letters.c.id)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    rows = connection.execute(due).all()
    if rows:
        mine = update(letters).where(among(connection, letters.c.id, [row.id for row in rows]))
        connection.execute(mine.values(due_at=now + lease // timedelta(microseconds=1)))
    return [
        Letter(
            id=row.id,
            job_id=row.job_id,
            event=row.event,
            document=document_of(row.document),
            result=Result.model_validate_json(row.result),
            tries=row.tries,
        )
        for row in rows
    ]


def posted(connection: Connection, letter_id: int, again: timedelta | None, now: int) -> None:
    this = letters.c.id == letter_id
    if again is None:
        connection.execute(delete(letters).where(this))
    else:
        due = now + again // timedelta(microseconds=1)
        connection.execute(update(letters).where(this).values(tries=letters.c.tries + 1, due_at=due))
