"""Decisions for several nodes in a row, each of which sees what the ones before it took: a pure decision."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from dispatcher import matching
from dispatcher.store.base import Pick
from dispatcher.words import Board, Choice, Demand, Key, NodeView, Option, Rules, Waiting, Why

Heads = Callable[[Key], Sequence[Waiting]]


@dataclass(frozen=True, slots=True)
class Line:
    """The first of all in line, and how often another was given away before it."""

    oldest: Waiting | None = None
    passed: int = 0

    def after(self, taken: Waiting) -> Line:
        """Once this job was given away; who is first when the first is gone nobody knows yet."""
        if self.oldest is None or self.oldest.id == taken.id:
            return Line()
        return Line(self.oldest, self.passed + 1)


def interests(views: Iterable[NodeView], demand: Mapping[Key, Demand], rules: Rules) -> dict[str, list[Key]]:
    """By node, whose first jobs a decision for it looks at."""
    return {view.id: matching.interests(view, demand, rules) for view in views}


def decide(
    view: NodeView,
    keys: Sequence[Key],
    heads: Heads,
    demand: Mapping[Key, Demand],
    line: Line,
    rules: Rules,
    *,
    brief: bool = False,
) -> Choice:
    """What one node gets, as things stand after the decisions before it; ``brief`` as `matching.choose` has it."""
    found = {key: jobs for key in keys if (jobs := heads(key))}
    return matching.choose(view, Board(found, demand, line.oldest, line.passed), rules, brief=brief)


def pick_of(node: str, option: Option) -> Pick:
    return Pick(node, option.job.key, option.job.id, overdue=option.why is Why.OVERDUE)
