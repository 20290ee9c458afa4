"""Where nodes' requests for work become leases: many requests, one look at the board, one grant.

While the database answers for one batch of nodes the next one gathers: a lone request is served at once, a thousand
share a few statements. A node that gets nothing may leave its request here until work comes that concerns it.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from math import inf

import structlog

from dispatcher.batch import Line, decide, pick_of
from dispatcher.demand import Demands
from dispatcher.fleet import Fleet
from dispatcher.lookout import Lookout
from dispatcher.metrics import Metrics
from dispatcher.store.base import Grant, JobRow, Store, StoreUnavailable
from dispatcher.words import NO_MODEL, Choice, Key, NodeView, Option, Rules
from worker.clock import Clock

log = structlog.get_logger()

BATCH_MOST = 64
GATHER_S = 0.025
"""Between two batches lies so much time: what comes within it shares a few statements."""

STRANGERS = 8
"""Of the held requests of nodes that have nothing to do with what came, how many are looked at at once."""

TRIES = 3
BREATH = 16
"""After so many decisions in a row everything else gets its turn."""

AGAIN_S, AGAIN_LEAST_S = 2.0, 0.1
"""While jobs wait, a held request is looked at again after this time at the latest, and at the earliest."""

USUAL_S = 6.0
"""What a job's generation is taken for until the backlog is read again, in seconds."""

REMEMBERED = 10_000
UNDELIVERED = "draining"
"""The reason under which a job goes back whose node was gone before the answer: an end that counts for nothing."""


@dataclass(frozen=True, slots=True)
class Assignment:
    """Why a job went where it did."""

    node: str
    option: Option
    at: datetime


@dataclass(frozen=True, slots=True)
class Offer:
    """What a request for work brought: a job, or nothing and why not. ``held``: whether it had to wait for that."""

    grant: Grant | None = None
    choice: Choice | None = None
    held: bool = False


@dataclass(eq=False, slots=True)
class _Ask:
    """One request. ``until`` in loop time: then it is answered whatever there is; ``again_at``: then it is weighed."""

    node: str
    until: float
    answer: asyncio.Future[Offer]
    queued: bool = True
    tries: int = 0
    choice: Choice | None = None
    again_at: float = inf
    timer: asyncio.TimerHandle | None = None

    def reply(self, offer: Offer) -> None:
        if self.timer is not None:
            self.timer.cancel()
        if not self.answer.done():
            self.answer.set_result(offer)


@dataclass(frozen=True, slots=True)
class _Picked:
    """What was chosen for a request."""

    ask: _Ask
    view: NodeView
    option: Option


@dataclass(slots=True)
class Desk:
    """Owned by one task that runs `run`; everything else may be called at any time in its loop."""

    store: Store
    fleet: Fleet
    demands: Demands
    lookout: Lookout
    rules: Rules
    lease: timedelta
    clock: Clock
    metrics: Metrics
    assignments: OrderedDict[str, Assignment] = field(default_factory=OrderedDict)
    _fresh: deque[_Ask] = field(default_factory=deque)
    _held: dict[str, _Ask] = field(default_factory=dict)
    _woken: set[Key] = field(default_factory=set)
    _undelivered: list[tuple[str, Grant]] = field(default_factory=list)
    _bell: asyncio.Event = field(default_factory=asyncio.Event)
    _quiet: asyncio.Event = field(default_factory=asyncio.Event)
    _stopping: bool = False

    @property
    def polls(self) -> int:
        """Requests that are held back."""
        return len(self._held)

    async def ask(self, node: str, wait_s: float) -> Offer:
        """A job for the node, which the fleet knows; within the time it is willing to wait.

        An earlier request of the same node is answered with nothing: its connection is gone. Whoever is cancelled
        here leaves nothing leased. Raises `StoreUnavailable`.
        """
        loop = asyncio.get_running_loop()
        if self._stopping:
            return Offer()
        self.nudge(node)
        ask = _Ask(node, loop.time() + wait_s, loop.create_future())
        self._fresh.append(ask)
        self._quiet.clear()
        self._bell.set()
        try:
            return await ask.answer
        except asyncio.CancelledError:
            if ask.answer.done() and not ask.answer.cancelled() and ask.answer.exception() is None:
                self.undelivered(node, ask.answer.result().grant)
            raise
        finally:
            if self._held.get(node) is ask:
                del self._held[node]
            if ask.timer is not None:
                ask.timer.cancel()

    def nudge(self, node: str) -> None:
        """Answer the request of the node that is held back, if there is one, with nothing."""
        ask = self._held.pop(node, None)
        if ask is not None:
            ask.reply(Offer(None, ask.choice, ask.timer is not None))

    def wake(self, keys: Iterable[Key]) -> None:
        """Jobs of these models came to wait."""
        keys = set(keys)
        if keys:
            self.lookout.heads.forget(keys)
            self._woken |= keys
            self._bell.set()

    def back(self, row: JobRow) -> None:
        """The job waits again."""
        key = row.needs[0].key if row.needs else NO_MODEL
        self.demands.back(key, USUAL_S)
        self.wake([key])

    def tick(self) -> None:
        """Have held requests looked at again whose time has come."""
        if self._held or self._undelivered:
            self._bell.set()

    def undelivered(self, node: str, grant: Grant | None) -> None:
        """The node was gone before it could be told: the job waits again."""
        if grant is not None:
            self._undelivered.append((node, grant))
            self._quiet.clear()
            self._bell.set()

    def stop(self) -> None:
        """Answer everything with nothing, from now on."""
        self._stopping = True
        for node in list(self._held):
            self.nudge(node)
        self._bell.set()

    async def stopped(self) -> None:
        """After `stop`: until the last batch is through."""
        await self._quiet.wait()

    async def run(self) -> None:
        """Serve requests until cancelled."""
        while True:
            self._bell.clear()
            while batch := self._next():
                began = asyncio.get_running_loop().time()
                await self._serve(batch)
                if len(batch) < BATCH_MOST and not self._stopping:
                    await asyncio.sleep(began + GATHER_S - asyncio.get_running_loop().time())
            await self._take_back()
            if not self._fresh:
                self._quiet.set()
            await self._bell.wait()

    def _next(self) -> list[_Ask]:
        """The requests to serve now: those that are new, then held ones whose time has come."""
        batch: list[_Ask] = []
        while self._fresh and len(batch) < BATCH_MOST:
            ask = self._fresh.popleft()
            ask.queued = False
            if not ask.answer.done():
                batch.append(ask)
        if self._stopping:
            for ask in batch:
                ask.reply(Offer())
            return []
        if not self._held:
            self._woken.clear()
        room = BATCH_MOST - len(batch)
        return batch + (self._due(room) if room and self._held else [])

    def _due(self, room: int) -> list[_Ask]:
        """Held requests to look at: of nodes that have to do with the models that came, and those that want it now.

        One that is answered stays among them until whoever asked has taken notice, which this loop must leave time for.
        """
        now = asyncio.get_running_loop().time()
        keys, self._woken = self._woken, set()
        close: list[tuple[int, float, _Ask]] = []
        strangers: list[tuple[float, _Ask]] = []
        for ask in self._held.values():
            if ask.answer.done():
                continue
            seat = self.fleet[ask.node]
            idle = seat.idle_since or now
            if NO_MODEL in keys or not seat.loaded.isdisjoint(keys):
                close.append((0, idle, ask))
            elif not seat.held.isdisjoint(keys):
                close.append((1, idle, ask))
            elif ask.again_at <= now:
                close.append((2, idle, ask))
            elif keys:
                strangers.append((idle, ask))
        close.sort(key=lambda one: one[:2])
        strangers.sort(key=lambda one: one[0])
        found = [ask for *_, ask in close] + [ask for _, ask in strangers[:STRANGERS]]
        for ask in found[room:]:
            ask.again_at = now
        return found[:room]

    async def _serve(self, batch: list[_Ask]) -> None:
        """Decide for each in turn, have the store grant it all at once, and answer or hold back."""
        self.metrics.batch(len(batch))
        picked: list[_Picked] = []
        try:
            views = {ask.node: self.fleet.view(self.fleet[ask.node]) for ask in batch}
            keys, line = await self.lookout.look(views)
            picked = await self._decide(batch, views, keys, line)
            await self._grant(picked, line)
        except StoreUnavailable as error:
            for one in picked:
                self._not_taken(one.option)
            for ask in batch:
                if not ask.answer.done():
                    ask.answer.set_exception(error)
            return
        for ask in batch:
            if not (ask.answer.done() or ask.queued):
                self._hold(ask)

    async def _decide(
        self, batch: list[_Ask], views: Mapping[str, NodeView], keys: Mapping[str, list[Key]], line: Line
    ) -> list[_Picked]:
        """Who gets what: each decision sees what the ones before it took.

        A node that would pass over work of its own model, only because more of it was not read, is asked for again.
        """
        picked = []
        for count, ask in enumerate(batch, 1):
            if count % BREATH == 0:
                await asyncio.sleep(0)
            view, heads, is_short = views[ask.node], self.lookout.heads, self.lookout.is_short
            if ask.answer.done():
                continue
            if any(map(is_short, view.loaded)):
                self._queue(ask)
                continue
            choice = ask.choice = decide(
                view, keys[ask.node], heads.of, self.demands.index, line, self.rules, brief=True
            )
            if choice.option is None:
                if any(map(is_short, keys[ask.node])):
                    self._queue(ask)
            else:
                job = choice.option.job
                heads.take(job)
                self.demands.gone(job)
                self.fleet.gave(ask.node, job)
                line = line.after(job)
                picked.append(_Picked(ask, view, choice.option))
        return picked

    async def _grant(self, picked: list[_Picked], line: Line) -> None:
        if not picked:
            return
        picks = [pick_of(one.ask.node, one.option) for one in picked]
        passed = line.oldest.id if line.oldest is not None else None
        grants = await self.store.grant(picks, self.lease, passed=passed)
        for one, grant in zip(picked, grants, strict=True):
            if grant is None:
                self._not_taken(one.option)
                self._retry(one.ask)
            else:
                self._given(one, grant)

    def _given(self, one: _Picked, grant: Grant) -> None:
        ask, job, option = one.ask, grant.job, one.option
        if job.id != option.job.id:
            self.fleet.over(option.job.id)
            self.fleet.gave(ask.node, job)
        load = job.key != NO_MODEL and job.key not in one.view.loaded
        download = any(need.key not in one.view.held for need in job.needs)
        self.metrics.assigned(option.why, option.cost_s, load=load, download=download)
        self.assignments[job.id] = Assignment(ask.node, option, self.clock.now())
        while len(self.assignments) > REMEMBERED:
            self.assignments.popitem(last=False)
        if ask.answer.done():
            self.undelivered(ask.node, grant)
        else:
            ask.reply(Offer(grant, ask.choice, ask.timer is not None))

    def _not_taken(self, option: Option) -> None:
        """Another was quicker, or nobody knows: what was thought of the job and its model is not so."""
        self.fleet.over(option.job.id)
        self.lookout.heads.forget([option.job.key])

    def _retry(self, ask: _Ask) -> None:
        ask.tries += 1
        if ask.tries < TRIES:
            self._queue(ask)

    def _queue(self, ask: _Ask) -> None:
        """Serve the request once more."""
        if self._held.get(ask.node) is ask:
            del self._held[ask.node]
        ask.queued = True
        self._fresh.append(ask)

    def _hold(self, ask: _Ask) -> None:
        """Leave the request until work comes, or its time is up."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        if ask.node in self.fleet:
            self.fleet.idle(ask.node)
        if self._stopping or ask.until <= now:
            self._held.pop(ask.node, None)
            ask.reply(Offer(None, ask.choice, ask.timer is not None))
            return
        again = ask.choice.again_s if ask.choice is not None else None
        soon = AGAIN_S if again is None else min(AGAIN_S, max(AGAIN_LEAST_S, again))
        ask.again_at = now + soon if self.demands.waiting else inf
        self._held[ask.node] = ask
        if ask.timer is None:
            ask.timer = loop.call_at(ask.until, self._ended, ask)

    def _ended(self, ask: _Ask) -> None:
        if self._held.get(ask.node) is ask:
            del self._held[ask.node]
        ask.reply(Offer(None, ask.choice, ask.timer is not None))

    async def _take_back(self) -> None:
        """Give back what nobody was there to take."""
        undelivered, self._undelivered = self._undelivered, []
        for node, grant in undelivered:
            self.fleet.over(grant.job.id)
            try:
                await self.store.release(
                    grant.job.id, grant.token, code=UNDELIVERED, delay=timedelta(0), charged=False, worker=node
                )
            except StoreUnavailable as error:
                log.warning("undelivered_job_kept", job=grant.job.id, error=str(error))
                self._undelivered.append((node, grant))
            else:
                self.demands.back(grant.job.key, grant.job.work_s)
                self.wake([grant.job.key])
