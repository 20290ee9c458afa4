"""A queue under test: drivers on one and the same queue, and the time that they see."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Protocol

import pytest

from tests.support.clock import FakeClock
from worker.clock import Clock
from worker.queues.base import Producer, Queue
from worker.queues.memory import MemoryQueue
from worker.queues.policy import Policy
from worker.queues.sqlite import SqliteQueue

VISIBILITY = timedelta(seconds=120)
SOON = timedelta(seconds=10)
NOW = timedelta(0)
BRIEF = timedelta(milliseconds=20)
POLICY = Policy(
    visibility=VISIBILITY, max_attempts=3, max_deliveries=4, keep_for=timedelta(days=7), keep_done=5, keep_inline=2
)


class Both(Queue, Producer, Protocol):
    """A driver that submits as well."""


@dataclass
class Harness:
    """Drivers on one and the same queue, and the time that they see."""

    make: Callable[[str, Clock, timedelta], Both]
    clock: FakeClock = field(default_factory=FakeClock)
    opened: list[Both] = field(default_factory=list)

    def driver(self, worker: str = "w1", *, wait: timedelta = BRIEF) -> Both:
        self.opened.append(self.make(worker, self.clock, wait))
        return self.opened[-1]

    def advance(self, by: timedelta) -> None:
        self.clock.advance(by)

    async def aclose(self) -> None:
        for driver in self.opened:
            await driver.aclose()


def memory(_: Path) -> Harness:
    first: list[MemoryQueue] = []

    def make(worker: str, clock: Clock, wait: timedelta) -> Both:
        first.append(MemoryQueue(clock, worker=worker, policy=POLICY, wait=wait))
        return first[0].beside(worker, wait=wait)

    return Harness(make)


def sqlite(folder: Path) -> Harness:
    return Harness(
        lambda worker, clock, wait: SqliteQueue(
            folder / "queue.db", clock, worker=worker, policy=POLICY, wait=wait, rng=random.Random(1)
        )
    )


@pytest.fixture(name="harness", params=[memory, sqlite], ids=["memory", "sqlite"])
async def open_harness(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Harness]:
    harness: Harness = request.param(tmp_path)
    yield harness
    await harness.aclose()


def body(number: int = 0) -> bytes:
    return b'{"params": {"prompt": "a cat", "seed": %d}}' % number


async def put(queue: Producer, *job_ids: str) -> None:
    for job_id in job_ids:
        assert await queue.submit(job_id, body())


async def is_empty(queue: Queue) -> bool:
    return (await queue.receive()).delivery is None
