"""What goes on beside the requests: readings of the database, sweeps, saving what nodes said, coverage.

Nothing here is on the way of a decision. While the database does not answer every round is tried again at its next
time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import structlog

from dispatcher import coverage
from dispatcher.demand import Demands
from dispatcher.desk import Desk
from dispatcher.documents import stored_orders
from dispatcher.fleet import Fleet
from dispatcher.metrics import Metrics
from dispatcher.needs import Catalogue
from dispatcher.steps import beside
from dispatcher.store.base import Store, StoreUnavailable, Swept
from dispatcher.words import NodeOrders, Rules
from worker.clock import Clock, isoformat
from worker.tasks import cancel_all

log = structlog.get_logger()

COVERAGE_ROLE = "coverage"
STALE_ORDER = timedelta(minutes=30)
"""An order that nobody carried out in this time is taken back, so that the node can get another."""


SELDOM = 20.0
"""What takes long is done the more seldom: its pause is at least so many times what it took."""

SELDOM_MOST = 4.0
"""But at most so many times what it should be: a database that was slow once is no reason to wait for minutes."""

AGAIN_S = 1.0
"""After a failure, at the least."""


def pause(every_s: float, took_s: float, most_s: float) -> float:
    """Seconds until something is done again that should be done so often, when it has taken so long."""
    return max(every_s, min(SELDOM * took_s, most_s))


@dataclass(frozen=True, slots=True)
class Pace:
    """How often each thing is done, in seconds; ``settled`` between two readings of the backlog at the least."""

    backlog: float = 1.0
    settled: float = 0.05
    tick: float = 0.25
    sweep: float = 2.0
    save: float = 3.0
    nodes: float = 4.0
    expire: float = 1.0
    catalogue: float = 10.0
    coverage: float = 5.0

    @property
    def role(self) -> float:
        """How long a process keeps the planning of coverage to itself: longer than it may pause between two plans."""
        return (SELDOM_MOST + 1) * self.coverage


@dataclass(slots=True)
class Health:
    """Whether the database answered lately, and whether the service is being stopped."""

    failing: set[str] = field(default_factory=set)
    stopping: bool = False

    @property
    def reasons(self) -> list[str]:
        """Why no request can be served; nothing where all is well."""
        found = ["database_unavailable"] if self.failing else []
        return [*found, "stopping"] if self.stopping else found


@dataclass(slots=True)
class Upkeep:
    """One task runs `run`. ``holder`` is this process's name among those that share the database."""

    store: Store
    fleet: Fleet
    demands: Demands
    desk: Desk
    metrics: Metrics
    clock: Clock
    rules: Rules
    max_deliveries: int
    holder: str
    health: Health = field(default_factory=Health)
    catalogue: Catalogue = field(default_factory=Catalogue)
    pace: Pace = field(default_factory=Pace)
    _sources: object = None

    async def begin(self) -> None:
        """The first readings, before any request is served. Raises `StoreUnavailable`."""
        await self.read_catalogue()
        await self.read_nodes()
        await self.read_backlog()

    async def run(self) -> None:
        """Until cancelled; what was heard of nodes is saved at the end once more."""
        rounds: dict[str, tuple[Callable[[], Awaitable[object]], float]] = {
            "backlog": (self.watch, 0.0),
            "sweep": (self.sweep, self.pace.sweep),
            "save": (self.save_nodes, self.pace.save),
            "nodes": (self.read_nodes, self.pace.nodes),
            "catalogue": (self.read_catalogue, self.pace.catalogue),
            "coverage": (self.cover, self.pace.coverage),
            "tick": (self.tick, self.pace.tick),
            "expire": (self.expire, self.pace.expire),
        }
        tasks = {asyncio.create_task(self._again(name, *what), name=f"upkeep-{name}") for name, what in rounds.items()}
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
            for task in done:
                task.result()
        finally:
            await cancel_all(tasks)
            await self._once("save", self.save_nodes)

    async def _again(self, name: str, action: Callable[[], Awaitable[object]], every_s: float) -> None:
        while True:
            began = _now()
            went_well = await self._once(name, action)
            pause_s = pause(every_s, _now() - began, SELDOM_MOST * every_s)
            await asyncio.sleep(pause_s if went_well else max(every_s, AGAIN_S))

    async def _once(self, name: str, action: Callable[[], Awaitable[object]]) -> bool:
        try:
            await action()
        except StoreUnavailable as error:
            if not self.health.failing:
                log.warning("database_unavailable", doing=name, error=str(error))
            self.health.failing.add(name)
            return False
        if name in self.health.failing:
            self.health.failing.discard(name)
            if not self.health.failing:
                log.info("database_available")
        return True

    async def watch(self) -> None:
        """Read the backlog, then wait until it may have changed."""
        ticket, began = self.store.ticket(), _now()
        await self.read_backlog()
        pause_s = pause(self.pace.settled, _now() - began, self.pace.backlog)
        await self.store.changed(self.pace.backlog, ticket)
        await asyncio.sleep(pause_s)

    async def read_backlog(self) -> None:
        self.demands.reading()
        self.desk.wake(await beside(self.demands.read(await self.store.backlog())))

    async def tick(self) -> None:
        self.desk.tick()

    async def expire(self) -> None:
        self.fleet.expire()
        self.desk.lookout.heads.prune(_now())

    async def sweep(self) -> Swept:
        swept = await self.store.sweep(max_deliveries=self.max_deliveries)
        for what in ("vanished", "woken", "expired", "limited"):
            if count := getattr(swept, what):
                self.metrics.swept(what, count)
                log.info("jobs_swept", what=what, count=count)
        return swept

    async def save_nodes(self) -> None:
        rows = await beside(self.fleet.unsaved())
        if not rows:
            return
        try:
            await self.store.save_nodes(rows)
        except StoreUnavailable:
            self.fleet.not_saved(rows)
            raise

    async def read_nodes(self) -> None:
        await beside(self.fleet.read(await self.store.nodes()))

    async def read_catalogue(self) -> None:
        sources = await self.store.models()
        if sources != self._sources:
            self._sources = sources
            self.catalogue = Catalogue(sources)
            self.fleet.relabel(self.catalogue)

    async def cover(self) -> dict[str, NodeOrders]:
        """Plan what nodes are to fetch and to drop, where this is the process that does; gives back what is new."""
        if not await self.store.lead(COVERAGE_ROLE, self.holder, timedelta(seconds=self.pace.role)):
            return {}
        self._take_back_stale()
        views = [self.fleet.view(seat) for seat in self.fleet.alive()]
        demand, known = dict(self.demands.index), self.catalogue.by_key
        planned = await beside(coverage.plan_in_steps(views, demand, known, self.rules))
        orders = {seat.id: NodeOrders() for seat in self.fleet.alive() if seat.stored and not _any(seat.due)} | planned
        stored = {node: self._stored(found) for node, found in orders.items()}
        if stored:
            await self.store.save_orders(stored)
        for node, found in orders.items():
            self.fleet.order(node, found, stored[node])
            if _any(found):
                self.desk.nudge(node)
        return orders

    def _stored(self, orders: NodeOrders) -> dict[str, object]:
        return {**stored_orders(orders), "at": isoformat(self.clock.now())} if _any(orders) else {}

    def _take_back_stale(self) -> None:
        for seat in self.fleet:
            at = seat.stored.get("at")
            if at is not None and datetime.fromisoformat(at) + STALE_ORDER < self.clock.now():
                log.info("order_stale", node=seat.id)
                self.fleet.order(seat.id, NodeOrders(), seat.stored)


def _now() -> float:
    return asyncio.get_running_loop().time()


def _any(orders: NodeOrders) -> bool:
    return bool(orders.download or orders.evict)
