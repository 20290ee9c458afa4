"""The model that a swap takes out of memory: how much it is still needed there."""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt
from typing import NamedTuple

from dispatcher.matching.cost import MAIN_KEYS, load_s
from dispatcher.words import Demand, Key, NodeView, Rules

WORK_S = 6.0
"""Seconds of a job where none waits by which to tell."""


class Victim(NamedTuple):
    """The model that a swap would take out of memory, and what it is to the fleet.

    ``load``: seconds to have it back. ``work``: seconds of a job for it; ``waiting_s``: of those that wait, for each
    node that has it in memory. ``short``: those nodes could not do its work without this one; ``last``: there is no
    other. ``rest``: seconds of its minimum residency that are left.
    """

    key: Key
    load: float
    arrivals: float
    work: float
    waiting_s: float
    short: bool
    last: bool
    rest: float


NOBODY = Victim("", 0.0, 0.0, WORK_S, 0.0, short=False, last=False, rest=0.0)


def victim_of(node: NodeView, demand: Mapping[Key, Demand], rules: Rules) -> Victim:
    """Of the models in memory the one that was used the longest ago."""
    mains = [key for key in node.loaded if key.startswith(MAIN_KEYS) and key not in node.same]
    if not mains:
        return NOBODY
    used = {key: at for at, key in enumerate(node.used)}
    key = min(mains, key=lambda k: (used.get(k, -1), k))
    known = demand.get(key) or _otherwise(node, demand, key)
    load = load_s(node, node.sizes.get(key) or (known.size if known else None) or rules.size, rules)
    if known is None:
        return NOBODY._replace(key=key, load=load)
    work = known.work_s / known.waiting if known.waiting else WORK_S
    others = max(0, known.warm - 1)
    busy = known.arrivals * work
    return Victim(
        key,
        load,
        known.arrivals,
        work,
        known.work_s / max(1, known.warm),
        short=others < busy + sqrt(busy),
        last=others == 0,
        rest=max(0.0, rules.residency * load - node.resident_s),
    )


def _otherwise(node: NodeView, demand: Mapping[Key, Demand], key: Key) -> Demand | None:
    """The demand for a file under another of its keys."""
    return next(
        (demand[alias] for alias in sorted(node.loaded) if node.same.get(alias) == key and alias in demand), None
    )


class Necessity(NamedTuple):
    """What the model in memory is still needed for here, in seconds of work; and for how long that may keep it idle."""

    seconds: float
    patience: float


def necessity(victim: Victim, load: float) -> Necessity:
    """What is lost by loading another model that takes ``load`` seconds.

    A job for the model in memory that comes while both loads last (and the rest of its minimum residency) would find
    no node, where others cannot do its work without this one. Fewer than one such job are not worth waiting for.
    """
    span = load + victim.load + victim.rest
    expected = victim.arrivals * span
    if victim.waiting_s <= 0 and (not victim.short or expected < 1):
        return Necessity(0.0, 0.0)
    seconds = victim.waiting_s + (expected * victim.work if victim.short else 0.0)
    return Necessity(seconds + (victim.load if victim.last else 0.0), span)
