"""The right to do something for a delivery: kept by renewals, asked for before each effect."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

import structlog

from worker import failpoints
from worker.errors import JobCancelled, LeaseLost, QueueUnavailable
from worker.failpoints import Effect
from worker.live import LiveJob
from worker.node import Orders
from worker.queues.base import Delivery, Queue

log = structlog.get_logger()

ANSWERS = (Effect.ACK, Effect.NACK, Effect.REJECT)
"""Effects by which a delivery ends."""


class Lease:
    """Ours until (the time before the last successful renewal was sent) + visibility - margin.

    It starts unproven: the first renewal is sent at once, so that a delivery that lay in a frozen process
    is never acted upon. Work goes on while the lease is doubtful; effects wait for the next renewal.
    A renewal that the queue refuses while our answer is on its way to it may have come after that: the answer's own
    end tells whether the delivery was ours.
    """

    def __init__(
        self,
        queue: Queue,
        delivery: Delivery,
        job: LiveJob,
        *,
        rng: random.Random,
        on_orders: Callable[[Orders], None] = lambda orders: None,
    ) -> None:
        self._queue = queue
        self._delivery = delivery
        self._job = job
        self._rng = rng
        self._on_orders = on_orders
        self._visibility_s = delivery.visibility.total_seconds()
        self._margin_s = min(10.0, self._visibility_s / 10)
        self._valid_until = float("-inf")
        self._renewed = asyncio.Event()
        self._wanted = asyncio.Event()
        self._failed = 0
        self._answering: asyncio.Future[bool] | None = None

    async def keep(self) -> None:
        """A guard: renews for ever; raises `LeaseLost` when the queue says that the delivery is not ours."""
        loop = asyncio.get_running_loop()
        while True:
            self._wanted.clear()
            sent = loop.time()
            try:
                renewed = await self._renew()
            except LeaseLost:
                if await self._is_answered():
                    return
                raise
            if renewed:
                self._valid_until = sent + self._visibility_s - self._margin_s
                self._renewed.set()
                self._renewed = asyncio.Event()
                await self._rest(self._visibility_s / 4)
            else:
                await asyncio.sleep(min(5.0, self._visibility_s / 20) * self._rng.uniform(0.5, 1))

    async def _renew(self) -> bool:
        try:
            orders = await self._queue.extend(self._delivery)
        except QueueUnavailable as error:
            self._failed += 1
            say = log.warning if self._failed == 1 else log.debug
            say("lease_not_renewed", error=error.message)
            return False
        except JobCancelled:
            self._job.cancel()
            orders = None
        if self._failed:
            log.info("lease_renewed", tries=self._failed + 1)
            self._failed = 0
        if orders is not None:
            self._on_orders(orders)
        return True

    async def _rest(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._wanted.wait()
        except TimeoutError:
            pass

    async def _is_answered(self) -> bool:
        """Whether an answer that is on its way, if one is, comes through to the queue."""
        return self._answering is not None and await asyncio.shield(self._answering)

    async def before_effect(self) -> None:
        """Wait until an effect is allowed."""
        loop = asyncio.get_running_loop()
        while loop.time() >= self._valid_until:
            self._wanted.set()
            await self._renewed.wait()

    @asynccontextmanager
    async def effect(self, effect: Effect) -> AsyncIterator[None]:
        """Do one effect under the lease, with a failpoint on each side."""
        await self.before_effect()
        failpoints.reached(f"before_{effect}")
        if effect in ANSWERS:
            with self._answered():
                yield
        else:
            yield
        failpoints.reached(f"after_{effect}")

    @contextmanager
    def _answered(self) -> Iterator[None]:
        self._answering = asyncio.get_running_loop().create_future()
        taken = False
        try:
            yield
            taken = True
        finally:
            self._answering.set_result(taken)
            self._answering = None
