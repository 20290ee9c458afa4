"""Models of HTTP jobs that still wait: fetched ahead, when nobody needs the line for a job at work."""

from __future__ import annotations

import asyncio
from collections import OrderedDict

import structlog

from worker.errors import WorkerError
from worker.job import Job
from worker.tasks import cancel_all
from worker.tools import Tools
from worker.wants import lent, wants_of

log = structlog.get_logger()

MOST = 64
"""Jobs that are remembered; of more than that the oldest, which come first anyway, get no hint."""


class Hints:
    """Looks at waiting jobs one after another, in the order of their coming, and has the cache fetch what they name.

    What fails here is told to nobody: the job hears of it when its turn comes. A job that came to be worked on
    meanwhile, or is over, needs no hint.
    """

    def __init__(self, tools: Tools) -> None:
        self._tools = tools
        self._jobs: OrderedDict[str, Job] = OrderedDict()
        self._stirred = asyncio.Event()

    def note(self, job: Job) -> None:
        """A job waits."""
        self._jobs[job.id] = job
        while len(self._jobs) > MOST:
            self._jobs.popitem(last=False)
        self._stirred.set()

    def forget(self, job_id: str) -> None:
        """It waits no more."""
        self._jobs.pop(job_id, None)

    async def run(self) -> None:
        """A service: hints until the drain begins."""
        tools = self._tools
        while not tools.drain.begun:
            if not self._jobs:
                self._stirred.clear()
                await self._stirred.wait()
            await tools.gate.opened()
            if self._jobs and not tools.drain.begun:
                await self._hint(self._jobs.popitem(last=False)[1])

    async def _hint(self, job: Job) -> None:
        if any(live.id == job.id for live in self._tools.live):
            return
        task = asyncio.create_task(self._hinted(job), name=f"hint-{job.id}")
        try:
            await asyncio.wait({task})
        finally:
            await cancel_all({task})
        if (error := task.exception()) is not None:
            log.error("internal_error", where="hints", job=job.id, exc_info=error)
            self._tools.bench.metrics.bug()

    async def _hinted(self, job: Job) -> None:
        tools = self._tools
        try:
            wanted = lent(wants_of(job, await tools.engine.mentions(job)), tools.credentials(job.id))
        except WorkerError as error:
            log.debug("job_not_hinted", job=job.id, code=error.code)
            return
        for one in wanted:
            if not one.known:
                tools.models.hint(one)
