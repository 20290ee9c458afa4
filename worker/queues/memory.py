"""The queue in this process's memory: for jobs that come over HTTP, and for tests. It dies with the process.

The rules are those of the sqlite driver. Jobs stand in a dict that every claim walks through: right for
thousands of waiting jobs. Waiting uses the loop's timers alone, so it also runs in virtual time.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import ChainMap, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from worker.clock import Clock
from worker.errors import IdConflict, JobCancelled, LeaseLost
from worker.node import Orders
from worker.queues.base import Delivery, JobState, Received
from worker.queues.policy import (
    CANCELLED,
    HandOver,
    Policy,
    attempts_of,
    deliveries_of,
    end_code,
    fingerprint,
    has_images,
    is_charged,
    job_code,
    open_status,
    without_images,
)
from worker.queues.wakeup import Wakeup
from worker.result import Result

WAIT = timedelta(seconds=1.5)
_SHORTEST_WAIT_S = 0.001


@dataclass(slots=True)
class _Entry:
    """A job; ``token`` is the last hand-over's as long as its holder may still answer it."""

    id: str
    body: bytes
    fingerprint: str
    priority: int
    place: int
    queued_at: datetime
    visible_at: datetime
    token: int | None = None
    run: int = 0
    handed: list[HandOver] = field(default_factory=list)
    cancelling: bool = False
    ended: datetime | None = None
    code: str | None = None
    result: Result | None = None
    policy: Policy | None = None
    client_id: str | None = None
    seen: bool = False

    @property
    def rank(self) -> tuple[int, datetime, int]:
        return (-self.priority, self.queued_at, self.place)

    def end_hand_over(self, ended: datetime, code: str | None, *, charged: bool = False) -> None:
        """Close the hand-over that is out, if there is one."""
        if self.handed and self.handed[-1].ended is None:
            self.handed[-1] = replace(self.handed[-1], ended=ended, code=code, charged=charged)
        self.token = None


@dataclass(slots=True)
class _Jobs:
    open: dict[str, _Entry] = field(default_factory=dict)
    done: dict[str, _Entry] = field(default_factory=dict)
    dead: dict[str, _Entry] = field(default_factory=dict)
    places: Iterator[int] = field(default_factory=itertools.count)
    tokens: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    inline: deque[_Entry] = field(default_factory=deque)
    wakeup: Wakeup = field(default_factory=Wakeup)

    def find(self, job_id: str) -> _Entry | None:
        return ChainMap(self.open, self.done, self.dead).get(job_id)


class MemoryQueue:
    """`Queue` and `Producer` in one.

    A lease that ran out is lost only once the job was handed over again or has ended: until then its holder
    may still extend and settle it. ``wait`` bounds one `receive`. ``can_delay`` false: a job that waits for its models
    is better kept than given back, since nobody else can take it. ``on_end`` hears of every job that is over.
    """

    capacity: int | None = None

    def __init__(
        self,
        clock: Clock,
        *,
        worker: str = "memory",
        policy: Policy | None = None,
        wait: timedelta = WAIT,
        can_delay: bool = True,
        on_end: Callable[[JobState], None] = lambda state: None,
    ):
        self._clock = clock
        self._worker = worker
        self._policy = policy or Policy()
        self._wait_s = wait.total_seconds()
        self._jobs = _Jobs()
        self.can_delay = can_delay
        self.on_end = on_end

    def ahead_of(self, job_id: str) -> int | None:
        """How many waiting jobs come before this one; None where it does not wait."""
        now = self._clock.now()
        entry = self._jobs.open.get(job_id)
        if entry is None or open_status(entry.token, entry.visible_at, now) == "leased":
            return None
        others = (one for one in self._jobs.open.values() if open_status(one.token, one.visible_at, now) != "leased")
        return sum(one.rank < entry.rank for one in others)

    def beside(self, worker: str, *, wait: timedelta | None = None) -> MemoryQueue:
        """Another worker's driver on the same jobs."""
        wait = timedelta(seconds=self._wait_s) if wait is None else wait
        other = MemoryQueue(self._clock, worker=worker, policy=self._policy, wait=wait)
        other._jobs = self._jobs
        return other

    async def receive(self) -> Received:
        loop = asyncio.get_running_loop()
        over = loop.time() + self._wait_s
        while True:
            ticket = self._jobs.wakeup.ticket()
            if (delivery := self._claim()) is not None:
                return Received(delivery)
            if (left := over - loop.time()) <= 0:
                return Received()
            await self._jobs.wakeup.wait(ticket, min(left, self._until_next_s()))

    def _claim(self) -> Delivery | None:
        now = self._clock.now()
        due = [entry for entry in self._jobs.open.values() if entry.visible_at <= now]
        for entry in [entry for entry in due if entry.cancelling]:
            self._withdraw(entry, now)
            due.remove(entry)
        if not due:
            return None
        entry = min(due, key=lambda one: one.rank)
        entry.end_hand_over(entry.visible_at, None)
        current = HandOver(next(self._jobs.tokens), entry.run, self._worker)
        policy = entry.policy or self._policy
        delivery = policy.delivery(entry.id, entry.body, entry.queued_at, current, entry.handed)
        entry.handed.append(current)
        entry.token, entry.visible_at = current.token, now + policy.visibility
        return replace(delivery, client_id=entry.client_id, redelivered=delivery.redelivered or entry.seen)

    def _until_next_s(self) -> float:
        now = self._clock.now()
        waits = [(entry.visible_at - now).total_seconds() for entry in self._jobs.open.values()]
        return max(min(waits, default=self._wait_s), _SHORTEST_WAIT_S)

    async def extend(self, delivery: Delivery) -> Orders | None:
        entry = self._held(delivery)
        entry.visible_at = self._clock.now() + self._policy.visibility
        if entry.cancelling:
            raise JobCancelled
        return None

    async def ack(self, delivery: Delivery, result: Result) -> None:
        self._settle(delivery, result, self._jobs.done)

    async def reject(self, delivery: Delivery, result: Result) -> None:
        self._settle(delivery, result, self._jobs.dead)

    async def nack(self, delivery: Delivery, delay: timedelta, code: str, *, charged: bool) -> None:
        entry, now = self._held(delivery), self._clock.now()
        entry.end_hand_over(now, code, charged=charged)
        if entry.cancelling:
            self._withdraw(entry, now)
            return
        entry.visible_at = now + delay
        self._jobs.wakeup.notify()

    async def submit(
        self,
        job_id: str,
        body: bytes,
        *,
        priority: int = 0,
        policy: Policy | None = None,
        client_id: str | None = None,
        seen: bool = False,
        sha256: str | None = None,
    ) -> bool:
        """As `Producer.submit`; with limits of its own, under what name the client knows it, whether an earlier
        success may stand elsewhere, and the document's digest where it is known."""
        same = fingerprint(job_id, body) if sha256 is None else sha256
        known = self._jobs.find(job_id)
        if known is not None:
            if known.fingerprint != same:
                raise IdConflict(f"another document is known under the id {job_id}")
            return False
        now = self._clock.now()
        place = next(self._jobs.places)
        self._jobs.open[job_id] = _Entry(
            job_id, body, same, priority, place, now, now, policy=policy, client_id=client_id, seen=seen
        )
        self._jobs.wakeup.notify()
        return True

    def forget(self, job_id: str) -> None:
        """Drop what is known of a job that is over."""
        entry = self._jobs.done.pop(job_id, None) or self._jobs.dead.pop(job_id, None)
        self._jobs.inline = deque(one for one in self._jobs.inline if one is not entry)

    async def state(self, job_id: str) -> JobState | None:
        entry = self._jobs.find(job_id)
        return None if entry is None else self._state(entry)

    async def jobs(self, status: str | None = None, limit: int = 100) -> list[JobState]:
        """Open jobs in the order of hand-over, then those that are over, the latest end first; without images."""
        ended = sorted([*self._jobs.done.values(), *self._jobs.dead.values()], key=_latest_end_first)
        states = (
            _without_images(self._state(entry))
            for entry in [*sorted(self._jobs.open.values(), key=lambda e: e.rank), *ended]
        )
        return list(itertools.islice((state for state in states if status in (None, state.status)), limit))

    async def requeue(self, job_id: str) -> bool:
        entry = self._jobs.dead.pop(job_id, None)
        if entry is None:
            return False
        now = self._clock.now()
        entry.run, entry.place, entry.queued_at, entry.visible_at = entry.run + 1, next(self._jobs.places), now, now
        entry.cancelling, entry.ended, entry.code, entry.result = False, None, None, None
        self._jobs.inline = deque(one for one in self._jobs.inline if one is not entry)
        self._jobs.open[job_id] = entry
        self._jobs.wakeup.notify()
        return True

    async def cancel(self, job_id: str) -> bool:
        entry, now = self._jobs.open.get(job_id), self._clock.now()
        if entry is None:
            return False
        if open_status(entry.token, entry.visible_at, now) == "leased":
            entry.cancelling = True
        else:
            self._withdraw(entry, now)
        return True

    async def check(self) -> str:
        return f"in memory: {len(self._jobs.open)} jobs, {len(self._jobs.dead)} dead letters"

    async def aclose(self) -> None:
        """Nothing is held that would have to be given back."""

    def _held(self, delivery: Delivery) -> _Entry:
        entry = self._jobs.open.get(delivery.id)
        if entry is None or entry.token != delivery.receipt:
            raise LeaseLost
        return entry

    def _settle(self, delivery: Delivery, result: Result, ended: dict[str, _Entry]) -> None:
        entry, now = self._held(delivery), self._clock.now()
        entry.end_hand_over(now, end_code(result), charged=is_charged(result))
        entry.result = result
        if has_images(result):
            self._jobs.inline.append(entry)
            if len(self._jobs.inline) > self._policy.keep_inline:
                oldest = self._jobs.inline.popleft()
                oldest.result = oldest.result and without_images(oldest.result)
        self._finish(entry, now, job_code(result, dead=ended is self._jobs.dead), ended)

    def _withdraw(self, entry: _Entry, now: datetime) -> None:
        entry.end_hand_over(entry.visible_at, None)
        self._finish(entry, now, CANCELLED, self._jobs.done)

    def _finish(self, entry: _Entry, now: datetime, code: str | None, ended: dict[str, _Entry]) -> None:
        entry.ended, entry.code = now, code
        ended[entry.id] = self._jobs.open.pop(entry.id)
        if ended is self._jobs.done:
            entry.body = b""
            self._forget(now)
        self.on_end(self._state(entry))

    def _forget(self, now: datetime) -> None:
        done = self._jobs.done
        too_many = max(0, len(done) - self._policy.keep_done)
        for job_id in list(itertools.islice(done, too_many)):
            del done[job_id]
        for entry in list(done.values()):
            if entry.ended is None or now - entry.ended <= self._policy.keep_for:
                break
            del done[entry.id]

    def _state(self, entry: _Entry) -> JobState:
        if entry.ended is None:
            status = open_status(entry.token, entry.visible_at, self._clock.now())
        else:
            status = "dead" if entry.id in self._jobs.dead else "done"
        run = [one for one in entry.handed if one.run == entry.run]
        return JobState(entry.id, status, deliveries_of(run), attempts_of(entry.handed), entry.code, entry.result)


def _latest_end_first(entry: _Entry) -> float:
    return -entry.ended.timestamp() if entry.ended is not None else 0.0


def _without_images(state: JobState) -> JobState:
    return state if state.result is None else replace(state, result=without_images(state.result))
