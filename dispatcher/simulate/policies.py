"""Who gets which waiting job: this dispatcher, and what it is compared with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from random import Random
from typing import Protocol

from dispatcher import coverage, matching
from dispatcher.simulate.desk import Desk
from dispatcher.words import NO_MODEL, Key, NodeOrders, NodeView, Rules, Source, Waiting


class Policy(Protocol):
    """``fair``: whether jobs are ranked among users, or stand in the order of their submission."""

    name: str
    fair: bool

    def pick(self, node: NodeView, desk: Desk) -> Waiting | None:
        """The waiting job that this node gets."""
        ...

    def asked(self, job: Waiting, desk: Desk) -> Iterable[str]:
        """Of the nodes whose call is held, those to ask now that this job came, the best first.

        The others are asked again at their next poll.
        """
        ...

    def orders(self, nodes: Sequence[NodeView], desk: Desk, catalogue: Mapping[Key, Source]) -> dict[str, NodeOrders]:
        """What nodes are asked to fetch and drop."""
        ...


class Blind:
    """What the plain queues have in common: whoever calls first gets something, and nobody is told to fetch."""

    name = "blind"
    fair = False

    def asked(self, job: Waiting, desk: Desk) -> Iterable[str]:
        return [node for node in desk.callers if matching.fits(desk.views[node], job)][:1]

    def orders(self, nodes: Sequence[NodeView], desk: Desk, catalogue: Mapping[Key, Source]) -> dict[str, NodeOrders]:
        return {}


class Fifo(Blind):
    """The first in line that fits goes to whoever asks: what SQS, Redis lists and most job queues do."""

    name = "fifo"

    def pick(self, node: NodeView, desk: Desk) -> Waiting | None:
        jobs = (desk.line[place] for place in range(len(desk.line)))
        return next((job for job in jobs if matching.fits(node, job)), None)


class AtRandom(Blind):
    """Any job that waits: what the AI Horde does among the models that a node offers."""

    name = "random"

    def __init__(self, seed: int) -> None:
        self._dice = Random(seed)

    def pick(self, node: NodeView, desk: Desk) -> Waiting | None:
        if not desk.line:
            return None
        job = desk.line[self._dice.randrange(len(desk.line))]
        return job if matching.fits(node, job) else Fifo().pick(node, desk)


class LookAhead(Blind):
    """Of the first ``most`` in line the one whose model is in memory, else on disk, else the first."""

    def __init__(self, most: int) -> None:
        self.name = f"look-ahead {most}"
        self._most = most

    def pick(self, node: NodeView, desk: Desk) -> Waiting | None:
        jobs = [job for job in desk.line.ahead(self._most) if matching.fits(node, job)]
        return min(jobs, key=lambda job: _tier(node, job.key), default=None)


class Index(Blind):
    """The same over all that wait, by an index of models; the first in line goes once passed over ``skips`` times."""

    def __init__(self, skips: int) -> None:
        self.name = f"index, {skips} skips"
        self._skips = skips

    def pick(self, node: NodeView, desk: Desk) -> Waiting | None:
        board = desk.board(())
        first = Fifo().pick(node, desk)
        if first is None or (first is board.oldest and board.passed >= self._skips):
            return first
        keys = chain((NO_MODEL,), sorted(node.loaded), sorted(node.held))
        heads = [job for key in keys for job in desk.line.heads(key, 1) if matching.fits(node, job)]
        return min([*heads, first], key=lambda job: (_tier(node, job.key), job.order))


def _tier(node: NodeView, key: Key) -> int:
    return 0 if key in node.loaded or key == NO_MODEL else 1 if key in node.held else 2


class Scheduled:
    """This dispatcher: `dispatcher.matching` and `dispatcher.coverage`, the very code that serves."""

    name = "sd-dispatcher"
    fair = True

    def __init__(self, rules: Rules) -> None:
        self.rules = rules

    def pick(self, node: NodeView, desk: Desk) -> Waiting | None:
        board = desk.board(matching.interests(node, desk.demand.fresh(), self.rules))
        option = matching.choose(node, board, self.rules, brief=True).option
        return option.job if option else None

    def asked(self, job: Waiting, desk: Desk) -> Iterable[str]:
        """Those that have its model in memory, then those that have it on disk."""
        if job.key == NO_MODEL:
            return list(desk.callers)
        warm, held = desk.demand.warm.get(job.key, {}), desk.demand.held.get(job.key, {})
        return [node for node in {**warm, **held} if node in desk.callers]

    def orders(self, nodes: Sequence[NodeView], desk: Desk, catalogue: Mapping[Key, Source]) -> dict[str, NodeOrders]:
        return coverage.plan(nodes, desk.demand.all(), catalogue, self.rules)


def policy(name: str, rules: Rules, seed: int) -> Policy:
    """By its name on the command line: ``sd-dispatcher``, ``fifo``, ``random``, ``look-ahead-N``, ``index-N``.

    Raises `ValueError` for any other.
    """
    kind, _, number = name.rpartition("-")
    if kind in ("look-ahead", "index") and number.isdecimal() and int(number):
        return LookAhead(int(number)) if kind == "look-ahead" else Index(int(number))
    match name:
        case "sd-dispatcher":
            return Scheduled(rules)
        case "fifo":
            return Fifo()
        case "random":
            return AtRandom(seed)
    raise ValueError(f"{name!r} is no policy: sd-dispatcher, fifo, random, look-ahead-N or index-N")
