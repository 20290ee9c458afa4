"""The decision: all that waits and concerns a node weighed against each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import inf
from typing import NamedTuple

from dispatcher.coverage.targets import value
from dispatcher.matching.cost import bytes_of, cost_s, fits
from dispatcher.matching.index import pressure
from dispatcher.matching.victim import Victim, necessity, victim_of
from dispatcher.words import NO_MODEL, Board, Choice, Demand, Key, NodeView, Option, Rules, Skip, Waiting, Why


class _Objection(NamedTuple):
    """Why this node should not begin a job; it counts until the node has been idle for so many seconds."""

    skip: Skip
    until: float
    note: str


class _Weighed(NamedTuple):
    order: tuple[bool, bool, int, int, float, float, str]
    job: Waiting
    why: Why
    cost: float
    gain: float
    objection: _Objection | None
    note: str


class _Scales(NamedTuple):
    """What all options of one decision are weighed by.

    ``warm``: the priority of the best job that needs no swap. ``link``: seconds for which transfers keep the node's
    network busy. ``cheap``: seconds of a transfer for which a job in memory does not lose its place in line.
    """

    node: NodeView
    board: Board
    rules: Rules
    victim: Victim
    warm: float
    link: float
    cheap: float


def choose(node: NodeView, board: Board, rules: Rules) -> Choice:
    """What a node gets of the jobs on the board; nothing where all of them are better done elsewhere or later.

    The same answer for the same question, however its mappings are ordered. ``options`` are the first job of each
    model that fits here, where that needs a transfer also the first that needs none, and those that do not fit.
    """
    first: list[tuple[Key, Waiting]] = []
    large: list[Waiting] = []
    for key, jobs in board.heads.items():
        first += [(key, job) for job in _first(node, jobs, large)]
    oldest = board.oldest
    if oldest is not None and all(job.id != oldest.id for _, job in first):
        if not fits(node, oldest):
            large += [oldest] if oldest not in large else []
        else:
            first.append((oldest.key, oldest))
    scales = _scales(node, board, rules, first)
    weighed = [_weigh(key, job, scales) for key, job in first]
    weighed.sort(key=lambda w: w.order)
    return _choice(scales, weighed, [_too_large(job, scales) for job in sorted(large, key=lambda job: job.order)])


def _first(node: NodeView, jobs: Sequence[Waiting], large: list[Waiting]) -> Iterator[Waiting]:
    """Of the jobs for one model the first that fits here, and the first of which nothing is missing."""
    found = False
    held = node.held
    for job in jobs:
        if not fits(node, job):
            large.append(job)
            continue
        here = all(need.key in held for need in job.needs)
        if here or not found:
            yield job
        if here or job.key not in held:
            return
        found = True


def _scales(node: NodeView, board: Board, rules: Rules, first: list[tuple[Key, Waiting]]) -> _Scales:
    warm = max((job.priority for key, job in first if key == NO_MODEL or key in node.loaded), default=inf)
    moving = sum(_size_of(key, node, board.demand, rules) for key in node.coming if key not in node.held)
    link = moving / 2 / node.measured.network
    return _Scales(node, board, rules, victim_of(node, board.demand, rules), warm, link, node.measured.load)


def _size_of(key: Key, node: NodeView, demand: Mapping[Key, Demand], rules: Rules) -> int:
    known = demand.get(key)
    return node.sizes.get(key) or (known.size if known is not None else None) or rules.size


def _weigh(key: Key, job: Waiting, scales: _Scales) -> _Weighed:
    node, board, rules = scales.node, scales.board, scales.rules
    why, cost = cost_s(node, job, rules)
    if board.oldest is not None and job.id == board.oldest.id and _is_overdue(why, board, rules):
        note = f"passed over {board.passed} times; {cost:.1f} s to begin here"
        return _Weighed(
            (False, False, -job.priority, 0, 0.0, job.rank, job.id), job, Why.OVERDUE, cost, -cost, None, note
        )
    demand = board.demand.get(key) or Demand(key, waiting=1, work_s=job.work_s)
    if key == NO_MODEL or key in node.loaded:
        tier, score, gain = int(cost > scales.cheap), 0.0, demand.work_s - cost
        against = _against_transfer(job, cost, demand, scales) if why is Why.DOWNLOAD else None
        note = "in memory" if why is Why.WARM else f"in memory, but for {cost:.1f} s of other files"
    else:
        need, patience = necessity(scales.victim, cost)
        tier, score = (2 if why is Why.DISK else 3), cost - pressure(demand)
        gain = demand.work_s / (demand.warm + 1) - cost - need
        against = _against_transfer(job, cost, demand, scales) if why is Why.DOWNLOAD else None
        against = against or _elsewhere(cost, demand)
        if against is None and need > 0 and gain <= 0 and job.priority <= scales.warm:
            against = _Objection(
                Skip.SWAP_NOT_WORTH,
                patience,
                f"would lose {-gain:.1f} s: what is in memory is needed for {need:.1f} s of work",
            )
        note = f"{demand.work_s:.0f} s of work wait, {demand.warm} nodes are warm; {cost:.1f} s to begin here"
    if against is not None and node.idle_s >= against.until:
        against = None
    order = (against is not None, True, -job.priority, tier, score, job.rank, job.id)
    return _Weighed(order, job, why, cost, gain, against, note)


def _is_overdue(why: Why, board: Board, rules: Rules) -> bool:
    """Half of the bound suffices where nothing must be fetched: such a node may not ask again before the other half."""
    return board.passed >= (rules.max_skips if why is Why.DOWNLOAD else rules.max_skips / 2)


def _against_transfer(job: Waiting, cost: float, demand: Demand, scales: _Scales) -> _Objection | None:
    """What is on its way is not fetched once more; a node has one link; and what is needed more is not dropped.

    Ordered transfers make way for a small file, jobs that wait for theirs do not.
    """
    node = scales.node
    if job.key in node.coming:
        return _Objection(Skip.COMING, 2 * cost, f"is being fetched to this node, about {cost:.0f} s more")
    if scales.link > 0 and (node.running or cost > 0.1 * scales.link):
        note = f"{cost:.0f} s to fetch it, and others are on their way for {scales.link:.0f} s more"
        return _Objection(Skip.COMING, scales.link + cost, note)
    if job.key in node.held:
        return None
    others = demand.copies + demand.coming
    if others and demand.work_s / others <= cost:
        if demand.coming:
            return _Objection(Skip.COMING, cost, f"is being fetched to {demand.coming} other nodes")
        note = f"on the disks of {demand.copies} other nodes; {cost:.0f} s to begin here"
        return _Objection(Skip.WARM_ELSEWHERE, cost, note)
    gained, lost = value(demand, others + 1) * 3600, _dropped(job, scales) * 3600
    if lost > gained:
        note = f"would drop what serves {lost:.1f} jobs an hour for what serves {gained:.1f}"
        return _Objection(Skip.SWAP_NOT_WORTH, cost, note)
    return None


def _dropped(job: Waiting, scales: _Scales) -> float:
    """Jobs a second that the fleet would not do any more, of models that have to go here for those of this job.

    A node's cache drops what was used the longest ago.
    """
    node, demand, rules = scales.node, scales.board.demand, scales.rules
    if node.free is None:
        return 0.0
    own = {need.key for need in job.needs}
    lacking = sum(bytes_of(need, node, rules) for need in job.needs if need.key not in node.held) - node.free
    lost = 0.0
    for key in node.used:
        if lacking <= 0:
            break
        if key in node.held and key not in own:
            lacking -= node.sizes.get(key) or rules.size
            known = demand.get(key)
            lost += value(known, known.copies) if known is not None and known.copies else 0.0
    return lost


def _elsewhere(cost: float, demand: Demand) -> _Objection | None:
    """Nodes that have it in memory are through with what waits before this one has begun."""
    if not demand.warm:
        return None
    work = demand.work_s / max(1, demand.waiting)
    left = demand.work_s + (demand.arrivals * work - demand.warm) * cost
    if left > cost:
        return None
    note = f"{demand.warm} warm nodes do the {demand.work_s:.0f} s that wait; {cost:.1f} s to begin here"
    return _Objection(Skip.WARM_ELSEWHERE, cost, note)


def _too_large(job: Waiting, scales: _Scales) -> Option:
    why, cost = cost_s(scales.node, job, scales.rules)
    size = sum(bytes_of(need, scales.node, scales.rules) for need in job.needs)
    note = f"its models take {size / 1e9:.1f} GB, this node's cache holds {(scales.node.cap or 0) / 1e9:.1f} GB"
    return Option(job, why, cost, -cost, Skip.TOO_LARGE, note)


def _choice(scales: _Scales, weighed: list[_Weighed], large: list[Option]) -> Choice:
    """The best of what nothing speaks against. ``weighed`` is in its order."""
    skipped: dict[str, int] = {}
    options: list[Option] = []
    best, again = None, inf
    for _, job, why, cost, gain, against, note in weighed:
        if against is None and best is None:
            best = Option(job, why, cost, gain, None, note)
            options.append(best)
        elif against is None:
            options.append(Option(job, why, cost, gain, Skip.BEHIND, note))
        else:
            again = min(again, against.until)
            options.append(Option(job, why, cost, gain, against.skip, against.note))
    counted: set[Key] = set()
    for option in options:
        key = option.job.key
        if key not in counted:
            counted.add(key)
            demand = scales.board.demand.get(key)
            others = (demand.waiting if demand is not None else 1) - (option is best)
            reason = option.skip or Skip.BEHIND
            if others > 0:
                skipped[reason] = skipped.get(reason, 0) + others
    if large:
        skipped[Skip.TOO_LARGE] = len(large)
    wait = again - scales.node.idle_s if best is None and again < inf else None
    return Choice(best, (*options, *large), skipped, wait)
