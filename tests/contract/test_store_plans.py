"""No statement on the way of a request walks over a table whose rows are jobs, however many those are."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from sqlalchemy import Engine, event, text

from dispatcher.store.base import Pick
from dispatcher.store.database import connected
from dispatcher.store.sql import SqlStore, url_of
from tests.support.databases import Given, open_given
from tests.support.queues import result_of
from tests.support.stores import LEASE, give_back, key, new_job

__all__ = ["open_given"]

MODELS, JOBS = 50, 1_200
GROWING = frozenset({"jobs", "documents", "attempts", "results"})
"""Tables that grow with the number of jobs; leases do with the number of nodes."""

BY_TURN = ("jobs_of_key", "jobs_in_line", "jobs_of_owner")
"""Indexes in which a model's jobs, all jobs, a user's jobs stand in their turn: without one the next would be used."""

Statements = dict[str, Any]


@contextmanager
def noted() -> Iterator[Statements]:
    """What is executed within the block, with the parameters that it had last."""
    found: Statements = {}

    def note(_: Any, __: Any, statement: str, parameters: Any, *___: Any) -> None:
        if statement.lstrip().upper().startswith(("SELECT", "WITH", "INSERT", "UPDATE", "DELETE")):
            found[statement] = parameters

    event.listen(Engine, "before_cursor_execute", note)
    try:
        yield found
    finally:
        event.remove(Engine, "before_cursor_execute", note)


async def filled(store: SqlStore) -> None:
    """Many jobs wait, many are over, as many are held as by a fleet."""
    await store.submit([new_job(f"j{number}", f"m{number % MODELS}", user=f"u{number % 9}") for number in range(JOBS)])
    for start in range(0, 800, 200):
        picks = [Pick(f"n{number}", key(f"m{number % MODELS}"), f"j{number}") for number in range(start, start + 200)]
        grants = [one for one in await store.grant(picks, LEASE, passed=None) if one is not None]
        if start:
            ends = (store.end(one.job.id, one.token, result_of(one.job.id), dead=False) for one in grants)
            assert all(await asyncio.gather(*ends))


async def served(store: SqlStore) -> None:
    """Everything that a user's or a node's request brings with it."""
    _, first, _ = await store.board({key(f"m{number}"): 4 for number in range(30)})
    assert first is not None
    asked = [Pick("n1", key("m1"), "j1001"), Pick("n2", key("m2"), "gone"), Pick("n3", key("m3"), None)]
    one, other, third = await store.grant(asked, LEASE, passed=first.id)
    assert one is not None
    assert other is not None
    assert third is not None
    held = [(one.job.id, one.token, 0.5, "generate")]
    assert not (await store.extend(held, LEASE)).lost
    assert await store.end(one.job.id, one.token, result_of(one.job.id), dead=False)
    assert await store.end(one.job.id, one.token, result_of(one.job.id), dead=False)
    assert await give_back(store, other, delay=timedelta(seconds=5)) is not None
    assert await store.job(third.job.id) is not None
    assert await store.cancel("j1100")
    await store.submit([new_job("new", "m7", user="u1")])


def plans(given: Given, statements: Statements) -> list[str]:
    """How these would be carried out, line by line.

    Tables as small as a test's are rightly read from end to end by PostgreSQL, which therefore has to do without that
    where it can.
    """
    engine = connected(url_of(given.url))
    explain = "EXPLAIN QUERY PLAN" if given.kind == "sqlite" else "EXPLAIN"
    with engine.connect() as connection:
        if given.kind == "postgresql":
            connection.execute(text("SET LOCAL enable_seqscan = off"))
        lines = [
            str(row[-1])
            for statement, parameters in statements.items()
            for row in connection.exec_driver_sql(f"{explain} {statement}", parameters)
        ]
        connection.rollback()
    engine.dispose()
    return lines


def _is_walk(line: str) -> bool:
    """PostgreSQL's "Seq Scan on jobs" and SQLite's "SCAN jobs"; the latter may go by an index from end to end."""
    words = line.replace("->", " ").split()
    if words[:3] == ["Seq", "Scan", "on"]:
        return words[3] in GROWING
    return words[:1] == ["SCAN"] and words[1] in GROWING and "INDEX" not in words


async def test_plans(given_db: Given) -> None:
    """Board, grant, end, heartbeat, release, look-up, cancellation, submission: all of them go by the right index."""
    store = await given_db.store()
    await filled(store)
    with noted() as statements:
        await served(store)
    assert len(statements) > 15
    lines = plans(given_db, statements)
    assert [line for line in lines if _is_walk(line)] == []
    assert all(any(index in line for line in lines) for index in BY_TURN)


async def test_a_walk_is_found(given_db: Given) -> None:
    """What reads a table from end to end is told by its plan."""
    store = await given_db.store()
    await filled(store)
    walk: Statements = {"SELECT id FROM jobs WHERE work_ms < 0": {} if given_db.kind == "postgresql" else ()}
    assert any(map(_is_walk, plans(given_db, walk)))
