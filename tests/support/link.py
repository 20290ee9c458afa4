"""One worker's way to its queue, which can be cut."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from worker.errors import LeaseLost, QueueUnavailable
from worker.node import Orders
from worker.queues.base import Delivery, Received
from worker.queues.memory import MemoryQueue
from worker.result import Result


class Link:
    """One worker's way to the queue: ``away`` nothing answers; of a job that is ``lost`` another holds the lease."""

    capacity: int | None = None
    can_delay: bool = True

    def __init__(self, queue: MemoryQueue) -> None:
        self.queue = queue
        self.away = False
        self._held: dict[str, Delivery] = {}
        self._lost: list[Any] = []

    def lose(self, job_id: str) -> None:
        """The delivery of this job that was received last is no longer ours."""
        self._lost.append(self._held[job_id].receipt)

    def _reach(self, delivery: Delivery | None = None) -> None:
        if self.away:
            raise QueueUnavailable
        if delivery is not None and delivery.receipt in self._lost:
            raise LeaseLost

    async def receive(self) -> Received:
        self._reach()
        received = await self.queue.receive()
        if received.delivery is not None:
            self._held[received.delivery.id] = received.delivery
        return received

    async def extend(self, delivery: Delivery) -> Orders | None:
        self._reach(delivery)
        return await self.queue.extend(delivery)

    async def ack(self, delivery: Delivery, result: Result) -> None:
        self._reach(delivery)
        await self.queue.ack(delivery, result)

    async def nack(self, delivery: Delivery, delay: timedelta, code: str, *, charged: bool) -> None:
        self._reach(delivery)
        await self.queue.nack(delivery, delay, code, charged=charged)

    async def reject(self, delivery: Delivery, result: Result) -> None:
        self._reach(delivery)
        await self.queue.reject(delivery, result)

    async def check(self) -> str:
        self._reach()
        return await self.queue.check()

    async def aclose(self) -> None:
        """The queue stays."""
