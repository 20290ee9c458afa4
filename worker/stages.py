"""Timing and logging each hop of a job, and nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import structlog

from worker.live import Hop, LiveJob, Span
from worker.metrics import Metrics

log = structlog.get_logger()


class StageClock:
    """The seconds that each hop of one job took; a hop entered twice adds up."""

    def __init__(self, job: LiveJob, metrics: Metrics) -> None:
        self._job = job
        self._metrics = metrics
        self.seconds: dict[Hop, float] = {}

    @contextmanager
    def hop(self, hop: Hop) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        began = loop.time()
        self._job.enter(hop)
        try:
            yield
        finally:
            ended = loop.time()
            took = ended - began
            self._job.passed(Span(hop, began, ended))
            self.seconds[hop] = self.seconds.get(hop, 0.0) + took
            self._metrics.hop(str(hop), took)
            log.debug("hop_passed", hop=str(hop), seconds=round(took, 3))

    @property
    def total(self) -> float:
        return asyncio.get_running_loop().time() - self._job.since
