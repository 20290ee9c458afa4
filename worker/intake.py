"""Accepting work: one receive loop for the queue, slots for what is held, and as little look-ahead as pays."""

from __future__ import annotations

import asyncio
import math
import random

import structlog

from worker import lookahead
from worker.dependencies import Dependency
from worker.drain import remaining
from worker.errors import QueueUnavailable
from worker.live import Hop
from worker.pipeline import run_job
from worker.queues.base import Delivery, Received
from worker.status import Phase, Status
from worker.tasks import cancel_all, first_of
from worker.tools import Tools

log = structlog.get_logger()

PAST_ENGINE_MOST = 32
"""Deliveries that may be on their way from the engine to the queue."""

BACK_OFF_FIRST_S, BACK_OFF_MOST_S = 1.0, 30.0


class Intake:
    """Receives while the worker is READY and owns the tasks of the jobs.

    ``window`` bounds what generates or is ready to, beside ``parked`` jobs that wait for their models; the queue's
    capacity bounds all that is out.
    """

    def __init__(self, tools: Tools, status: Status, *, window: int, parked: int, rng: random.Random) -> None:
        self._tools = tools
        self._status = status
        self._window = window
        self._parked = parked
        self._rng = rng
        self._jobs: set[asyncio.Task[None]] = set()
        self._failures = 0

    async def run(self) -> None:
        """A service: receives until the drain begins, and returns when every job has ended."""
        while await self._turn_comes():
            received = await self._receive()
            if received.delivery is not None:
                self._start(received.delivery)
                await self._tools.live.changed()
            if received.orders is not None:
                self._tools.orders.obey(received.orders)
        while self._jobs:
            await asyncio.wait(self._jobs)

    async def aclose(self) -> None:
        """End the tasks of jobs that outlived the drain; their leases run out and others do them."""
        if self._jobs:
            log.warning("jobs_left_behind", jobs=[job.id for job in self._tools.live])
        await cancel_all(self._jobs)

    async def _turn_comes(self) -> bool:
        """Wait until the next delivery should be received; False when none should, because the drain has begun."""
        loop = asyncio.get_running_loop()
        while not self._tools.drain.begun:
            wait_s = self._wait_s(loop.time())
            if wait_s <= 0:
                return True
            try:
                async with asyncio.timeout(None if math.isinf(wait_s) else wait_s):
                    await self._anything_changes()
            except TimeoutError:
                continue
        return False

    def _wait_s(self, now: float) -> float:
        if self._status.phase is not Phase.READY:
            return math.inf
        held = list(self._tools.live)
        past = sum(job.hop.is_past_engine for job in held)
        capacity = self._tools.bench.queue.capacity
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

    async def _receive(self) -> Received:
        """One receive, given up when the worker stops being ready; a cancelled one leaves nothing leased."""
        receiving = asyncio.create_task(self._tools.bench.queue.receive(), name="intake-receive")
        leaving = asyncio.create_task(self._unready(), name="intake-unready")
        try:
            await asyncio.wait({receiving, leaving}, return_when=asyncio.FIRST_COMPLETED)
            receiving.cancel()
            await asyncio.wait({receiving})
            if receiving.cancelled():
                return Received()
            received = receiving.result()
        except QueueUnavailable as error:
            await self._back_off(error)
            return Received()
        finally:
            await cancel_all({receiving, leaving})
        self._failures = 0
        self._tools.dependencies.succeeded(Dependency.QUEUE)
        return received

    async def _unready(self) -> None:
        while self._status.phase is Phase.READY and not self._tools.drain.begun:
            await first_of(self._status.changed(), self._tools.drain.beginning())

    async def _back_off(self, error: QueueUnavailable) -> None:
        self._failures += 1
        self._tools.dependencies.failed(Dependency.QUEUE, error)
        pause_s = min(BACK_OFF_FIRST_S * 2 ** (self._failures - 1), BACK_OFF_MOST_S) * self._rng.uniform(0.5, 1)
        log.warning("queue_unavailable", error=error.message, pause_s=round(pause_s, 1))
        try:
            async with asyncio.timeout(pause_s):
                await self._tools.drain.beginning()
        except TimeoutError:
            pass

    def _start(self, delivery: Delivery) -> None:
        self._tools.bench.metrics.received()
        task = asyncio.create_task(run_job(delivery, self._tools), name=f"job-{delivery.id}")
        self._jobs.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._jobs.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self._tools.bench.metrics.bug()
            log.error("job_task_broke", job=task.get_name(), exc_info=task.exception())
