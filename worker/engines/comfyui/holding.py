"""What ComfyUI may hold of model files. It tells nobody: this is our own record of what ran. No I/O."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

from worker.job import ModelRef
from worker.mentions import Place, place_of

KEPT = 4
"""Graphs whose models a server is taken to hold that keeps results for as long as there is memory."""

_ONE = frozenset({"--cache-classic", "--cache-none"})


class Holding:
    """The models of the last graphs, as many as the server keeps results of."""

    def __init__(self) -> None:
        self._graphs: deque[frozenset[Place]] = deque()

    @property
    def places(self) -> frozenset[Place]:
        return frozenset().union(*self._graphs)

    def ran(self, models: Iterable[ModelRef], argv: Sequence[str]) -> None:
        """A graph with these models begins to run."""
        used = frozenset(place_of(ref.kind, ref.name) for ref in models)
        if used in self._graphs:
            self._graphs.remove(used)
        self._graphs.append(used)
        while len(self._graphs) > kept(argv):
            self._graphs.popleft()

    def forget(self) -> None:
        self._graphs.clear()


def kept(argv: Sequence[str]) -> int:
    """Of how many graphs a server that was started with these words keeps results, `KEPT` at most.

    One with ``--cache-classic`` and ``--cache-none``; ``--cache-lru`` counts nodes, of which a graph has several.
    """
    return 1 if _ONE.intersection(argv) else KEPT
