"""Jobs that their holders bring to an end: two statements on PostgreSQL, where each more costs a way there and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from sqlalchemy import Boolean, Column, Connection, Executable, Text, delete, insert, not_, select, update

from dispatcher.store.database import SQLITE
from dispatcher.store.ending import drop_documents, move, moved
from dispatcher.store.rows import add, given, json_of, listed, within
from dispatcher.store.schema import Word, attempts, documents, inline_results, is_word, jobs, results
from dispatcher.store.taking import HandOver, taken
from worker.queues.policy import Policy, end_code, has_images, is_charged, job_code
from worker.result import Result

KEEP_INLINE = Policy().keep_inline


@dataclass(frozen=True, slots=True)
class Ending:
    """A job that its holder says is over."""

    job_id: str
    token: int
    result: Result
    dead: bool

    @property
    def status(self) -> str:
        return "dead" if self.dead else "done"

    @property
    def code(self) -> str | None:
        return job_code(self.result, dead=self.dead)


def end(connection: Connection, endings: Sequence[Ending], now: int) -> list[bool]:
    """Over, by their holders; False for those whose token is stale. Of two ends under one token the first counts."""
    asked = {(one.job_id, one.token): one for one in reversed(endings)}
    held = [(hand, asked[hand.job.id, hand.lease.token]) for hand in taken(connection, list(asked))]
    if held:
        close = _step_by_step if connection.dialect.name == SQLITE else _at_once
        close(connection, held, now)
        _keep_images(connection, [(hand.job.place, one.result) for hand, one in held if has_images(one.result)])
    ended = {id(one) for _, one in held}
    standing = _standing(connection, [one for one in endings if id(one) not in ended])
    return [id(one) in ended or (one.job_id, one.token, one.status, one.code) in standing for one in endings]


def _standing(connection: Connection, late: Sequence[Ending]) -> set[tuple[str, int, str, str | None]]:
    """How jobs stand that were no longer held: whoever says the same again is told that it is so."""
    known = {one.job_id for one in late if is_word(one.job_id)}
    if not known:
        return set()
    ids = {"ids": listed(connection, known)}
    rows = connection.execute(_stands(connection.dialect.name), ids)
    return {(row.id, row.token, row.status, row.code) for row in rows}


@cache
def _stands(dialect: str) -> Executable:
    return select(jobs.c.id, jobs.c.token, jobs.c.status, jobs.c.code).where(within(dialect, jobs.c.id, "ids"))


_TRIED = ("token", "place", "run", "worker", "ended_at", "code", "charged")


def _at_once(connection: Connection, held: Sequence[tuple[HandOver, Ending]], now: int) -> None:
    rows = [
        {
            **_tried(hand, one, now),
            "tried": end_code(one.result),
            "status": one.status,
            "deliveries": hand.counted(end_code(one.result)),
            "code": one.code,
            "result": _text(one.result),
            "dead": one.dead,
        }
        for hand, one in held
    ]
    connection.execute(_closing(), {"rows": json_of(rows)})


@cache
def _closing() -> Executable:
    words: list[Column[Any]] = [Column("tried", Word), Column("result", Text), Column("dead", Boolean)]
    tried = [attempts.c[name] for name in _TRIED if name != "code"]
    rows = given("postgresql", *tried, jobs.c.status, jobs.c.deliveries, jobs.c.code, *words)
    rows = select(rows).cte("rows")
    source = [rows.c.tried if name == "code" else rows.c[name] for name in _TRIED]
    noted = insert(attempts).from_select(_TRIED, select(*source)).cte("noted")
    kept = insert(results).from_select(("place", "result"), select(rows.c.place, rows.c.result)).cte("kept")
    dropped = delete(documents).where(documents.c.place == rows.c.place, not_(rows.c.dead)).cte("dropped")
    values = {name: rows.c[name] for name in ("status", "deliveries", "ended_at", "code")}
    over = update(jobs).where(jobs.c.place == rows.c.place).values(visible_at=None, **values)
    return over.add_cte(noted, kept, dropped)


def _step_by_step(connection: Connection, held: Sequence[tuple[HandOver, Ending]], now: int) -> None:
    add(connection, attempts, [_tried(hand, one, now) for hand, one in held])
    counted = [(hand.job.place, one, hand.counted(end_code(one.result))) for hand, one in held]
    move(connection, [moved(place, one.status, count, ended=now, why=one.code) for place, one, count in counted])
    add(connection, results, [{"place": hand.job.place, "result": _text(one.result)} for hand, one in held])
    drop_documents(connection, [hand.job.place for hand, one in held if not one.dead])


def _tried(hand: HandOver, one: Ending, now: int) -> dict[str, Any]:
    return hand.attempt(now, end_code(one.result), charged=is_charged(one.result))


def _text(result: Result) -> str:
    return result.to_json(base64=False).decode()


def _keep_images(connection: Connection, found: Sequence[tuple[int, Result]]) -> None:
    """The latest results that hold images themselves, whole."""
    if not found:
        return
    add(connection, inline_results, [{"place": place, "result": result.to_json().decode()} for place, result in found])
    latest = select(inline_results.c.number).order_by(inline_results.c.number.desc())
    last_kept = latest.limit(1).offset(KEEP_INLINE - 1).scalar_subquery()
    connection.execute(delete(inline_results).where(inline_results.c.number < last_kept))
