"""The decision: all that waits and concerns a node weighed against each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import inf
from typing import NamedTuple

from dispatcher.coverage.targets import value
from dispatcher.matching.cost import bytes_of, cost_s, fits, held_size
from dispatcher.matching.index import Pressure, pressure
from dispatcher.matching.victim import Victim, necessity, victim_of
from dispatcher.words import NO_MODEL, Board, Choice, Demand, Key, NodeView, Option, Rules, Skip, Waiting, Why

JOIN = 3.0
"""Where a model is in memory somewhere: loads' worth of work that must wait for each node for another to load it."""


class _Objection(NamedTuple):
    """Why this node should not begin a job, for so many seconds more: what it rests on is not expected for longer."""

    skip: Skip
    left: float
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

    ``usual``: the priority above which a job need not be worth a load. ``link``: seconds for which transfers keep the
    node's network busy. ``cheap``: seconds of a transfer for which a job in memory does not lose its place in line.
    ``backlog``: seconds of work that wait for each node of the fleet.
    """

    node: NodeView
    board: Board
    rules: Rules
    victim: Victim
    usual: float
    link: float
    cheap: float
    backlog: float


def choose(node: NodeView, board: Board, rules: Rules, *, brief: bool = False) -> Choice:
    """What a node gets of the jobs on the board; nothing where all of them are better done elsewhere or later.

    The same answer for the same question, however its mappings are ordered. ``options`` are the first job of each
    model that fits here, where that needs a transfer also the first that needs none, and those that do not fit.
    ``brief``: weigh no more than it takes to know what the node gets; then ``options`` and ``skipped`` may lack what
    comes behind that.
    """
    scales = _scales(node, board, rules)
    large: list[Waiting] = []
    first = board.oldest.id if board.oldest is not None else None
    weighed = [_weigh(job.key, job, scales) for job in _oldest(node, board, large)]
    for tier, keys in enumerate(_stages(node, board), start=1):
        for key in keys:
            found = _first(node, board.heads[key], large)
            weighed += [_weigh(key, job, scales) for job in found if job.id != first]
        if brief and weighed and _is_settled(min(weighed), tier, board):
            break
    weighed.sort()
    return _choice(scales, weighed, [_too_large(job, scales) for job in sorted(large, key=lambda job: job.order)])


def _stages(node: NodeView, board: Board) -> tuple[list[Key], list[Key], list[Key]]:
    """The models on the board: those in memory, those on disk, the others."""
    stages: tuple[list[Key], list[Key], list[Key]] = ([], [], [])
    for key in board.heads:
        stages[0 if key == NO_MODEL or key in node.loaded else 1 if key in node.held else 2].append(key)
    return stages


def _is_settled(best: _Weighed, tier: int, board: Board) -> bool:
    """Whether nothing of a later stage can come before this one."""
    refused, _, priority, place, *_ = best.order
    if refused or place > tier:
        return False
    return all(-priority >= jobs[0].priority for jobs in board.heads.values() if jobs)


def _first(node: NodeView, jobs: Sequence[Waiting], large: list[Waiting]) -> Iterator[Waiting]:
    """Of the jobs for one model the first that fits here, and the first of which nothing is missing."""
    found = False
    held = node.held
    for job in jobs:
        if not fits(node, job):
            large.append(job)
            continue
        here = held.issuperset([need.key for need in job.needs])
        if here or not found:
            yield job
        if here or job.key not in held:
            return
        found = True


def _oldest(node: NodeView, board: Board, large: list[Waiting]) -> Iterator[Waiting]:
    """The first of all in line, which is weighed wherever its model is, if it fits here."""
    oldest = board.oldest
    if oldest is not None and fits(node, oldest):
        yield oldest
    elif oldest is not None and oldest.key not in board.heads:
        large.append(oldest)


def _scales(node: NodeView, board: Board, rules: Rules) -> _Scales:
    demand = board.demand
    moving = sum(_size_of(key, node, demand, rules) for key in node.coming if key not in node.held)
    return _Scales(
        node,
        board,
        rules,
        victim_of(node, demand, rules),
        usual=_usual(node, board),
        link=moving / 2 / node.measured.network,
        cheap=node.measured.load,
        backlog=(demand if isinstance(demand, Pressure) else Pressure(demand.values())).backlog_s,
    )


def _usual(node: NodeView, board: Board) -> float:
    """The highest priority of what needs no swap here; where there is nothing of that, the lowest of all."""
    here = [jobs[0].priority for key in (NO_MODEL, *node.loaded) if (jobs := board.heads.get(key))]
    return max(here) if here else min((jobs[0].priority for jobs in board.heads.values() if jobs), default=inf)


def _size_of(key: Key, node: NodeView, demand: Mapping[Key, Demand], rules: Rules) -> int:
    known = demand.get(key)
    return held_size(node, key) or (known.size if known is not None else None) or rules.size


def _weigh(key: Key, job: Waiting, scales: _Scales) -> _Weighed:
    node, board = scales.node, scales.board
    why, cost = cost_s(node, job, scales.rules)
    if board.oldest is not None and job.id == board.oldest.id and _is_overdue(why, board, scales.rules):
        order = (False, False, -job.priority, 0, 0.0, job.rank, job.id)
        note = f"passed over {board.passed} times; {cost:.1f} s to begin here"
        return _Weighed(order, job, Why.OVERDUE, cost, -cost, None, note)
    demand = board.demand.get(key) or Demand(key, waiting=1, work_s=job.work_s)
    if key == NO_MODEL or key in node.loaded:
        tier, score, gain = int(cost > scales.cheap), 0.0, demand.work_s - cost
        against = _against_transfer(job, cost, demand, scales) if why is Why.DOWNLOAD else None
        note = "in memory" if why is Why.WARM else f"in memory, but for {cost:.1f} s of other files"
    else:
        needed, patience = necessity(scales.victim, cost)
        tier, score = (2 if why is Why.DISK else 3), cost - pressure(demand)
        gain = demand.work_s / (demand.warm + 1) - cost - needed
        against = (
            (_against_transfer(job, cost, demand, scales) if why is Why.DOWNLOAD else None)
            or _elsewhere(cost, demand)
            or (_not_worth(why, cost, gain, needed, patience, demand, scales) if job.priority <= scales.usual else None)
        )
        note = f"{demand.work_s:.0f} s of work wait, {demand.warm} nodes are warm; {cost:.1f} s to begin here"
    order = (against is not None, True, -job.priority, tier, score, job.rank, job.id)
    return _Weighed(order, job, why, cost, gain, against, note)


def _is_overdue(why: Why, board: Board, rules: Rules) -> bool:
    """Half of the bound suffices where nothing must be fetched: such a node may not ask again before the other half."""
    return board.passed >= (rules.max_skips if why is Why.DOWNLOAD else rules.max_skips / 2)


def _against_transfer(job: Waiting, cost: float, demand: Demand, scales: _Scales) -> _Objection | None:
    """What is on its way is not fetched once more; a node has one link; and what is needed more is not dropped.

    Ordered transfers make way for a small file, jobs that wait for theirs do not.
    """
    node, idle = scales.node, scales.node.idle_s
    if job.key in node.coming and idle < 2 * cost:
        return _Objection(Skip.COMING, 2 * cost - idle, f"is being fetched to this node, about {cost:.0f} s more")
    if idle < scales.link + cost and scales.link > 0 and (node.running or cost > scales.link / 10):
        note = f"{cost:.0f} s to fetch it, and others are on their way for {scales.link:.0f} s more"
        return _Objection(Skip.COMING, scales.link + cost - idle, note)
    if job.key in node.held:
        return None
    others = demand.copies + demand.coming
    served = others and demand.work_s / others <= cost
    if served and demand.coming and idle < cost:
        return _Objection(Skip.COMING, cost - idle, f"is being fetched to {demand.coming} other nodes")
    if served and demand.copies and demand.age_s < cost:
        note = f"on the disks of {demand.copies} other nodes; {cost:.0f} s to begin here"
        return _Objection(Skip.WARM_ELSEWHERE, cost - demand.age_s, note)
    gained, lost = value(demand, others + 1) * 3600, _dropped(job, scales) * 3600
    if lost > gained and idle < cost:
        note = f"would drop what serves {lost:.1f} jobs an hour for what serves {gained:.1f}"
        return _Objection(Skip.SWAP_NOT_WORTH, cost - idle, note)
    return None


def _dropped(job: Waiting, scales: _Scales) -> float:
    """Jobs a second that the fleet would not do any more, of models that have to go here for those of this job.

    A node's cache drops what was used the longest ago.
    """
    node, demand, rules = scales.node, scales.board.demand, scales.rules
    if node.free is None:
        return 0.0
    own = {node.same.get(need.key, need.key) for need in job.needs}
    lacking = sum(bytes_of(need, node, rules) for need in job.needs if need.key not in node.held) - node.free
    lost = 0.0
    for key in node.used:
        if lacking <= 0:
            break
        if key in node.held and key not in own and key not in node.same:
            lacking -= node.sizes.get(key) or rules.size
            known = demand.get(key)
            lost += value(known, known.copies) if known is not None and known.copies else 0.0
    return lost


def _elsewhere(cost: float, demand: Demand) -> _Objection | None:
    """Nodes that have it in memory are through with most of what waits before this one has begun.

    Where they did not take the first of its jobs in twice that time they will not.
    """
    if not demand.warm or demand.age_s >= 2 * cost:
        return None
    work = demand.work_s / max(1, demand.waiting)
    left = demand.work_s + (demand.arrivals * work - demand.warm) * cost
    if left > JOIN * cost * (demand.warm + 1):
        return None
    note = f"{demand.warm} warm nodes do the {demand.work_s:.0f} s that wait; {cost:.1f} s to begin here"
    return _Objection(Skip.WARM_ELSEWHERE, 2 * cost - demand.age_s, note)


def _not_worth(
    why: Why, cost: float, gain: float, needed: float, patience: float, demand: Demand, scales: _Scales
) -> _Objection | None:
    """What is in memory is needed for more than the other would gain; or the work that waits is too thin for a load.

    The latter only where more than that waits for each node, and something is in memory: where little waits besides,
    nobody gains by a node that holds back.
    """
    idle = scales.node.idle_s
    if needed > 0 and gain <= 0 and idle < patience:
        note = f"would lose {-gain:.1f} s: what is in memory is needed for {needed:.1f} s of work"
        return _Objection(Skip.SWAP_NOT_WORTH, patience - idle, note)
    most = scales.rules.patience * cost
    busy = scales.victim.key and scales.backlog - demand.work_s >= most
    if why is not Why.DISK or not busy or idle >= most or pressure(demand) >= most:
        return None
    note = f"{demand.work_s:.0f} s of work are thin for a load, {cost:.1f} s; {scales.backlog:.0f} s wait for each node"
    return _Objection(Skip.SWAP_NOT_WORTH, most - idle, note)


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
            again = min(again, against.left)
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
    return Choice(best, (*options, *large), skipped, again if best is None and again < inf else None)
