"""What a batch of decisions looks at: the first jobs of the models that concern its nodes, read where need be."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from dispatcher.batch import Line, interests
from dispatcher.demand import Demands
from dispatcher.heads import Heads
from dispatcher.store.base import Store
from dispatcher.words import NO_MODEL, Key, NodeView, Rules, Waiting
from worker.clock import Clock

COLD, WARM, CROWD = 2, 8, 64
"""How many first jobs are read of a model that no node of the batch has in memory, that some have, that many have."""

ASIDE_S, ASIDE_MOST, LOOKS = 30.0, 200, 4
"""For how long and for how many jobs it is remembered that nobody could do them, and after how many of them in a row
the next batch goes on looking."""


@dataclass(slots=True)
class Lookout:
    """Reads the board, and remembers it for a moment (`heads`).

    ``could``: whether a node is there that could do a job. One that nobody could do waits on, but is nobody's first in
    line meanwhile (``aside``, by id, with the time until which): it would stand there for ever, and no job behind it
    would come up for being passed over.
    """

    store: Store
    demands: Demands
    rules: Rules
    clock: Clock
    could: Callable[[Waiting], bool]
    heads: Heads = field(default_factory=Heads)
    aside: dict[str, float] = field(default_factory=dict)

    async def look(self, views: Mapping[str, NodeView]) -> tuple[dict[str, list[Key]], Line]:
        """By node whose first jobs its decision looks at, all of which are known then; and who is first in line.

        An idle service asks its database nothing. Raises `StoreUnavailable`.
        """
        now = _now()
        keys = interests(views.values(), self.demands.index, self.rules)
        wanted = {key for of_node in keys.values() for key in of_node if self._waits(key)}
        line = Line()
        if wanted or self.demands.waiting:
            crowds = Counter(key for view in views.values() for key in view.loaded)
            crowds[NO_MODEL] = len(views)
            missing = self.heads.missing(wanted, now)
            line = await self._read({key: self._many(key, crowds[key]) for key in missing})
        return keys, line

    def is_short(self, key: Key) -> bool:
        """Whether jobs of the model wait that were not read, and none that was read is left."""
        return self._waits(key) > 0 and self.heads.is_short(key)

    def _many(self, key: Key, crowd: int) -> int:
        """How many first jobs are to be read of a model that so many nodes have in memory."""
        if not crowd or self._waits(key) <= COLD:
            return COLD
        return WARM if crowd <= WARM else CROWD

    async def _read(self, wanted: Mapping[Key, int]) -> Line:
        for job_id in [job_id for job_id, until in self.aside.items() if until <= _now()]:
            del self.aside[job_id]
        found, oldest, passed = await self.store.board(wanted, but=self.aside)
        for _ in range(LOOKS):
            if oldest is None or len(self.aside) >= ASIDE_MOST or self.could(oldest):
                break
            self.aside[oldest.id] = _now() + ASIDE_S
            _, oldest, passed = await self.store.board({}, but=self.aside)
        now, wall = _now(), self.clock.now()
        self.heads.put(found, wanted, now)
        for key in wanted:
            jobs = found.get(key)
            since = jobs[0].since if jobs else None
            self.demands.first(key, now - (wall - since).total_seconds() if since is not None else None)
        return Line(oldest, passed)

    def _waits(self, key: Key) -> int:
        demand = self.demands.index.get(key)
        return demand.waiting if demand is not None else 0


def _now() -> float:
    return asyncio.get_running_loop().time()
