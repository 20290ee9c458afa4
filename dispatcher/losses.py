"""What nodes tell of the run before their present one: the jobs that it took along need not wait for their leases."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import structlog
from pydantic import ValidationError

from dispatcher.desk import Desk
from dispatcher.fleet import Fleet
from dispatcher.heartbeats import Heartbeats
from dispatcher.metrics import Metrics
from dispatcher.store.base import Loss, Store
from worker.wire import PreviousRun

log = structlog.get_logger()

NOTED_MOST = 10_000


def losses_of(run: PreviousRun) -> list[Loss]:
    """The jobs that the run held under tokens of ours, and how each ended."""
    tokens = ((job, job.token) for job in run.jobs)
    return [
        Loss(job.id, token, run.code_of(job))
        for job, token in tokens
        if isinstance(token, int) and not isinstance(token, bool)
    ]


def previous_run(stats: Mapping[str, Any] | None) -> PreviousRun | None:
    """The run before the present one as a node tells of it; None where it tells nothing that can be read."""
    told = (stats or {}).get("previous")
    try:
        return None if told is None else PreviousRun.model_validate(told)
    except ValidationError as error:
        log.warning("previous_run_not_understood", fields=[".".join(map(str, one["loc"])) for one in error.errors()])
        return None


@dataclass(slots=True)
class Losses:
    """Hears of each run once; what nodes say of it again and again is passed over. To be used in one loop."""

    store: Store
    fleet: Fleet
    heartbeats: Heartbeats
    desk: Desk
    metrics: Metrics
    max_attempts: int
    _noted: OrderedDict[str, str] = field(default_factory=OrderedDict)

    async def hear(self, node: str, stats: Mapping[str, Any] | None) -> None:
        """The node tells this. Raises `StoreUnavailable`: then it counts as not told."""
        told = (stats or {}).get("previous")
        name = str(told.get("run")) if isinstance(told, Mapping) else ""
        if not name or self._noted.get(node) == name:
            return
        run = previous_run(stats)
        if run is not None and (losses := losses_of(run)):
            await self._lose(node, run, losses)
        self._noted.pop(node, None)
        self._noted[node] = name
        while len(self._noted) > NOTED_MOST:
            self._noted.popitem(last=False)

    async def _lose(self, node: str, run: PreviousRun, losses: list[Loss]) -> None:
        rows = await self.store.lose(node, losses, max_attempts=self.max_attempts)
        codes = {loss.job_id: loss.code for loss in losses}
        log.info("node_lost_jobs", node=node, ended=run.ended, jobs=codes, back=[row.id for row in rows])
        for row in rows:
            self.heartbeats.over(row.id)
            self.fleet.over(row.id)
            self.metrics.released(codes[row.id])
            if row.status == "waiting":
                self.desk.back(row)
