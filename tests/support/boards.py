"""A board in memory for the desk: jobs that wait, granted as told; for tests of what a real database seldom does."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, cast

from dispatcher.demand import Demands
from dispatcher.desk import Desk
from dispatcher.fleet import Fleet
from dispatcher.lookout import Lookout
from dispatcher.metrics import Metrics
from dispatcher.steps import whole
from dispatcher.store.base import Backlog, Extended, Grant, JobRow, Pick, Store, StoreUnavailable
from dispatcher.words import Key, Need, Rules, Waiting
from tests.support.clock import FakeClock
from worker.wire import Availability, HeldModel, NodeInfo

AT = datetime(2026, 3, 1, tzinfo=UTC)
LEASE = timedelta(seconds=120)


def waiting(id: str, model: str = "a", **fields: Any) -> Waiting:
    return Waiting(id, (Need(f"checkpoint/{model}", "checkpoint", f"{model}.safetensors", 10**9),), since=AT, **fields)


def asking(node: str, *loaded: str, disk: Sequence[str] = ()) -> Availability:
    """What a node says that has these checkpoints."""
    models = [HeldModel(kind="checkpoint", name=f"{name}.safetensors", tier="vram", size=10**9) for name in loaded]
    models += [HeldModel(kind="checkpoint", name=f"{name}.safetensors", size=10**9) for name in disk]
    return Availability(node=NodeInfo(id=node, instance="1"), models=tuple(models))


class BoardStore:
    """``fails`` are verbs that do not answer, ``refused`` jobs that another was quicker with; ``gate`` holds back."""

    def __init__(self, *jobs: Waiting) -> None:
        self.jobs = {job.id: job for job in jobs}
        self.fails: set[str] = set()
        self.refused: set[str] = set()
        self.calls: list[str] = []
        self.released: list[tuple[str, str]] = []
        self.lost: frozenset[str] = frozenset()
        self.cancelled: frozenset[str] = frozenset()
        self.gate = asyncio.Event()
        self.gate.set()
        self.granting = asyncio.Event()
        self._token = 0

    def _called(self, verb: str) -> None:
        self.calls.append(verb)
        if verb in self.fails:
            raise StoreUnavailable(verb)

    async def board(
        self, wanted: Mapping[Key, int], *, but: Collection[str] = ()
    ) -> tuple[dict[Key, list[Waiting]], Waiting | None, int]:
        self._called("board")
        line = sorted(self.jobs.values(), key=lambda job: job.order)
        heads = {key: [job for job in line if job.key == key][:each] for key, each in wanted.items()}
        return heads, next((job for job in line if job.id not in but), None), 0

    async def grant(self, picks: Sequence[Pick], lease: timedelta, *, passed: str | None) -> list[Grant | None]:
        self.granting.set()
        await self.gate.wait()
        self._called("grant")
        return [self._granted(pick, lease) for pick in picks]

    def _granted(self, pick: Pick, lease: timedelta) -> Grant | None:
        line = sorted((job for job in self.jobs.values() if job.key == pick.key), key=lambda job: job.order)
        found = self.jobs.get(pick.job_id or "") or next(iter(line), None)
        if found is None or pick.job_id in self.refused:
            self.jobs.pop(pick.job_id or "", None)
            return None
        self._token += 1
        del self.jobs[found.id]
        return Grant(found, {"id": found.id}, self._token, 1, (), lease, AT)

    async def release(self, job_id: str, token: int, **fields: Any) -> JobRow | None:
        self._called("release")
        self.released.append((job_id, fields["code"]))
        return None

    async def extend(self, held: Sequence[tuple[str, int, float | None, str | None]], lease: timedelta) -> Extended:
        self._called("extend")
        await self.gate.wait()
        ids = frozenset(one[0] for one in held)
        return Extended(self.lost & ids, self.cancelled & ids)


def a_desk(store: BoardStore, rules: Rules | None = None) -> Desk:
    """A desk over this board that knows what waits."""
    clock = FakeClock(AT)
    fleet = Fleet(clock, timedelta(seconds=90))
    demands = Demands(fleet, asyncio.get_running_loop().time)
    fleet.on_moved(demands.moved)
    given, rules = cast("Store", store), rules or Rules()
    desk = Desk(
        given, fleet, demands, Lookout(given, demands, rules, clock, fleet.could), rules, LEASE, clock, Metrics()
    )
    know(desk, store)
    return desk


def know(desk: Desk, store: BoardStore) -> None:
    """Have the desk read what waits, as the upkeep does."""
    desk.demands.reading()
    keys = {job.key for job in store.jobs.values()}
    jobs = store.jobs.values()
    desk.wake(whole(desk.demands.read([Backlog(key, sum(job.key == key for job in jobs), 6.0) for key in keys])))
