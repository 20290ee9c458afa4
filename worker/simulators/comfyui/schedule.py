"""The order in which the nodes of a graph run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from worker.simulators.comfyui.cache import is_link


class Schedule:
    """The nodes that must run for some outputs, as far as they are not kept already; outputs go first where ready."""

    def __init__(
        self,
        graph: Mapping[str, Any],
        outputs: Iterable[str],
        kept: Callable[[str], bool],
        is_output: Callable[[str], bool],
    ) -> None:
        self._graph = graph
        self._kept = kept
        self._is_output = is_output
        self._blockers: dict[str, set[str]] = {}
        self._blocking: dict[str, dict[str, None]] = {}
        for node_id in outputs:
            self._add(node_id)

    def __bool__(self) -> bool:
        return bool(self._blockers)

    def next(self) -> str:
        """The node to run now."""
        ready = [node_id for node_id, blockers in self._blockers.items() if not blockers]
        return next((n for depth in range(3) for n in ready if self._feeds_output(n, depth)), ready[0])

    def done(self, node_id: str) -> None:
        """A node has run."""
        del self._blockers[node_id]
        for blocked in self._blocking.pop(node_id):
            self._blockers[blocked].discard(node_id)

    def _feeds_output(self, node_id: str, depth: int) -> bool:
        if depth == 0:
            return self._is_output(node_id)
        return any(self._feeds_output(blocked, depth - 1) for blocked in self._blocking[node_id])

    def _add(self, node_id: str) -> None:
        waiting = [node_id]
        links: list[tuple[str, str]] = []
        while waiting:
            current = waiting.pop()
            if current in self._blockers:
                continue
            self._blockers[current], self._blocking[current] = set(), {}
            for value in self._graph[current].get("inputs", {}).values():
                if is_link(value) and not self._kept(value[0]):
                    waiting.append(value[0])
                    links.append((value[0], current))
        for source, target in links:
            self._blocking[source][target] = None
            self._blockers[target].add(source)
