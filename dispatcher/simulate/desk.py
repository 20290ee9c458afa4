"""What the dispatcher knows in a simulation: the line, what nodes reported last, demand, and who calls for work."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from math import exp

from dispatcher.matching import Pressure
from dispatcher.simulate.line import Line
from dispatcher.words import NO_MODEL, Board, Demand, Key, Need, NodeOrders, NodeView, Waiting

SMOOTH_S = 300.0
"""The time over which arrivals are smoothed."""

FRESH_S = 5.0
"""How often what time alone changes in the demand is brought up to date."""

EACH = 4
"""How many jobs of each model are on a board."""

Whereabouts = dict[Key, dict[str, None]]


class DemandBook:
    """Demand by model. What changed is noted as it changes and told to the `Pressure` when a decision looks."""

    def __init__(self, line: Line) -> None:
        self.now = 0.0
        self.warm: Whereabouts = {}
        self.held: Whereabouts = {}
        self.coming: Whereabouts = {}
        self._line = line
        self._pressure = Pressure()
        self._sizes: dict[Key, int | None] = {}
        self._waiting: dict[Key, int] = {}
        self._work: dict[Key, float] = {}
        self._rate: dict[Key, tuple[float, float]] = {}
        self._since: dict[str, float] = {}
        self._stale: dict[Key, None] = {}
        self._refreshed = 0.0

    def fresh(self) -> Pressure:
        """All that is known now."""
        if self.now - self._refreshed > FRESH_S:
            self._refreshed = self.now
            self._stale |= {key: None for key, count in self._waiting.items() if count}
        for key in self._stale:
            self._pressure.put(self._figure(key))
        self._stale.clear()
        return self._pressure

    def all(self) -> dict[Key, Demand]:
        """Every model's figures, made anew."""
        return {key: self._figure(key) for key in self._rate}

    def _figure(self, key: Key) -> Demand:
        head = self._line.heads(key, 1)
        return Demand(
            key=key,
            waiting=self._waiting.get(key, 0),
            work_s=self._work.get(key, 0.0),
            arrivals=self._arrivals(key),
            warm=len(self.warm.get(key, ())),
            copies=len(self.held.get(key, ())),
            size=self._sizes.get(key),
            coming=len(self.coming.get(key, ())),
            age_s=self.now - self._since.get(head[0].id, self.now) if head else 0.0,
        )

    def _arrivals(self, key: Key) -> float:
        rate, then = self._rate[key]
        return rate * exp(-(self.now - then) / SMOOTH_S)

    def arrived(self, job: Waiting) -> None:
        """A job was submitted; each of its models is wanted once more."""
        self._since[job.id] = self.now
        for each in job.needs or (Need(NO_MODEL, "", ""),):
            rate = self._arrivals(each.key) if each.key in self._rate else 0.0
            self._rate[each.key] = (rate + 1 / SMOOTH_S, self.now)
            self._sizes[each.key] = each.size
            self._stale[each.key] = None

    def waits(self, job: Waiting, *, more: bool) -> None:
        """It joined the line, or left it."""
        sign, key = 1 if more else -1, job.key
        self._waiting[key] = self._waiting.get(key, 0) + sign
        self._work[key] = self._work.get(key, 0.0) + sign * job.work_s if self._waiting[key] else 0.0
        self._stale[key] = None

    def index(self, where: Whereabouts, node: str, old: Collection[Key], new: Collection[Key]) -> None:
        """This node has the new ones now, and of the old ones no others."""
        for key in sorted(old):
            if key not in new:
                where[key].pop(node, None)
                self._change(key)
        for key in sorted(new):
            if key not in old:
                where.setdefault(key, {})[node] = None
                self._change(key)

    def _change(self, key: Key) -> None:
        if key in self._rate:
            self._stale[key] = None


class Desk:
    """The dispatcher's side of the simulation. ``now`` is virtual time in seconds.

    ``callers``: nodes whose request for work is held, in the order in which they called, and since when. ``fair``:
    jobs get fair ranks among users as the store gives them; else they stand in the order of their submission.
    ``passed``: how often the first in line was passed over since it came to be that; ``most_passed`` the most ever.
    """

    def __init__(self, *, fair: bool = True) -> None:
        self.line = Line()
        self.demand = DemandBook(self.line)
        self.views: dict[str, NodeView] = {}
        self.callers: dict[str, float] = {}
        self.passed = 0
        self.most_passed = 0
        self._fair = fair
        self._first: str | None = None
        self._virtual = 0.0
        self._ranks: dict[str, float] = {}
        self._owed: dict[str, NodeOrders] = {}

    @property
    def now(self) -> float:
        return self.demand.now

    @now.setter
    def now(self, now: float) -> None:
        self.demand.now = now

    def submit(self, job: Waiting) -> Waiting:
        """Put it in line, with its rank: by start-time fair queueing among users, else by the time."""
        rank = self.now
        if self._fair:
            rank = max(self._virtual, self._ranks.get(job.user, 0.0)) + job.work_s
            self._ranks[job.user] = rank
        ranked = replace(job, rank=rank)
        self.demand.arrived(ranked)
        self.give_back(ranked)
        return ranked

    def give_back(self, job: Waiting) -> None:
        """It waits (again), at its own place."""
        self.line.add(job)
        self.demand.waits(job, more=True)

    def grant(self, job: Waiting, node: str) -> None:
        """It is this node's now, which will have its models in memory."""
        if self._oldest() is job:
            self._first, self.passed = None, 0
        else:
            self.passed += 1
            self.most_passed = max(self.most_passed, self.passed)
        self.line.remove(job)
        self.demand.waits(job, more=False)
        self._virtual = max(self._virtual, job.rank)
        if job.needs and node in self.views:
            loaded = frozenset(each.key for each in job.needs)
            self.see(replace(self.views[node], loaded=loaded, resident_s=0.0))

    def _oldest(self) -> Waiting | None:
        first = self.line.first
        if first is not None and first.id != self._first:
            self._first, self.passed = first.id, 0
        return first

    def board(self, keys: Iterable[Key]) -> Board:
        """What a decision for one node looks at."""
        first = self._oldest()
        heads = {key: found for key in keys if (found := self.line.heads(key, EACH))}
        return Board(heads, self.demand.fresh(), first, self.passed)

    def see(self, view: NodeView) -> None:
        """A node's report, or what follows from a grant or an order."""
        old = self.views.get(view.id, NodeView(view.id))
        self._index(view.id, old, view)
        self.views[view.id] = view

    def silent(self, node: str) -> None:
        """It was not heard of for too long: its copies do not count any more."""
        if node in self.views:
            self._index(node, self.views.pop(node), NodeView(node))
        self._owed.pop(node, None)

    def _index(self, node: str, old: NodeView, new: NodeView) -> None:
        demand = self.demand
        for where, gone, came in (
            (demand.warm, old.loaded, new.loaded),
            (demand.held, old.held, new.held),
            (demand.coming, old.coming, new.coming),
        ):
            if gone is not came:
                demand.index(where, node, gone, came)

    def plan(self, orders: Mapping[str, NodeOrders]) -> None:
        """What coverage asks of nodes; each is told when it next calls or beats."""
        for node, asked in orders.items():
            view = self.views.get(node)
            if view is not None and (asked.download or asked.evict):
                owed = self._owed.get(node, NodeOrders())
                self._owed[node] = NodeOrders(owed.download + asked.download, owed.evict + asked.evict)
                self.see(replace(view, coming=view.coming | {each.key for each in asked.download}))

    def told(self, node: str) -> NodeOrders:
        """The orders that this node was not told yet; now it is."""
        return self._owed.pop(node, NodeOrders())
