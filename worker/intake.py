"""Accepting work: one receive loop an open queue, slots for what is held, and as little look-ahead as pays."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import structlog

from worker import lookahead
from worker.dependencies import Dependency
from worker.drain import remaining
from worker.errors import AuthFailed, ConfigError, QueueUnavailable, WorkerError
from worker.live import Hop
from worker.pipeline import run_job
from worker.queues.base import Delivery, Leaving, Received
from worker.status import Phase, Status
from worker.tasks import cancel_all, first_of, gather_bare
from worker.tools import Tools

log = structlog.get_logger()

PAST_ENGINE_MOST = 32
"""Deliveries that may be on their way from the engine to the queue."""

BACK_OFF_FIRST_S, BACK_OFF_MOST_S = 1.0, 30.0


@dataclass(slots=True)
class _Line:
    """One queue with the tools of its jobs; ``failures`` in a row to receive from it."""

    tools: Tools
    failures: int = 0


class Intake:
    """Receives while the worker is READY and owns the tasks of the jobs.

    ``window`` bounds what generates or is ready to, beside ``parked`` jobs that wait for their models; a queue's
    capacity bounds all that is out. ``beside`` are the tools of further queues: they differ in nothing else.
    """

    def __init__(
        self,
        tools: Tools,
        status: Status,
        *,
        window: int,
        parked: int,
        rng: random.Random,
        beside: Sequence[Tools] = (),
    ) -> None:
        self._tools = tools
        self._lines = [_Line(one) for one in (tools, *beside)]
        self._status = status
        self._window = window
        self._parked = parked
        self._rng = rng
        self._jobs: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """A service: receives until the drain begins, and returns when every job has ended."""
        await gather_bare([self._take_from(line) for line in self._lines], name="intake")
        while self._jobs:
            await asyncio.wait(self._jobs)

    async def _take_from(self, line: _Line) -> None:
        while await self._turn_comes(line):
            received = await self._receive(line)
            if received.delivery is not None:
                self._start(received.delivery, line.tools)
                await self._tools.live.changed()
            if received.orders is not None:
                self._tools.orders.obey(received.orders)
        _leave(line)

    async def aclose(self) -> None:
        """End the tasks of jobs that outlived the drain; their leases run out and others do them."""
        if self._jobs:
            log.warning("jobs_left_behind", jobs=[job.id for job in self._tools.live])
        await cancel_all(self._jobs)

    async def _turn_comes(self, line: _Line) -> bool:
        """Wait until the next delivery should be received; False when none should, because the drain has begun."""
        loop = asyncio.get_running_loop()
        while not self._tools.drain.begun:
            wait_s = self._wait_s(line, loop.time())
            if wait_s <= 0:
                return True
            if self._status.phase is not Phase.READY:
                _leave(line)
            try:
                async with asyncio.timeout(None if math.isinf(wait_s) else wait_s):
                    await self._anything_changes()
            except TimeoutError:
                continue
        return False

    def _wait_s(self, line: _Line, now: float) -> float:
        if self._status.phase is not Phase.READY:
            return math.inf
        held = list(self._tools.live)
        past = sum(job.hop.is_past_engine for job in held)
        capacity = line.tools.bench.queue.capacity
        if past >= PAST_ENGINE_MOST or (capacity is not None and len(held) >= capacity):
            return math.inf
        running = next((job for job in held if job.hop is Hop.GENERATE), None)
        parked = self._tools.live.parked
        needing = lookahead.Held(
            ready=len(held) - past - parked - (running is not None),
            parked=parked,
            running=running is not None,
            running_left_s=None if running is None else remaining(running, now=now, pace=self._tools.pace),
        )
        return lookahead.when(needing, window=self._window, places=self._parked, pace=self._tools.pace)

    async def _anything_changes(self) -> None:
        await first_of(self._tools.live.changed(), self._status.changed(), self._tools.drain.beginning())

    async def _receive(self, line: _Line) -> Received:
        """One receive, given up when nothing more can be held; a cancelled one leaves nothing leased."""
        receiving = asyncio.create_task(line.tools.bench.queue.receive(), name="intake-receive")
        leaving = asyncio.create_task(self._no_room(line), name="intake-no-room")
        try:
            await asyncio.wait({receiving, leaving}, return_when=asyncio.FIRST_COMPLETED)
            receiving.cancel()
            await asyncio.wait({receiving})
            if receiving.cancelled():
                return Received()
            received = receiving.result()
        except (AuthFailed, ConfigError, QueueUnavailable) as error:
            await self._back_off(line, error)
            return Received()
        finally:
            await cancel_all({receiving, leaving})
        line.failures = 0
        if line is self._lines[0]:
            self._tools.dependencies.succeeded(Dependency.QUEUE)
        return received

    async def _no_room(self, line: _Line) -> None:
        """Until the worker stops being ready, or the jobs of another queue took the place that this one waits for."""
        loop = asyncio.get_running_loop()
        alone = len(self._lines) == 1
        while self._status.phase is Phase.READY and not self._tools.drain.begun:
            if alone:
                await first_of(self._status.changed(), self._tools.drain.beginning())
            elif math.isinf(self._wait_s(line, loop.time())):
                return
            else:
                await self._anything_changes()

    async def _back_off(self, line: _Line, error: WorkerError) -> None:
        line.failures += 1
        self._tools.dependencies.failed(Dependency.QUEUE, error)
        pause_s = min(BACK_OFF_FIRST_S * 2 ** (line.failures - 1), BACK_OFF_MOST_S) * self._rng.uniform(0.5, 1)
        log.warning("queue_unavailable", error=error.message, pause_s=round(pause_s, 1))
        try:
            async with asyncio.timeout(pause_s):
                await self._tools.drain.beginning()
        except TimeoutError:
            pass

    def _start(self, delivery: Delivery, tools: Tools) -> None:
        tools.bench.metrics.received()
        task = asyncio.create_task(run_job(delivery, tools), name=f"job-{delivery.id}")
        self._jobs.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._jobs.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self._tools.bench.metrics.bug()
            log.error("job_task_broke", job=task.get_name(), exc_info=task.exception())


def _leave(line: _Line) -> None:
    """While the worker is not READY nothing is to come with the answer to the job that is out."""
    queue: object = line.tools.bench.queue
    if isinstance(queue, Leaving):
        queue.leave()
