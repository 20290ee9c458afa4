"""The two sides of the embedded queue, and the one promise that is hard: a cancelled receive leases nothing."""

from __future__ import annotations

import asyncio
import random
import sqlite3
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

from worker.clock import Clock
from worker.errors import JobCancelled, QueueUnavailable
from worker.node import Orders
from worker.queues.base import Delivery, JobState, Received
from worker.queues.policy import Policy, fingerprint
from worker.queues.sqlite import rows
from worker.queues.sqlite.schema import writing
from worker.queues.sqlite.thread import SqliteThread
from worker.queues.wakeup import Wakeup
from worker.result import Result
from worker.wire import PreviousRun

T = TypeVar("T")
BUSY = timedelta(seconds=5)
WAIT = timedelta(seconds=2)
QUICKEST_S, SLOWEST_S, SLOWER = 0.02, 1.0, 1.5


class Pace:
    """How long to pause between two looks at the file: short after activity, then longer and longer."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._pause_s = QUICKEST_S

    def quicken(self) -> None:
        self._pause_s = QUICKEST_S

    def next_s(self) -> float:
        pause_s = self._pause_s
        self._pause_s = min(SLOWEST_S, pause_s * SLOWER)
        return pause_s * self._rng.uniform(0.75, 1.0)


class SqliteProducer:
    """The submitting side. Every verb raises `QueueUnavailable`, the first one also `ConfigError`."""

    def __init__(self, path: Path, clock: Clock, *, policy: Policy | None = None, busy: timedelta = BUSY) -> None:
        self._clock = clock
        self._policy = policy or Policy()
        self._thread = SqliteThread(path, busy)
        self._wakeup = Wakeup()

    async def submit(self, job_id: str, body: bytes, *, priority: int = 0) -> bool:
        def operation(db: sqlite3.Connection) -> bool:
            same = fingerprint(job_id, body)
            with writing(db):
                return rows.submit(db, job_id, body, same, priority, self._clock.now())

        is_new = await self._thread.run(operation)
        self._wakeup.notify()
        return is_new

    async def state(self, job_id: str) -> JobState | None:
        return await self._thread.run(lambda db: rows.state(db, self._clock.now(), job_id))

    async def jobs(self, status: str | None = None, limit: int = 100) -> list[JobState]:
        """Open jobs in the order of hand-over, then those that are over, the latest end first; without images."""
        return await self._thread.run(lambda db: rows.states(db, self._clock.now(), status=status, limit=limit))

    async def requeue(self, job_id: str) -> bool:
        done = await self._write(lambda db: rows.requeue(db, job_id, self._clock.now()))
        self._wakeup.notify()
        return done

    async def cancel(self, job_id: str) -> bool:
        return await self._write(lambda db: rows.cancel(db, job_id, self._clock.now(), self._policy))

    async def check(self) -> str:
        """Take the write lock once and count what is there."""
        counts = await self._write(rows.counts)
        found = ", ".join(f"{count} {status}" for status, count in sorted(counts.items())) or "no jobs"
        return f"{self._thread.path}: writable, {found}"

    async def aclose(self) -> None:
        await self._thread.aclose()

    async def _write(self, change: Callable[[sqlite3.Connection], T]) -> T:
        def operation(db: sqlite3.Connection) -> T:
            with writing(db):
                return change(db)

        return await self._thread.run(operation)


class SqliteQueue(SqliteProducer):
    """`Queue` and `Producer` in one, for the worker of that name.

    A lease that ran out is lost only once the job was handed over again or has ended: until then its holder
    may still extend and settle it. ``wait`` bounds one `receive`, ``busy`` the waiting for a locked file.
    Await `receive` directly: where it is wrapped in a task of its own, that task's result must be taken.
    """

    capacity: int | None = None
    can_delay: bool = True

    def __init__(
        self,
        path: Path,
        clock: Clock,
        *,
        worker: str,
        policy: Policy | None = None,
        busy: timedelta = BUSY,
        wait: timedelta = WAIT,
        rng: random.Random | None = None,
    ) -> None:
        super().__init__(path, clock, policy=policy, busy=busy)
        self._worker = worker
        self._wait_s = wait.total_seconds()
        self._pace = Pace(rng or random.SystemRandom())
        self._unwanted: list[int] = []

    async def receive(self) -> Received:
        loop = asyncio.get_running_loop()
        over = loop.time() + self._wait_s
        while True:
            ticket = self._wakeup.ticket()
            if (delivery := await self._claim()) is not None:
                self._pace.quicken()
                return Received(delivery)
            await self._wakeup.wait(ticket, min(over - loop.time(), self._pace.next_s()))
            if loop.time() >= over:
                return Received()

    async def extend(self, delivery: Delivery) -> Orders | None:
        """Renews the lease of a cancelled job too, so that its holder can settle it."""

        def change(db: sqlite3.Connection) -> bool:
            return rows.extend(db, delivery, self._clock.now() + self._policy.visibility)

        if await self._write(change):
            raise JobCancelled
        return None

    async def ack(self, delivery: Delivery, result: Result) -> None:
        await self._write(lambda db: rows.settle(db, delivery, self._clock.now(), "done", result, self._policy))

    async def reject(self, delivery: Delivery, result: Result) -> None:
        await self._write(lambda db: rows.settle(db, delivery, self._clock.now(), "dead", result, self._policy))

    async def nack(self, delivery: Delivery, delay: timedelta, code: str, *, charged: bool) -> None:
        def change(db: sqlite3.Connection) -> None:
            rows.release(db, delivery, self._clock.now(), delay, code, charged, self._policy)

        await self._write(change)
        self._wakeup.notify()

    async def recall(self, run: PreviousRun) -> None:
        """As `Recalling.recall`; a job that may have ended the run rests a while, charged as engine faults are."""
        await self._write(lambda db: rows.recall(db, self._worker, run, self._clock.now(), self._policy))
        self._wakeup.notify()

    async def _claim(self) -> Delivery | None:
        """A claim that has not begun when we are cancelled never runs; any other is given back right behind it."""
        claim = self._thread.submit(self._claim_now)
        try:
            return await asyncio.wrap_future(claim)
        except asyncio.CancelledError:
            claim.add_done_callback(self._disown)
            with suppress(QueueUnavailable):
                self._thread.submit(self._give_back)
            raise

    def _claim_now(self, db: sqlite3.Connection) -> Delivery | None:
        self._give_back(db)
        if not rows.is_anything_due(db, self._clock.now()):
            return None
        with writing(db):
            return rows.claim(db, self._clock.now(), self._worker, self._policy)

    def _disown(self, claim: Future[Delivery | None]) -> None:
        if not claim.cancelled() and claim.exception() is None and (delivery := claim.result()) is not None:
            self._unwanted.append(delivery.receipt)

    def _give_back(self, db: sqlite3.Connection) -> None:
        """Where the file is locked just now, the next claim does it."""
        if tokens := list(self._unwanted):
            with writing(db):
                rows.give_back(db, tokens)
            del self._unwanted[: len(tokens)]
