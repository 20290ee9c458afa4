"""Results of nodes kept from prompt to prompt, by what they were made of and not by the node's id."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from worker.simulators.comfyui.values import Result

Graph = Mapping[str, Any]


def is_link(value: object) -> bool:
    """Whether an input is another node's output."""
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str)


def hashable(value: Any) -> Hashable:
    """A JSON value as part of a key."""
    if isinstance(value, Mapping):
        return frozenset((k, hashable(v)) for k, v in value.items())
    if isinstance(value, list):
        return tuple(hashable(v) for v in value)
    plain: Hashable = value
    return plain


def signature(graph: Graph, node_id: str, changed: Callable[[str], Hashable]) -> Hashable:
    """Class, inputs and ancestry of a node."""
    order: dict[str, int] = {}
    _ancestry(graph, node_id, order)
    return tuple(_own(graph, n, order, changed) for n in (node_id, *order))


def _ancestry(graph: Graph, node_id: str, order: dict[str, int]) -> None:
    for value in _inputs(graph, node_id).values():
        if is_link(value) and value[0] not in order and value[0] in graph:
            order[value[0]] = len(order)
            _ancestry(graph, value[0], order)


def _inputs(graph: Graph, node_id: str) -> dict[str, Any]:
    return dict(sorted(graph[node_id].get("inputs", {}).items()))


def _own(graph: Graph, node_id: str, order: Mapping[str, int], changed: Callable[[str], Hashable]) -> Hashable:
    parts: list[Hashable] = [graph[node_id]["class_type"], changed(node_id)]
    for name, value in _inputs(graph, node_id).items():
        parts.append((name, "ancestor", order.get(value[0]), value[1]) if is_link(value) else (name, hashable(value)))
    return tuple(parts)


@dataclass
class Kept:
    """One node's results, and what it showed."""

    result: Result
    used: int


class Cache:
    """The results of earlier prompts, as far as the server's mode keeps them."""

    def __init__(self) -> None:
        self._kept: dict[Hashable, Kept] = {}
        self._keys: dict[str, Hashable] = {}
        self._prompt = 0

    def begin(
        self,
        graph: Graph,
        changed: Callable[[str], Hashable],
        mode: Literal["classic", "lru", "none"],
        size: int,
    ) -> None:
        """A prompt starts: forget what the mode does not keep."""
        self._prompt += 1
        self._keys = {node_id: signature(graph, node_id, changed) for node_id in graph}
        used = set(self._keys.values())
        for key in used & self._kept.keys():
            self._kept[key].used = self._prompt
        match mode:
            case "none":
                self._kept = {}
            case "classic":
                self._kept = {key: kept for key, kept in self._kept.items() if key in used}
            case "lru":
                newest = sorted(self._kept, key=lambda key: -self._kept[key].used)
                keep = {key for n, key in enumerate(newest) if n < size or key in used}
                self._kept = {key: kept for key, kept in self._kept.items() if key in keep}

    def get(self, node_id: str) -> Result | None:
        """What is kept of a node of this prompt."""
        kept = self._kept.get(self._keys[node_id])
        return kept.result if kept else None

    def set(self, node_id: str, result: Result) -> None:
        """Keep a node's results."""
        self._kept[self._keys[node_id]] = Kept(result, self._prompt)

    def shown(self) -> dict[str, dict[str, Any]]:
        """What the nodes of this prompt have shown, now or when they last ran."""
        found = {node_id: self.get(node_id) for node_id in self._keys}
        return {node_id: result.ui for node_id, result in found.items() if result and result.ui}
