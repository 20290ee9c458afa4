"""What waits of each model, how fast more of it comes, and how many nodes could do it: `words.Demand` by key.

The backlog is read from the database every second or so; in between, what this process takes in and gives away moves
the counts. They may be a little off until the next reading: a decision that relied on it is corrected by the store.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import exp
from typing import Protocol

from dispatcher.matching import Pressure
from dispatcher.steps import Steps
from dispatcher.store.base import Backlog
from dispatcher.words import Demand, Key, Waiting

SMOOTHED_S = 300.0
"""Arrivals are smoothed over this time."""

NEGLIGIBLE = 1e-5
STEP = 200
"""Models of one step."""

FEW = 100
AGED, AGED_S = 1.1, 2.0
"""A model's pressure is renewed when its first job's age grew by this factor and so many seconds."""

SAME = 0.01
"""Work that differs by less than this share is the same: sums of many numbers depend on their order."""


class Copies(Protocol):
    """Who has which model."""

    def warm(self, key: Key) -> int: ...
    def copies(self, key: Key) -> int: ...
    def coming(self, key: Key) -> int: ...
    def size(self, key: Key) -> int | None: ...


@dataclass(slots=True)
class _Rate:
    """Events a second, each forgotten by and by. ``at`` in seconds of the same clock as all times here."""

    value: float = 0.0
    at: float = 0.0

    def now(self, now: float) -> float:
        return self.value * exp(-max(0.0, now - self.at) / SMOOTHED_S)

    def add(self, count: int, now: float) -> None:
        self.value, self.at = self.now(now) + count / SMOOTHED_S, now


@dataclass(slots=True)
class _Queue:
    """What waits of one model. ``moved``: by how much it changed here since the last reading began."""

    waiting: int = 0
    work_s: float = 0.0
    moved: int = 0
    moved_s: float = 0.0
    since: float | None = None


class Demands:
    """The demand by key, kept in the order of its pressure (`index`). Times are of the loop, in seconds."""

    def __init__(self, copies: Copies, now: Callable[[], float]) -> None:
        self.index = Pressure()
        self._copies = copies
        self._now = now
        self._queues: dict[Key, _Queue] = {}
        self._rates: dict[Key, _Rate] = {}
        self._begun = False
        self.waiting = 0
        """Jobs that wait, all in all."""

    def reading(self) -> None:
        """The backlog is about to be read: what moves from now on comes on top of what that tells."""
        for queue in self._queues.values():
            queue.moved, queue.moved_s = 0, 0.0

    def read(self, backlog: Iterable[Backlog]) -> Steps[set[Key]]:
        """Take over what was read; gives back the keys of which more waits than was known here. In steps: what moves
        between them counts."""
        now = self._now()
        grown: set[Key] = set()
        found = {one.key: one for one in backlog}
        for key in [key for key in self._queues if key not in found]:
            queue = self._queues[key]
            self._set(key, queue, queue.moved, queue.moved_s)
            if queue.waiting <= 0:
                del self._queues[key]
        for number, one in enumerate(found.values(), 1):
            if self._correct(one, now):
                grown.add(one.key)
            if number % STEP == 0:
                yield
        self._begun = True
        self._renew(now)
        return grown

    def _correct(self, one: Backlog, now: float) -> bool:
        """Whether more waits of the model than was known here."""
        key, queue = one.key, self._queues.setdefault(one.key, _Queue())
        more = one.waiting + queue.moved - queue.waiting
        if not more and abs(one.work_s + queue.moved_s - queue.work_s) <= SAME * queue.work_s:
            return False
        if more > 0 and self._begun:
            self._rate(key).add(more, now)
        self._set(key, queue, one.waiting + queue.moved, one.work_s + queue.moved_s)
        return more > 0

    def came(self, jobs: Iterable[tuple[Key, float]]) -> None:
        """Jobs of these keys with so much work (seconds) wait from now on."""
        now = self._now()
        for key, work_s in jobs:
            self._rate(key).add(1, now)
            self._move(key, 1, work_s)

    def back(self, key: Key, work_s: float) -> None:
        """A job waits again: no arrival."""
        self._move(key, 1, work_s)

    def gone(self, job: Waiting) -> None:
        """The job waits no longer."""
        self._move(job.key, -1, -job.work_s)

    def first(self, key: Key, since: float | None) -> None:
        """Since when the first job of a key has waited; None where none does."""
        queue = self._queues.get(key)
        if queue is not None:
            queue.since = since

    def moved(self, keys: Iterable[Key]) -> None:
        """More or fewer nodes have these models."""
        for key in keys:
            if key in self._queues or key in self.index:
                self._put(key)

    def _rate(self, key: Key) -> _Rate:
        return self._rates.setdefault(key, _Rate(0.0, self._now()))

    def _move(self, key: Key, count: int, work_s: float) -> None:
        queue = self._queues.setdefault(key, _Queue())
        queue.moved, queue.moved_s = queue.moved + count, queue.moved_s + work_s
        self._set(key, queue, queue.waiting + count, queue.work_s + work_s)

    def _set(self, key: Key, queue: _Queue, waiting: int, work_s: float) -> None:
        waiting = max(0, waiting)
        work_s = max(0.0, work_s) if waiting else 0.0
        if waiting == 0:
            queue.since = None
        changed = (waiting, work_s) != (queue.waiting, queue.work_s)
        self.waiting += waiting - queue.waiting
        queue.waiting, queue.work_s = waiting, work_s
        if changed:
            self._put(key)

    def _renew(self, now: float) -> None:
        """Bring up to date what changes with time alone, and forget models that nobody asks for any more."""
        for key in [key for key, rate in self._rates.items() if rate.now(now) < NEGLIGIBLE]:
            del self._rates[key]
        for key in self._rates.keys() - self._queues.keys():
            self._put(key)
        for key, queue in self._queues.items():
            if queue.since is not None and now - queue.since > AGED * self.index[key].age_s + AGED_S:
                self._put(key)
        known = self._rates.keys() | self._queues.keys()
        if len(self.index) > 2 * len(known) + FEW:
            self.index.replace([self.index[key] for key in known])

    def _put(self, key: Key) -> None:
        now, queue, rate = self._now(), self._queues.get(key) or _Queue(), self._rates.get(key)
        self.index.put(
            Demand(
                key,
                waiting=queue.waiting,
                work_s=queue.work_s,
                arrivals=rate.now(now) if rate is not None else 0.0,
                warm=self._copies.warm(key),
                copies=self._copies.copies(key),
                size=self._copies.size(key),
                coming=self._copies.coming(key),
                age_s=max(0.0, now - queue.since) if queue.since is not None else 0.0,
            )
        )
