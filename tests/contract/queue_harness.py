"""A queue under test: drivers on one and the same queue, and the time that they see."""

from __future__ import annotations

import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import timedelta
from enum import Enum, auto
from pathlib import Path
from typing import Any, Protocol

import pytest

from tests.support.clock import START, FakeClock
from tests.support.redis import RedisServer
from tests.support.salad_bench import Node
from tests.support.salad_queue import PlatformsApi, SaladJobQueue
from tests.support.scheduling import FullServer, a_node
from tests.support.sqs import Server, made_line, moved_time
from worker.clock import Clock, CorrectedClock, SystemClock
from worker.node import Orders
from worker.queues.availability import AvailabilityProducer, AvailabilityQueue
from worker.queues.base import Delivery, JobState, Producer, Queue, Received
from worker.queues.memory import MemoryQueue
from worker.queues.policy import Policy
from worker.queues.redis import RedisQueue
from worker.queues.salad import SaladQueue
from worker.queues.sqlite import SqliteQueue
from worker.queues.sqs import SqsProducer, SqsQueue
from worker.result import Result
from worker.retry import Policy as Retries
from worker.settings.node import SaladSettings

VISIBILITY = timedelta(seconds=120)
SOON = timedelta(seconds=10)
NOW = timedelta(0)
BRIEF = timedelta(milliseconds=20)
POLICY = Policy(
    visibility=VISIBILITY, max_attempts=3, max_deliveries=4, keep_for=timedelta(days=7), keep_done=5, keep_inline=2
)


class Both(Queue, Producer, Protocol):
    """A driver that submits as well."""


class Can(Enum):
    """What a queue can do by its nature, beside what every queue can."""

    KEEP_CAUSES = auto()
    """It keeps by whom and how each hand-over ended, and counts accordingly."""

    TELL_STATES = auto()
    """It tells of every job what became of it."""

    KEEP_ORDER = auto()
    """By priority, then by age."""

    FENCE = auto()
    """It knows for itself whose lease is the latest: one that ran out is its holder's until another takes the job."""

    COUNT = auto()
    """It counts hand-overs and what waits, and knows since when."""

    HOLD_MANY = auto()
    """It hands a worker more than one job at a time."""

    UNDO = auto()
    """A receive that nobody waited for any more leaves no trace."""


@dataclass
class Harness:
    """Drivers on one and the same queue, and the time that they see.

    ``carries_bytes``: whatever was submitted is handed over byte for byte; else documents are, with their ids.
    ``looked`` shows what stands in the queue where it does not tell the states of jobs.
    """

    make: Callable[[str, Clock, timedelta], Both]
    clock: FakeClock = field(default_factory=FakeClock)
    opened: list[Both] = field(default_factory=list)
    carries_bytes: bool = True
    can: frozenset[Can] = frozenset(Can)
    looked: Callable[[], Any] | None = None

    async def look(self, queue: Producer, job_id: str) -> Any:
        """What an observer sees of the job."""
        return await queue.state(job_id) if self.looked is None else self.looked()

    def driver(self, worker: str = "w1", *, wait: timedelta = BRIEF) -> Both:
        self.opened.append(self.make(worker, self.clock, wait))
        return self.opened[-1]

    def advance(self, by: timedelta) -> None:
        self.clock.advance(by)

    async def aclose(self) -> None:
        for driver in self.opened:
            await driver.aclose()

    def document(self, body: bytes) -> Any:
        """What of a body all deliveries of it share."""
        if self.carries_bytes:
            return body
        return {name: value for name, value in json.loads(body).items() if name != "id"}


class WithServer:
    """Both sides of a queue behind a server. Looking at jobs waits until late answers were given back."""

    capacity: int | None = None
    can_delay: bool = True

    def __init__(self, queue: AvailabilityQueue | SqsQueue | SaladQueue, producer: Producer) -> None:
        self.queue, self.producer = queue, producer

    async def receive(self) -> Received:
        return await self.queue.receive()

    async def extend(self, delivery: Delivery) -> Orders | None:
        return await self.queue.extend(delivery)

    async def ack(self, delivery: Delivery, result: Result) -> None:
        await self.queue.ack(delivery, result)

    async def nack(self, delivery: Delivery, delay: timedelta, code: str, *, charged: bool) -> None:
        await self.queue.nack(delivery, delay, code, charged=charged)

    async def reject(self, delivery: Delivery, result: Result) -> None:
        await self.queue.reject(delivery, result)

    async def check(self) -> str:
        return await self.queue.check()

    async def submit(self, job_id: str, body: bytes, *, priority: int = 0) -> bool:
        return await self.producer.submit(job_id, body, priority=priority)

    async def state(self, job_id: str) -> JobState | None:
        return await self.producer.state(job_id)

    async def jobs(self, status: str | None = None, limit: int = 100) -> list[JobState]:
        await self.queue.settled()
        return await self.producer.jobs(status, limit)

    async def requeue(self, job_id: str) -> bool:
        return await self.producer.requeue(job_id)

    async def cancel(self, job_id: str) -> bool:
        return await self.producer.cancel(job_id)

    async def aclose(self) -> None:
        await self.queue.aclose()
        await self.producer.aclose()


async def memory(_: Path, stack: AsyncExitStack, request: pytest.FixtureRequest) -> Harness:
    first: list[MemoryQueue] = []

    def make(worker: str, clock: Clock, wait: timedelta) -> Both:
        first.append(MemoryQueue(clock, worker=worker, policy=POLICY, wait=wait))
        return first[0].beside(worker, wait=wait)

    return Harness(make)


async def sqlite(folder: Path, stack: AsyncExitStack, request: pytest.FixtureRequest) -> Harness:
    return Harness(
        lambda worker, clock, wait: SqliteQueue(
            folder / "queue.db", clock, worker=worker, policy=POLICY, wait=wait, rng=random.Random(1)
        )
    )


async def availability(_: Path, stack: AsyncExitStack, request: pytest.FixtureRequest) -> Harness:
    clock = FakeClock()
    server = await stack.enter_async_context(FullServer(clock, POLICY))

    def make(worker: str, clock: Clock, wait: timedelta) -> Both:
        queue = AvailabilityQueue(server.url(), a_node(worker), clock, wait=wait, rng=random.Random(1))
        return WithServer(queue, AvailabilityProducer(server.url(), clock))

    return Harness(make, clock, carries_bytes=False)


OF_SQS = frozenset({Can.COUNT, Can.HOLD_MANY})


async def sqs(_: Path, stack: AsyncExitStack, request: pytest.FixtureRequest) -> Harness:
    server: Server = request.getfixturevalue("sqs_server")
    clock = FakeClock()
    stack.enter_context(moved_time(clock))
    line = made_line(server, dead_after=50)
    corrected = CorrectedClock(SystemClock())

    def make(worker: str, clock: Clock, wait: timedelta) -> Both:
        queue = SqsQueue(
            line.url,
            corrected,
            policy=POLICY,
            wait=wait,
            rng=random.Random(1),
            elapsed=lambda: clock.now().timestamp(),
        )
        return WithServer(queue, SqsProducer(line.url, corrected))

    return Harness(make, clock, can=OF_SQS, looked=lambda: (line.counts(), line.counts(dead=True)))


async def redis(_: Path, stack: AsyncExitStack, request: pytest.FixtureRequest) -> Harness:
    server: RedisServer = request.getfixturevalue("redis_server")
    place = server.place()
    return Harness(lambda worker, clock, wait: RedisQueue(place, worker=worker, policy=POLICY, clock=clock, wait=wait))


class CutOff(Harness):
    """A queue that gives up on workers instead of leases: by the end of a visibility it hears nothing of any."""

    cut_off: Callable[[], None]

    def advance(self, by: timedelta) -> None:
        super().advance(by)
        if self.clock.now() - START >= VISIBILITY:
            self.cut_off()


async def salad(_: Path, stack: AsyncExitStack, request: pytest.FixtureRequest) -> Harness:
    service = await stack.enter_async_context(SaladJobQueue(attempts=1000))
    settings = SaladSettings(service_endpoint=service.target, service_use_tls=False)

    def make(worker: str, clock: Clock, wait: timedelta) -> Both:
        wait = max(wait, timedelta(milliseconds=200))
        quick = Retries(first=timedelta(milliseconds=10), most=timedelta(milliseconds=50))
        queue = SaladQueue(settings, Node(worker), clock, policy=POLICY, wait=wait, retries=quick, rng=random.Random(1))
        return WithServer(queue, PlatformsApi(service))

    seen = lambda: [(job.id, job.status, job.worker, tuple(job.events)) for job in service.jobs.values()]  # noqa: E731
    harness = CutOff(make, can=frozenset(), looked=seen)
    harness.cut_off = service.cut_off
    return harness


@dataclass(frozen=True)
class Driver:
    """How a driver's harness is opened, and what its queue can."""

    open: Callable[[Path, AsyncExitStack, pytest.FixtureRequest], Awaitable[Harness]]
    can: frozenset[Can] = frozenset(Can)


DRIVERS = {
    "memory": Driver(memory),
    "sqlite": Driver(sqlite),
    "availability": Driver(availability),
    "redis": Driver(redis),
    "sqs": Driver(sqs, OF_SQS),
    "salad": Driver(salad, frozenset()),
}


def able(*abilities: Can) -> list[str]:
    """The drivers that can do all that."""
    return [name for name, driver in DRIVERS.items() if driver.can.issuperset(abilities)]


def needs(*abilities: Can) -> pytest.MarkDecorator:
    """Run the test with the drivers that can do all that, and with no others."""
    return pytest.mark.parametrize("harness", able(*abilities), indirect=True)


async def _opened(name: str, request: pytest.FixtureRequest, folder: Path) -> AsyncIterator[Harness]:
    driver = DRIVERS[name]
    async with AsyncExitStack() as stack:
        harness = await driver.open(folder, stack, request)
        assert harness.can == driver.can
        stack.push_async_callback(harness.aclose)
        yield harness


@pytest.fixture(name="harness", params=DRIVERS)
async def open_harness(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Harness]:
    async for harness in _opened(request.param, request, tmp_path):
        yield harness


@pytest.fixture(name="harness", params=able(Can.TELL_STATES))
async def open_telling_harness(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Harness]:
    """Queues that tell of each job."""
    async for harness in _opened(request.param, request, tmp_path):
        yield harness


@pytest.fixture(name="byte_harness", params=["memory", "sqlite", "redis"])
async def open_byte_harness(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Harness]:
    """Queues that carry whatever they are given."""
    async for harness in _opened(request.param, request, tmp_path):
        yield harness


def body(number: int = 0) -> bytes:
    return b'{"params": {"prompt": "a cat", "seed": %d}}' % number


async def put(queue: Producer, *job_ids: str) -> None:
    for job_id in job_ids:
        assert await queue.submit(job_id, body())


async def is_empty(queue: Queue) -> bool:
    return (await queue.receive()).delivery is None
