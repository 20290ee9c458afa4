"""Leases renewed in batches: what many nodes hold goes to the database in one statement."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

from dispatcher.store.base import Extended, Store, StoreUnavailable
from worker.wire import Running

GATHER_S = 0.01
"""How long the first of a batch waits for others; those that come while a batch is under way share the next one."""

BATCH_MOST = 2000
NOTED_MOST = 200_000

T = TypeVar("T")
Held = tuple[str, int, float | None, str | None]


def held_of(running: Iterable[Running]) -> tuple[list[Held], frozenset[str]]:
    """What can be renewed of what a node says it holds, and the ids of what cannot: no token of ours."""
    held: list[Held] = []
    lost = set()
    for one in running:
        if isinstance(one.token, int) and not isinstance(one.token, bool):
            held.append((one.id, one.token, one.progress, one.hop))
        else:
            lost.add(one.id)
    return held, frozenset(lost)


@dataclass(slots=True)
class _Waiting:
    held: list[Held]
    answer: asyncio.Future[Extended]


@dataclass(slots=True)
class Heartbeats:
    """Owned by one task that runs `run`; the rest may be called at any time in its loop.

    What is known here of leases is what was noted lately: which node got a job, when it was renewed, and whether it is
    marked as cancelled, which its node hears at whatever it asks next.
    """

    store: Store
    lease: timedelta
    _renewed: OrderedDict[str, float] = field(default_factory=OrderedDict)
    _owners: OrderedDict[str, tuple[int, str]] = field(default_factory=OrderedDict)
    _cancelled: OrderedDict[str, None] = field(default_factory=OrderedDict)
    _waiting: list[_Waiting] = field(default_factory=list)
    _later: dict[tuple[str, int], Held] = field(default_factory=dict)
    _bell: asyncio.Event = field(default_factory=asyncio.Event)

    async def renew(self, held: list[Held]) -> Extended:
        """Renew these now. Raises `StoreUnavailable`."""
        if not held:
            return Extended()
        waiting = _Waiting(held, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        self._bell.set()
        return await waiting.answer

    def mention(self, held: Iterable[Held]) -> None:
        """A node that asks for work says that it holds these: renewed with the next batch, where they need it."""
        now = asyncio.get_running_loop().time()
        for one in held:
            if self._renewed.get(one[0], -1e9) < now - self.lease.total_seconds() / 4:
                self._later[one[:2]] = one
                self._bell.set()

    def leased(self, job_id: str, token: int, node: str) -> None:
        """The node got the job now, under this token."""
        _note(self._renewed, job_id, asyncio.get_running_loop().time())
        _note(self._owners, job_id, (token, node))

    def owner(self, job_id: str, token: Any) -> str | None:
        """Which node got the job from this process under this token; None where nobody here knows."""
        known, node = self._owners.get(job_id, (None, None))
        return node if token == known else None

    def cancel(self, job_ids: Iterable[str]) -> None:
        """These are marked as cancelled."""
        for job_id in job_ids:
            _note(self._cancelled, job_id, None)

    def cancelled(self, held: Iterable[Held]) -> frozenset[str]:
        """Which of these are known to be marked as cancelled."""
        return frozenset(one[0] for one in held if one[0] in self._cancelled)

    def over(self, job_id: str) -> None:
        """The job is nobody's any more."""
        for noted in (self._renewed, self._owners, self._cancelled):
            noted.pop(job_id, None)

    async def run(self) -> None:
        """Serve until cancelled."""
        try:
            while True:
                await self._bell.wait()
                self._bell.clear()
                await asyncio.sleep(GATHER_S)
                await self._flush()
        finally:
            for waiting in self._waiting:
                waiting.answer.cancel()

    async def _flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        later, self._later = self._later, {}
        held = {one[:2]: one for one in later.values()} | {one[:2]: one for each in waiting for one in each.held}
        try:
            lost, cancelled = await self._extended(held.values())
            for one in waiting:
                gone = frozenset(each[0] for each in one.held if each[:2] in lost)
                ids = frozenset(each[0] for each in one.held)
                if not one.answer.done():
                    one.answer.set_result(Extended(gone, ids & cancelled - gone))
        except StoreUnavailable as error:
            for one in waiting:
                if not one.answer.done():
                    one.answer.set_exception(error)
        finally:
            for one in waiting:
                one.answer.cancel()

    async def _extended(self, held: Collection[Held]) -> tuple[set[tuple[str, int]], set[str]]:
        """Renew all of these: what is lost, by job and token, and which jobs are marked as cancelled."""
        began = asyncio.get_running_loop().time()
        lost: set[tuple[str, int]] = set()
        cancelled: set[str] = set()
        for part in _parts(held):
            extended = await self.store.extend(part, self.lease)
            lost |= {one[:2] for one in part if one[0] in extended.lost}
            cancelled |= extended.cancelled
        for job_id, *_ in held:
            _note(self._renewed, job_id, began)
        self.cancel(cancelled)
        for job_id, _ in lost:
            self.over(job_id)
        return lost, cancelled


def _parts(held: Iterable[Held]) -> list[list[Held]]:
    """Bounded parts in which no job stands twice: a stale token and the holder's may well be renewed at once."""
    parts: list[dict[str, Held]] = []
    for one in held:
        part = next((part for part in parts if one[0] not in part and len(part) < BATCH_MOST), None)
        if part is None:
            parts.append(part := {})
        part[one[0]] = one
    return [list(part.values()) for part in parts]


def _note(noted: OrderedDict[str, T], job_id: str, value: T) -> None:
    noted.pop(job_id, None)
    noted[job_id] = value
    while len(noted) > NOTED_MOST:
        noted.popitem(last=False)
