"""What the tests of the platform's job queue share: nodes with tokens, drivers that hurry, and the service."""

from __future__ import annotations

import base64
import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from typing import Any

from tests.support.clock import FakeClock
from tests.support.queues import result_of
from tests.support.salad_queue import SaladJobQueue
from worker.node import Identity, Report
from worker.queues.base import Delivery
from worker.queues.policy import Policy
from worker.queues.salad import SaladQueue
from worker.queues.salad.silence import Silence
from worker.retry import Policy as Retries
from worker.settings.node import SaladSettings

QUICK = Retries(first=timedelta(milliseconds=10), most=timedelta(milliseconds=50))
NOW = timedelta(0)
NOTHING = timedelta(milliseconds=100)
BODY: dict[str, Any] = {"params": {"prompt": "a cat"}}


class Node:
    """A node of the platform: each new token differs; ``has_none`` while its metadata service is away."""

    def __init__(self, worker: str = "w1") -> None:
        self.identity = Identity(worker, "machine", "test")
        self.tokens = 1
        self.has_none = False
        self.is_stuck = False

    async def report(self) -> Report:
        return Report()

    async def identity_token(self, refused: str | None = None) -> str | None:
        if refused is not None and refused == self.token and not self.is_stuck:
            self.tokens += 1
        return None if self.has_none else self.token

    @property
    def token(self) -> str:
        claims = json.dumps({"sub": self.identity.id, "n": self.tokens}).encode()
        return f"eyJhbGciOiJFUzI1NiJ9.{base64.urlsafe_b64encode(claims).decode().rstrip('=')}.c2lnbmF0dXJl"


class Bench:
    """One service and the drivers that were opened on it."""

    def __init__(self, service: SaladJobQueue, stack: AsyncExitStack) -> None:
        self.service = service
        self._stack = stack

    def driver(self, node: Node | None = None, **options: Any) -> SaladQueue:
        policy = options.pop("policy", Policy())
        target = options.pop("target", self.service.target)
        hurried: dict[str, Any] = {
            "wait": timedelta(seconds=5),
            "sure": timedelta(seconds=5),
            "retries": QUICK,
            "rng": random.Random(1),
            **options,
        }
        salad = SaladSettings(service_endpoint=target, service_use_tls=False)
        queue = SaladQueue(salad, node or Node(), FakeClock(), policy=policy, **hurried)
        self._stack.push_async_callback(queue.aclose)
        return queue


@asynccontextmanager
async def benched(**options: Any) -> AsyncIterator[Bench]:
    async with AsyncExitStack() as stack:
        yield Bench(await stack.enter_async_context(SaladJobQueue(**options)), stack)


async def handed(queue: SaladQueue) -> Delivery:
    """The next delivery; there has to be one."""
    delivery = (await queue.receive()).delivery
    assert delivery is not None
    return delivery


def impatient(limit_s: float = 0.2) -> Silence:
    """A watchdog for streams that say a word every twentieth of a second."""
    return Silence(limit_s, limit_s)


VERBS: dict[str, Callable[[SaladQueue, Delivery], Awaitable[Any]]] = {
    "extend": lambda queue, delivery: queue.extend(delivery),
    "ack": lambda queue, delivery: queue.ack(delivery, result_of(delivery.id)),
    "reject": lambda queue, delivery: queue.reject(delivery, result_of(delivery.id, "failed", code="invalid_job")),
    "nack": lambda queue, delivery: queue.nack(delivery, NOW, "internal", charged=True),
}
ENDS = {name: verb for name, verb in VERBS.items() if name != "extend"}
