"""Where the copies that are missing go, and what gives way to them."""

from __future__ import annotations

from bisect import insort
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from dispatcher.coverage.targets import PORTION, Targets, rate, targets_in_steps, value, work_of
from dispatcher.steps import Steps, whole
from dispatcher.words import Demand, Key, Need, NodeOrders, NodeView, Rules, Source

_SEATS = 8
"""Nodes, or models to be placed, of one step."""


def plan(
    nodes: Sequence[NodeView], demand: Mapping[Key, Demand], catalogue: Mapping[Key, Source], rules: Rules
) -> dict[str, NodeOrders]:
    """What each node should fetch and drop now; a node without orders is left out.

    A node fetches one model at a time, and of one model at most one more than there are copies are fetched at once, so
    that its source is not stormed. The worthiest for its size goes first; each to the node that has it soonest, a busy
    one counting as slower, where something must be dropped for it only if it fits nowhere else. Only what is in no
    memory and has more copies than are to be kept is dropped.

    The same plan for the same fleet, in whatever order it is told.
    """
    return whole(plan_in_steps(nodes, demand, catalogue, rules))


def plan_in_steps(
    nodes: Sequence[NodeView], demand: Mapping[Key, Demand], catalogue: Mapping[Key, Source], rules: Rules
) -> Steps[dict[str, NodeOrders]]:
    """`plan`, bit by bit: for a thousand nodes it takes a fifth of a second. Nothing that is given may change."""
    fleet = yield from _fleet(nodes, demand, catalogue, rules)
    missing = fleet.missing()
    seats: list[_Seat] = []
    for number, node in enumerate(sorted(nodes, key=lambda n: n.id) if missing else ()):
        if node.coming <= node.held:
            insort(seats, fleet.seat(node), key=_Seat.order)
        if number % _SEATS == 0:
            yield
    orders: dict[str, NodeOrders] = {}
    for number, key in enumerate(missing):
        found = fleet.soonest(seats, key)
        if found is not None:
            seat, dropped = found
            seats.remove(seat)
            fleet.drop(seat, dropped)
            orders[seat.node.id] = NodeOrders((fleet.need(key),), tuple(map(fleet.need, dropped)))
        if number % _SEATS == 0:
            yield
    return orders


def _fleet(
    nodes: Sequence[NodeView], demand: Mapping[Key, Demand], catalogue: Mapping[Key, Source], rules: Rules
) -> Steps[_Fleet]:
    capacity = sum(_capacity(node, rules) for node in nodes)
    targets = yield from targets_in_steps(demand.values(), len(nodes), capacity, rules)
    copies: Counter[Key] = Counter()
    coming: Counter[Key] = Counter()
    for number, node in enumerate(nodes):
        copies.update(node.held)
        coming.update(node.coming - node.held)
        if number % PORTION == 0:
            yield
    return _Fleet(demand, catalogue, rules, targets, copies, coming)


@dataclass(frozen=True, eq=False, slots=True)
class _Seat:
    """A node that may be given an order. ``spare``: files that may go for it, by their keys, with their sizes, the
    least needed first.

    ``room``: bytes that a file may take here at most. ``slow``: how long a byte takes to come, where a node whose time
    jobs for its models take counts as slower; each copy does an even share of those.
    """

    node: NodeView
    files: Mapping[Key, Sequence[Key]]
    free: int
    spare: tuple[tuple[Sequence[Key], int], ...]
    room: int
    slow: float

    def order(self) -> tuple[float, int, str]:
        return (self.slow, -self.free, self.node.id)


@dataclass(frozen=True, eq=False, slots=True)
class _Fleet:
    """All that a plan looks at; ``copies`` counts on while it is made."""

    demand: Mapping[Key, Demand]
    catalogue: Mapping[Key, Source]
    rules: Rules
    targets: Targets
    copies: Counter[Key]
    coming: Counter[Key]

    def missing(self) -> list[Key]:
        """The models that copies are to be fetched of, a model once for each, in the order of urgency."""
        found = [
            (-value(demand, copy) / self.size(key), key, copy)
            for key, demand in self.demand.items()
            if key in self.catalogue
            for copy in self._lacking(key)
        ]
        return [key for _, key, _ in sorted(found)]

    def _lacking(self, key: Key) -> range:
        there, on_its_way = self.copies[key], self.coming[key]
        first = there + on_its_way + 1
        return range(first, min(self.targets.want.get(key, 0), 2 * there + 1) + 1)

    def seat(self, node: NodeView) -> _Seat:
        files = _files(node)
        spare = sorted(
            (self._worth(names), key, node.sizes.get(key) or self.size(key))
            for key, names in files.items()
            if self._is_spare(node, names)
        )
        free = _free(node, self.rules)
        room = min(_capacity(node, self.rules), free + sum(size for _, _, size in spare))
        given = tuple((files[key], size) for _, key, size in spare)
        slow = (1.0 + self._busy(files.values())) / node.measured.network
        return _Seat(node, files, free, given, room, slow)

    def _is_spare(self, node: NodeView, names: Sequence[Key]) -> bool:
        """Whether nobody needs this copy: under no name of its file it is in memory, or one of those to be kept."""
        return all(name not in node.loaded and self.copies[name] > self.targets.keep.get(name, 0) for name in names)

    def _worth(self, names: Sequence[Key]) -> float:
        asked = [self.demand[name] for name in names if name in self.demand]
        return max((value(d, max(1, self.copies[d.key])) for d in asked if rate(d) > 0), default=0.0)

    def _busy(self, files: Iterable[Sequence[Key]]) -> float:
        asked = (self.demand[name] for names in files for name in names if name in self.demand)
        return sum(rate(d) * work_of(d) / self.copies[d.key] for d in asked)

    def soonest(self, seats: Sequence[_Seat], key: Key) -> tuple[_Seat, tuple[Key, ...]] | None:
        """Of the seats, in their order, the node that has it soonest, and what it has to drop; rather nothing."""
        size = self.size(key)
        dropping: tuple[_Seat, tuple[Key, ...]] | None = None
        for seat in seats:
            if seat.room < size or key in seat.node.held:
                continue
            if seat.free >= size:
                return seat, ()
            if dropping is None and (dropped := self._dropped(seat, size)) is not None:
                dropping = seat, dropped
        return dropping

    def _dropped(self, seat: _Seat, size: int) -> tuple[Key, ...] | None:
        """What must go there for a file of this size; None where that is not to spare any more."""
        lacking, gone = size - seat.free, list[Key]()
        for names, freed in seat.spare:
            if lacking <= 0:
                break
            if self._is_spare(seat.node, names):
                lacking -= freed
                gone.append(names[0])
        return tuple(gone) if lacking <= 0 else None

    def drop(self, seat: _Seat, keys: Iterable[Key]) -> None:
        self.copies.subtract(name for key in keys for name in seat.files[key])

    def size(self, key: Key) -> int:
        source, demand = self.catalogue.get(key), self.demand.get(key)
        told = source.size if source is not None else None
        return told or (demand.size if demand is not None else None) or self.rules.size

    def need(self, key: Key) -> Need:
        source = self.catalogue.get(key)
        if source is None:
            kind, _, name = key.partition("@" if "@" in key.partition("/")[0] else "/")
            return Need(key, kind, name)
        return Need(key, source.kind, source.name, source.size, source.url, source.sha256)


def _files(node: NodeView) -> dict[Key, list[Key]]:
    """All keys of each file that a node has, by the first of them."""
    files = {key: [key] for key in sorted(node.held) if key not in node.same}
    for alias, first in sorted(node.same.items()):
        if first in files:
            files[first].append(alias)
    return files


def _held(node: NodeView, rules: Rules) -> int:
    return sum(node.sizes.get(key) or rules.size for key in node.held - node.same.keys())


def _capacity(node: NodeView, rules: Rules) -> int:
    """Bytes of the node's cache; where it does not tell, what it has and may take."""
    if node.cap is not None:
        return node.cap
    return rules.cap if node.free is None else node.free + _held(node, rules)


def _free(node: NodeView, rules: Rules) -> int:
    return node.free if node.free is not None else max(0, _capacity(node, rules) - _held(node, rules))
