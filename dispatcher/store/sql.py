"""The store over SQL: each verb of the seam as one short transaction in the database's threads."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy import URL, Connection, func, select, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from dispatcher.store import claim, fleet, jobs, leases, listing, losing, outbox, sweep
from dispatcher.store.base import (
    Backlog,
    Extended,
    Grant,
    JobRow,
    Letter,
    Loss,
    NewJob,
    NodeRow,
    Pick,
    Swept,
)
from dispatcher.store.closing import Ending, end
from dispatcher.store.database import SQLITE, Database, planned_anew
from dispatcher.store.ending import release
from dispatcher.store.gathering import Gathering
from dispatcher.store.reading import Reading
from dispatcher.store.rows import PORTION
from dispatcher.store.schema import is_word, line, moment, nodes, stamp
from dispatcher.store.schema import leases as leases_table
from dispatcher.store.upgrade import brought_up
from dispatcher.store.wake import Bell, Ear, Listener, Poller
from dispatcher.words import Key, Source, Waiting
from worker.clock import Clock, CorrectedClock
from worker.errors import ConfigError
from worker.result import Result

ENDS_AT_ONCE, APART_S = 64, 0.025
READINGS = 5
ROUNDS = 20
"""A sweep does so many portions of each kind at most; what is left is the next one's."""


def url_of(text: str) -> URL:
    """What ``DISPATCHER_DATABASE_URL`` may be; raises `ConfigError` for anything else."""
    try:
        url = make_url(text)
    except ArgumentError:
        raise ConfigError("not a database URL: sqlite:///./dispatcher.db, or postgresql://user@host/name") from None
    if url.get_backend_name() == SQLITE:
        if not url.database or url.database == ":memory:":
            raise ConfigError("the database must be a file: sqlite:///./dispatcher.db")
        return url.set(drivername="sqlite+pysqlite")
    if url.drivername in ("postgresql", "postgres", "postgresql+psycopg"):
        return url.set(drivername="postgresql+psycopg")
    raise ConfigError(f"{url.drivername} is not supported: sqlite:///./dispatcher.db, or postgresql://user@host/name")


class SqlStore:
    """`dispatcher.store.base.Store` over SQLite or PostgreSQL, any number of processes over one database.

    A `CorrectedClock` is set by PostgreSQL's clock, so that processes on several machines agree about leases.
    """

    def __init__(self, url: str, clock: Clock) -> None:
        self._clock = clock
        self._database = Database(url_of(url))
        self._bell = Bell()
        self._ear: Ear = (
            Poller(self._bell, self._news) if self._database.is_sqlite else Listener(self._bell, _conninfo(url_of(url)))
        )
        self._ends: Gathering[Ending, bool] = Gathering(
            self._end, most=ENDS_AT_ONCE, apart_s=APART_S, name="store-ends"
        )

    async def open(self) -> None:
        await brought_up(self._database)
        await self._set_clock()
        await self._ear.listen()

    async def aclose(self) -> None:
        await self._ear.aclose()
        await self._ends.aclose()
        await self._database.aclose()

    async def check(self) -> str:
        found = await self._database.read(_counts)
        return f"{self._database.place}: {found}"

    # users

    async def submit(self, new: Sequence[NewJob]) -> list[bool]:
        fresh = await self._database.write(jobs.submit, new, self._now())
        if any(fresh):
            self._bell.ring()
        return fresh

    async def job(self, job_id: str) -> JobRow | None:
        return await self._database.read(jobs.job, job_id) if is_word(job_id) else None

    async def jobs(
        self, *, status: str | None = None, user: str | None = None, limit: int = 100, after: str | None = None
    ) -> list[JobRow]:
        if user is not None and not is_word(user):
            return []
        behind = after if after is not None and is_word(after) else None
        return await self._database.read(listing.jobs_of, status, user, limit, behind)

    async def cancel(self, job_id: str) -> bool:
        return is_word(job_id) and await self._database.write(jobs.cancel, job_id, self._now())

    async def requeue(self, job_id: str) -> bool:
        done = is_word(job_id) and await self._database.write(jobs.requeue, job_id, self._now())
        self._bell.ring()
        return done

    # dispatch

    async def board(
        self, wanted: Mapping[Key, int], *, but: Collection[str] = ()
    ) -> tuple[dict[Key, list[Waiting]], Waiting | None, int]:
        return await self._database.read(claim.board, wanted, but)

    async def grant(self, picks: Sequence[Pick], lease: timedelta, *, passed: str | None) -> list[Grant | None]:
        return await self._database.write(claim.grant, picks, lease, passed, self._now())

    async def extend(self, held: Sequence[tuple[str, int, float | None, str | None]], lease: timedelta) -> Extended:
        return await self._database.write(leases.extend, held, lease, self._now())

    async def end(self, job_id: str, token: int, result: Result, *, dead: bool) -> bool:
        return await self._ends(Ending(job_id, token, result, dead))

    async def _end(self, endings: list[Ending]) -> list[bool]:
        return await self._database.write(end, endings, self._now())

    async def release(
        self, job_id: str, token: int, *, code: str, delay: timedelta, charged: bool, worker: str
    ) -> JobRow | None:
        row = await self._database.write(release, (job_id, token), code, delay, charged, worker, self._now())
        self._bell.ring()
        return row

    async def lose(self, node: str, losses: Sequence[Loss], *, max_attempts: int) -> list[JobRow]:
        rows = await self._database.write(losing.lose, node, losses, max_attempts, self._now())
        self._bell.ring()
        return rows

    async def sweep(self, *, max_deliveries: int) -> Swept:
        vanished, limited = 0, 0
        for _ in range(ROUNDS):
            taken, over = await self._database.write(planned_anew, sweep.vanished, self._now(), max_deliveries)
            vanished, limited = vanished + taken, limited + over
            if taken < PORTION:
                break
        expired = await self._repeated(sweep.expired)
        limited += await self._repeated(sweep.limited, max_deliveries)
        woken = await self._repeated(sweep.woken)
        await self._database.write(planned_anew, sweep.advance, self._now())
        await self._repeated(sweep.folded)
        await self._repeated(sweep.forgotten)
        await self._set_clock()
        if vanished or woken:
            self._bell.ring()
        return Swept(vanished=vanished, woken=woken, expired=expired, limited=limited)

    async def _repeated(self, step: Callable[..., int], *more: Any) -> int:
        done = 0
        for _ in range(ROUNDS):
            found = await self._database.write(planned_anew, step, self._now(), *more)
            done += found
            if found < PORTION:
                break
        return done

    async def backlog(self) -> list[Backlog]:
        return await self._database.read(sweep.read_backlog)

    def ticket(self) -> int:
        return self._bell.count

    async def changed(self, timeout: float, ticket: int | None = None) -> bool:
        return await self._bell.wait(self._bell.count if ticket is None else ticket, timeout)

    # nodes, catalogue, owed webhooks

    async def save_nodes(self, rows: Sequence[NodeRow]) -> None:
        await self._database.write(fleet.save_nodes, rows)

    async def save_orders(self, orders: Mapping[str, Mapping[str, Any]]) -> None:
        await self._database.write(fleet.save_orders, orders)

    async def nodes(self) -> list[NodeRow]:
        return await self._database.read(fleet.read_nodes)

    async def lead(self, role: str, holder: str, lease: timedelta) -> bool:
        return await self._database.write(fleet.lead, role, holder, lease, self._now())

    async def put_models(self, sources: Sequence[Source]) -> None:
        await self._database.write(fleet.put_models, sources)

    async def models(self) -> list[Source]:
        return await self._database.read(fleet.read_models)

    async def remove_model(self, kind: str, name: str) -> bool:
        return await self._database.write(fleet.remove_model, kind, name)

    async def letters(self, limit: int, lease: timedelta) -> list[Letter]:
        return await self._database.write(planned_anew, outbox.take, limit, lease, self._now())

    async def posted(self, letter_id: int, *, again: timedelta | None) -> None:
        await self._database.write(outbox.posted, letter_id, again, self._now())

    def _now(self) -> int:
        return stamp(self._clock.now())

    async def _news(self) -> int:
        return await self._database.read(_news)

    async def _set_clock(self) -> None:
        """Go by PostgreSQL's clock; a reading that says nothing certain changes nothing."""
        if not isinstance(self._clock, CorrectedClock) or self._database.is_sqlite:
            return
        for _ in range(READINGS):
            reading = await self._database.read(_reading, self._clock)
            if reading.agrees:
                return
            if reading.is_sharp:
                self._clock.observe(reading.server + (self._clock.now() - reading.after))
                return


def _conninfo(url: URL) -> str:
    return url.set(drivername="postgresql").render_as_string(hide_password=False)


def _news(connection: Connection) -> int:
    found: int = connection.execute(select(line.c.news)).scalar_one()
    return found


def _reading(connection: Connection, clock: Clock) -> Reading:
    """Taken where the statement runs: our loop may be late to hear of it."""
    before = clock.now()
    now: int = connection.execute(text("SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint")).scalar_one()
    return Reading(before, moment(now), clock.now())


def _counts(connection: Connection) -> str:
    waiting = sum(one.waiting for one in sweep.read_backlog(connection))
    leased, known = (
        connection.execute(select(func.count()).select_from(table)).scalar_one() for table in (leases_table, nodes)
    )
    return f"{waiting} jobs waiting, {leased} leased, {known} nodes known"
