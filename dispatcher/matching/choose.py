"""The decision: all that waits and concerns a node weighed against each other."""

from __future__ import annotations

from math import inf
from typing import NamedTuple

from dispatcher.matching.cost import bytes_of, cost_s, fits
from dispatcher.matching.pressure import pressure
from dispatcher.matching.victim import Necessity, Victim, necessity, victim_of
from dispatcher.words import NO_MODEL, Board, Choice, Demand, Key, NodeView, Option, Rules, Skip, Waiting, Why


class _Weighed(NamedTuple):
    """An option and its place among the others; ``until``: for how long an idle node is kept from it at most."""

    order: tuple[float, float, int, float, float, str]
    option: Option
    until: float = inf


class _Scales(NamedTuple):
    """What all options of one decision are weighed by. ``warm``: the priority of the best job that needs no swap."""

    node: NodeView
    board: Board
    rules: Rules
    victim: Victim
    warm: float
    nearest: float


def choose(node: NodeView, board: Board, rules: Rules) -> Choice:
    """What a node gets of the jobs on the board; nothing where all of them are better done elsewhere or later.

    The same answer for the same question, however its mappings are ordered. ``options`` are the first job of each
    model that fits here, and those before it that do not.
    """
    first: list[tuple[Key, Waiting]] = []
    large: list[Waiting] = []
    for key, jobs in board.heads.items():
        for job in jobs:
            if fits(node, job):
                first.append((key, job))
                break
            large.append(job)
    oldest = board.oldest
    if oldest is not None and all(job.id != oldest.id for _, job in first) and oldest not in large:
        if fits(node, oldest):
            first.append((oldest.key, oldest))
        else:
            large.append(oldest)
    scales = _scales(node, board, rules, first)
    weighed = [_weigh(key, job, scales) for key, job in first]
    weighed.sort(key=lambda w: (w.option.skip is not None, w.order))
    return _choice(node, board, weighed, [_too_large(job, scales) for job in sorted(large, key=lambda j: j.order)])


def _scales(node: NodeView, board: Board, rules: Rules, first: list[tuple[Key, Waiting]]) -> _Scales:
    warm = max((job.priority for key, job in first if key == NO_MODEL or key in node.loaded), default=inf)
    coming = [cost_s(node, job, rules)[1] for key, job in first if key in node.coming and key not in node.held]
    return _Scales(node, board, rules, victim_of(node, board.demand, rules), warm, min(coming, default=inf))


def _weigh(key: Key, job: Waiting, scales: _Scales) -> _Weighed:
    node, board, rules = scales.node, scales.board, scales.rules
    why, cost = cost_s(node, job, rules)
    demand = board.demand.get(key) or Demand(key, waiting=1, work_s=job.work_s)
    if board.oldest is not None and job.id == board.oldest.id and _is_overdue(why, board, rules):
        note = f"passed over {board.passed} times; {cost:.1f} s to begin here"
        return _Weighed((0, -job.priority, 0, 0.0, job.rank, job.id), Option(job, Why.OVERDUE, cost, -cost, None, note))
    if key == NO_MODEL or key in node.loaded:
        note = "in memory" if why is Why.WARM else f"in memory, but for {cost:.1f} s of other files"
        wait = 0.0 if why is Why.WARM else cost
        option = Option(job, why, cost, demand.work_s - cost, None, note)
        return _Weighed((1, -job.priority, 0 if why is Why.WARM else 1, wait, job.rank, job.id), option)
    need = necessity(scales.victim, cost)
    gain = demand.work_s / (demand.warm + 1) - cost - need.seconds
    skip, until, note = _objection(job, why, cost, demand, gain, need, scales)
    tier = 2 if why is Why.DISK else 3
    order = (1, -job.priority, tier, cost - pressure(demand), job.rank, job.id)
    return _Weighed(order, Option(job, why, cost, gain, skip, note), until)


def _is_overdue(why: Why, board: Board, rules: Rules) -> bool:
    """Half of the bound suffices where nothing must be fetched: such a node may not ask again before the other half."""
    return board.passed >= (rules.max_skips if why is Why.DOWNLOAD else rules.max_skips / 2)


def _objection(
    job: Waiting, why: Why, cost: float, demand: Demand, gain: float, need: Necessity, scales: _Scales
) -> tuple[Skip | None, float, str]:
    """Why this node should not begin a job that is not in its memory; until how long it is idle; in words."""
    node = scales.node
    for skip, until, note in (
        _coming(job, why, cost, demand, scales),
        _elsewhere(job, why, cost, demand),
        _not_worth(job, gain, need, scales),
    ):
        if skip is not None and node.idle_s < until:
            return skip, until, note
    waits = f"{demand.work_s:.0f} s of work wait for {demand.warm} warm nodes"
    return None, inf, f"{waits}; {cost:.1f} s to begin here"


_NONE: tuple[Skip | None, float, str] = (None, 0.0, "")


def _coming(job: Waiting, why: Why, cost: float, demand: Demand, scales: _Scales) -> tuple[Skip | None, float, str]:
    """What is on its way is not fetched once more, and nothing slower is begun before it is there."""
    if why is not Why.DOWNLOAD:
        return _NONE
    if job.key in scales.node.coming:
        return Skip.COMING, 2 * cost, f"is being fetched to this node, about {cost:.0f} s more"
    if demand.coming:
        return Skip.COMING, cost, f"is being fetched to {demand.coming} other nodes"
    if scales.nearest < cost:
        return Skip.COMING, scales.nearest, f"{cost:.0f} s to fetch it, another model is here in {scales.nearest:.0f} s"
    return _NONE


def _elsewhere(job: Waiting, why: Why, cost: float, demand: Demand) -> tuple[Skip | None, float, str]:
    """Nodes that have it in memory, or need no transfer, are through with what waits before this one has begun."""
    if demand.warm:
        work = demand.work_s / max(1, demand.waiting)
        left = demand.work_s + (demand.arrivals * work - demand.warm) * cost
        if left <= cost:
            note = f"{demand.warm} warm nodes do the {demand.work_s:.0f} s that wait; {cost:.1f} s to begin here"
            return Skip.WARM_ELSEWHERE, cost, note
    if why is Why.DOWNLOAD and demand.copies and demand.work_s / demand.copies <= cost:
        note = f"on the disks of {demand.copies} other nodes; {cost:.0f} s to begin here"
        return Skip.WARM_ELSEWHERE, cost, note
    return _NONE


def _not_worth(job: Waiting, gain: float, need: Necessity, scales: _Scales) -> tuple[Skip | None, float, str]:
    """The model in memory is needed more; a job of a higher priority than what it could do here goes first all the
    same."""
    if need.seconds <= 0 or gain > 0 or job.priority > scales.warm:
        return _NONE
    note = f"would lose {-gain:.1f} s: what is in memory is needed for {need.seconds:.1f} s of work"
    return Skip.SWAP_NOT_WORTH, need.patience, note


def _too_large(job: Waiting, scales: _Scales) -> Option:
    why, cost = cost_s(scales.node, job, scales.rules)
    size = sum(bytes_of(need, scales.node, scales.rules) for need in job.needs)
    note = f"its models take {size / 1e9:.1f} GB, this node's cache holds {(scales.node.cap or 0) / 1e9:.1f} GB"
    return Option(job, why, cost, -cost, Skip.TOO_LARGE, note)


def _choice(node: NodeView, board: Board, weighed: list[_Weighed], large: list[Option]) -> Choice:
    """The best of what nothing speaks against. ``weighed`` is in its order."""
    best = weighed[0].option if weighed and weighed[0].option.skip is None else None
    skipped: dict[str, int] = {}
    for _, option, _ in weighed:
        demand = board.demand.get(option.job.key)
        others = (demand.waiting if demand is not None else 1) - (option is best)
        reason = option.skip or Skip.BEHIND
        if others > 0:
            skipped[reason] = skipped.get(reason, 0) + others
    if large:
        skipped[Skip.TOO_LARGE] = len(large)
    options = [w.option if w.option is best or w.option.skip else _behind(w.option) for w in weighed]
    again = min((w.until for w in weighed), default=inf) if best is None else inf
    return Choice(best, (*options, *large), skipped, None if again == inf else again - node.idle_s)


def _behind(option: Option) -> Option:
    return Option(option.job, option.why, option.cost_s, option.gain_s, Skip.BEHIND, option.note)
