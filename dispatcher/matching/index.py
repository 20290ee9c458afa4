"""Which models are most in want of a node, kept in order, and which of them a decision looks at."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Mapping
from typing import TypeVar, overload

from dispatcher.matching.cost import MAIN_KEYS
from dispatcher.words import NO_MODEL, Demand, Key, NodeView, Rules

T = TypeVar("T")

PRESSED = 8
"""Of the models that a node lacks, how many of the most pressed are weighed; as many again of those nobody has."""

_AGED = 0.1


def pressure(demand: Demand) -> float:
    """How much a model is in want of one more node: seconds of waiting work for each node that would serve it then.

    Ten seconds for which the first of its jobs has waited count as one more, so that a model with a single job comes up
    too before its batch is as large as others'.
    """
    return (demand.work_s + _AGED * demand.age_s) / (demand.warm + 1)


class Pressure(Mapping[Key, Demand]):
    """The demand by key, with its models kept in the order of their pressure: what `interests` asks in short time.

    One for all nodes; `put` takes O(log n), and `replace` sorts once.
    """

    def __init__(self, demand: Iterable[Demand] = ()) -> None:
        self._known: dict[Key, Demand] = {}
        self._work_s, self._warm = 0.0, 0
        self._pressed: list[tuple[float, Key]] = []
        self._homeless: list[tuple[float, Key]] = []
        self.replace(demand)

    def __getitem__(self, key: Key) -> Demand:
        return self._known[key]

    @overload
    def get(self, key: Key, /) -> Demand | None: ...
    @overload
    def get(self, key: Key, /, default: Demand | T) -> Demand | T: ...
    def get(self, key: Key, /, default: object = None) -> object:
        """As of any mapping, without an exception for each model that nobody asks for."""
        return self._known.get(key, default)

    def __iter__(self) -> Iterator[Key]:
        return iter(self._known)

    def __len__(self) -> int:
        return len(self._known)

    def replace(self, demand: Iterable[Demand]) -> None:
        """Forget what was known, and know this."""
        self._known = {d.key: d for d in demand}
        self._work_s = sum(d.work_s for d in self._known.values())
        self._warm = sum(_nodes(d) for d in self._known.values())
        waiting = [d for d in self._known.values() if _is_pressed(d)]
        self._pressed = sorted(_place(d) for d in waiting)
        self._homeless = sorted(_place(d) for d in waiting if not d.copies)

    def put(self, demand: Demand) -> None:
        """What is known of one model now."""
        old = self._known.get(demand.key)
        self._known[demand.key] = demand
        self._work_s += demand.work_s - (old.work_s if old is not None else 0.0)
        self._warm += _nodes(demand) - (_nodes(old) if old is not None else 0)
        for known, change in ((old, _removed), (demand, insort)):
            if known is not None and _is_pressed(known):
                change(self._pressed, _place(known))
                if not known.copies:
                    change(self._homeless, _place(known))

    @property
    def backlog_s(self) -> float:
        """Seconds of work that wait for each node that has a model in memory, NO_MODEL's included."""
        return max(0.0, self._work_s) / max(1, self._warm)

    def top(self, count: int, *, but: Iterable[Key]) -> list[Key]:
        """The ``count`` most pressed models that jobs wait for, and as many of those that no node has; not ``but``."""
        without = set(but)
        found = _first(self._pressed, count, without)
        without.update(found)
        return found + _first(self._homeless, count, without)


def _is_pressed(demand: Demand) -> bool:
    return demand.waiting > 0 and demand.key != NO_MODEL


def _nodes(demand: Demand) -> int:
    return demand.warm if demand.key.startswith(MAIN_KEYS) else 0


def _place(demand: Demand) -> tuple[float, Key]:
    return (-pressure(demand), demand.key)


def _removed(order: list[tuple[float, Key]], place: tuple[float, Key]) -> None:
    at = bisect_left(order, place)
    if at < len(order) and order[at] == place:
        del order[at]


def _first(order: list[tuple[float, Key]], count: int, but: set[Key]) -> list[Key]:
    found: list[Key] = []
    for _, key in order:
        if len(found) == count:
            break
        if key not in but:
            found.append(key)
    return found


def interests(node: NodeView, demand: Mapping[Key, Demand], rules: Rules) -> list[Key]:
    """The keys whose first waiting jobs a decision for this node looks at.

    Those of what it holds or fetches and jobs wait for, jobs of no model, and the most pressed others. Their number
    depends on what the node holds and a constant; the cost does where ``demand`` is a `Pressure`.
    """
    found = sorted(key for key in node.held | node.coming if (d := demand.get(key)) is not None and d.waiting > 0)
    others = demand if isinstance(demand, Pressure) else Pressure(demand.values())
    return [NO_MODEL, *found, *others.top(PRESSED, but=found)]
