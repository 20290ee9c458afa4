"""How many copies of each model the fleet should have."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from math import ceil, sqrt

from dispatcher.steps import Steps, whole
from dispatcher.words import NO_MODEL, Demand, Key, Rules

PERIOD_S = 300.0
"""Within which the work that waits now should be done."""

WORK_S = 6.0
"""Seconds of a job where none waits by which to tell."""

PORTION = 64
"""Models or nodes that are counted in one step."""

_FURTHER = 0.05
_AGED_S = 60.0
_KEEP = 1.2
_CUT = 0.8


@dataclass(frozen=True, slots=True)
class Targets:
    """``want``: copies below which one is fetched. ``keep``: copies above which one may go; never less than wanted.

    Between the two nothing happens, so that demand which goes up and down moves no files.
    """

    want: Mapping[Key, int]
    keep: Mapping[Key, int]


def rate(demand: Demand) -> float:
    """Jobs a second: those that come, and those that wait spread over `PERIOD_S`.

    What waits counts once more for each minute of its first job, or models of few jobs would never have their turn.
    """
    return demand.arrivals + demand.waiting / PERIOD_S * (1.0 + demand.age_s / _AGED_S)


def work_of(demand: Demand) -> float:
    """Seconds of a job, by those that wait."""
    return demand.work_s / demand.waiting if demand.waiting else WORK_S


def _needed(demand: Demand) -> int:
    """Nodes that do this work with as much to spare as chance asks for; at least one."""
    busy = demand.arrivals * work_of(demand) + demand.work_s / PERIOD_S
    return max(1, ceil(busy + sqrt(busy)))


def copies_for(demand: Demand, nodes: int, rules: Rules) -> int:
    """Copies of a model where disks are large enough: at least `Rules.coverage`.

    Where its work takes several nodes, as many as that and one in ten more, since nodes vanish.
    """
    if rate(demand) <= 0 or demand.key == NO_MODEL:
        return 0
    needed = _needed(demand)
    spare = max(1, needed // 10) if needed > 1 else 0
    return min(nodes, max(rules.coverage, needed + spare))


def value(demand: Demand, copy: int) -> float:
    """What the copy of this number is worth, the first being 1: jobs a second that it serves.

    Those that the work needs share it evenly; each further one is worth a twentieth of the one before.
    """
    needed = _needed(demand)
    return rate(demand) / needed * _FURTHER ** max(0, copy - needed)


def _values(demand: Demand, most: int) -> list[float]:
    """`value` of each copy, the first to the last of so many."""
    needed = _needed(demand)
    share = rate(demand) / needed
    return [share * _FURTHER ** max(0, copy - needed) for copy in range(1, most + 1)]


def targets_of(demand: Iterable[Demand], nodes: int, capacity: float, rules: Rules) -> Targets:
    """What of all the copies that are wanted fits into ``capacity`` bytes, the worthiest for their size first.

    Depends on what is asked for and on the fleet's size, and not on where files lie now: orders that were carried out
    change nothing here.
    """
    return whole(targets_in_steps(demand, nodes, capacity, rules))


def targets_in_steps(demand: Iterable[Demand], nodes: int, capacity: float, rules: Rules) -> Steps[Targets]:
    """`targets_of`, bit by bit."""
    asked = [(d, most) for d in demand if (most := copies_for(d, nodes, rules))]
    offers: list[tuple[float, int, Key, int]] = []
    for number, (d, most) in enumerate(asked):
        size = d.size or rules.size
        offers += [(-worth / size, copy, d.key, size) for copy, worth in enumerate(_values(d, most), 1)]
        if number % PORTION == 0:
            yield
    offers.sort()
    yield
    want: dict[Key, int] = {}
    cut, left = 0.0, capacity
    for density, copy, key, size in offers:
        if size > left:
            cut = -density
            break
        left -= size
        want[key] = copy
    keep: dict[Key, int] = {}
    for number, (d, _) in enumerate(asked):
        keep[d.key] = max(want.get(d.key, 0), _kept(d, nodes, cut, rules))
        if number % PORTION == 0:
            yield
    return Targets(want, keep)


def _kept(demand: Demand, nodes: int, cut: float, rules: Rules) -> int:
    """Copies that would be wanted if demand were higher by a fifth and disks took what is worth a fifth less."""
    more = replace(demand, arrivals=demand.arrivals * _KEEP, work_s=demand.work_s * _KEEP)
    least = cut * _CUT * (demand.size or rules.size)
    values = _values(more, copies_for(more, nodes, rules))
    return next((copy for copy in range(len(values), 0, -1) if values[copy - 1] >= least), 0)
