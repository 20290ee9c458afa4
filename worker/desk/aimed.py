"""Jobs of a queue that are aimed at an endpoint: requests in the image server's own language, answered as over HTTP.

The delivery stays ours for as long as the endpoint works on it. What it answers ends the job once: an answer that would
be the same anywhere is its output, one that may be better elsewhere gives it back.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from datetime import timedelta
from typing import Any, Protocol, runtime_checkable

import pydantic_core
import structlog

from worker.drain import Drain
from worker.errors import Fault, LeaseLost, QueueUnavailable, WorkerError
from worker.failpoints import Effect
from worker.lease import Lease
from worker.live import LiveJob
from worker.log import bind_job
from worker.node import Orders
from worker.queues.base import Delivery, Queue, Received
from worker.result import Result
from worker.tasks import cancel_all, run_guarded
from worker.web.inside import Answer
from worker.web.problems import problem

log = structlog.get_logger()

OURS = frozenset({"/v1/jobs", ""})
"""Where a job document is sent."""

ELSEWHERE = frozenset({408, 429})
"""Statuses below 500 that another node, or another time, may not have."""

REST = timedelta(seconds=5)
PARTING_S = 5.0
_PAUSE_S, _PAUSE_MOST_S = 0.5, 15.0

Ask = Callable[[str, bytes, dict[str, str], asyncio.Event], Coroutine[Any, Any, Answer]]
"""Asks an endpoint; the event says that nobody waits for its answer any more."""


@runtime_checkable
class AimedQueue(Queue, Protocol):
    """A queue whose jobs name the endpoint that they are for."""

    def path_of(self, delivery: Delivery) -> str: ...

    async def complete(self, delivery: Delivery, output: bytes, otherwise: Callable[[WorkerError], bytes]) -> None:
        """Over, with this JSON; else with what is to be said where the queue does not take it, and why."""
        ...

    def leave(self) -> None: ...


class Aimed:
    """`Queue` over another one: it keeps what is aimed at an endpoint, and hands on what is a job document.

    `serves` has to be called before the first `receive`. `aclose` does not close the other queue.
    """

    def __init__(self, queue: AimedQueue, rng: random.Random) -> None:
        self.capacity = queue.capacity
        self.can_delay = queue.can_delay
        self._queue = queue
        self._rng = rng
        self._ask: Ask | None = None
        self._drain: Drain | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def serves(self, ask: Ask, drain: Drain) -> None:
        """How endpoints are asked, and until when the queue is told of their answers."""
        self._ask, self._drain = ask, drain

    async def receive(self) -> Received:
        received = await self._queue.receive()
        delivery = received.delivery
        if delivery is None or self._queue.path_of(delivery).partition("?")[0].rstrip("/") in OURS:
            return received
        if self._ask is None or self._drain is None:
            raise ValueError("nobody serves endpoints yet")
        task = asyncio.create_task(self._served(delivery, self._ask, self._drain), name=f"aimed-{delivery.id}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return Received(None, received.orders)

    async def _served(self, delivery: Delivery, ask: Ask, drain: Drain) -> None:
        loop = asyncio.get_running_loop()
        began, path, left = loop.time(), self._queue.path_of(delivery), asyncio.Event()
        keeper = LiveJob(delivery.id, lambda: None, since=began, hop_since=began, receipt=delivery.receipt)
        lease = Lease(self._queue, delivery, keeper, rng=self._rng)
        headers = {
            "content-type": "application/json",
            "salad-job-id": delivery.id,
            "idempotency-key": delivery.id,
        }
        asking = asyncio.create_task(ask(path, delivery.body, headers, left), name=f"ask-{delivery.id}")
        with bind_job(delivery.id):
            try:
                status = await run_guarded(self._end(delivery, asking, lease, drain), lease.keep())
            except LeaseLost:
                log.warning("job_abandoned", path=path, total_s=round(loop.time() - began, 3))
            else:
                log.info("request_settled", path=path, status=status, total_s=round(loop.time() - began, 3))
            finally:
                left.set()
                await asyncio.wait({asking}, timeout=PARTING_S)
                await cancel_all({asking})

    async def _end(self, delivery: Delivery, asking: asyncio.Task[Answer], lease: Lease, drain: Drain) -> int:
        await asyncio.wait({asking})
        answer = asking.result()
        pause_s = _PAUSE_S
        while True:
            try:
                await self._tell(delivery, answer, lease)
                return answer.status
            except QueueUnavailable as error:
                over = drain.left()
                if over is not None and over <= 0:
                    log.warning("job_unanswered", error=error.message)
                    return answer.status
                log.warning("queue_not_answering", error=error.message)
            await asyncio.sleep(pause_s * self._rng.uniform(0.5, 1))
            pause_s = min(pause_s * 2, _PAUSE_MOST_S)

    async def _tell(self, delivery: Delivery, answer: Answer, lease: Lease) -> None:
        if answer.status in ELSEWHERE or answer.status >= 500:
            async with lease.effect(Effect.NACK):
                await self._queue.nack(delivery, _rest(answer), _code(answer), charged=False)
        else:
            async with lease.effect(Effect.ACK):
                await self._queue.complete(delivery, answer.body or b"null", _refusal)

    async def extend(self, delivery: Delivery) -> Orders | None:
        return await self._queue.extend(delivery)

    async def ack(self, delivery: Delivery, result: Result) -> None:
        await self._queue.ack(delivery, result)

    async def nack(self, delivery: Delivery, delay: timedelta, code: str, *, charged: bool) -> None:
        await self._queue.nack(delivery, delay, code, charged=charged)

    async def reject(self, delivery: Delivery, result: Result) -> None:
        await self._queue.reject(delivery, result)

    async def check(self) -> str:
        return await self._queue.check()

    def leave(self) -> None:
        self._queue.leave()

    async def aclose(self) -> None:
        """Wait for what was asked, which the drain has ended; what is left then goes back with the other queue."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=PARTING_S)
        await cancel_all(self._tasks)


def _refusal(error: WorkerError) -> bytes:
    """The output that says why there is no other."""
    return bytes(problem(422 if error.fault is Fault.JOB else 500, error.message, code=error.code).body)


def _rest(answer: Answer) -> timedelta:
    """How long it may take until it is better here."""
    asked = answer.headers.get("retry-after", "")
    return timedelta(seconds=min(int(asked), 900)) if asked.isdecimal() else REST


def _code(answer: Answer) -> str:
    try:
        told = pydantic_core.from_json(answer.body)
    except ValueError:
        told = None
    code = told.get("code") if isinstance(told, dict) else None
    return code if isinstance(code, str) else f"http_{answer.status}"
