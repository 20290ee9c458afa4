"""Whole workers in virtual time, each on a real queue, by a way that can be cut.

The drivers are the real ones, and so are the peers: the file, Redis, moto's SQS, the stand-ins of the scheduling
server and of the platform's queue. Time stands still while a peer is asked. The two stand-ins are asked without a
socket: they say what nobody asked for just then, which has no place in a time that jumps.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Protocol, cast

import pytest

from tests.support.cable import cabled
from tests.support.redis import RedisServer
from tests.support.salad_bench import Node
from tests.support.salad_in_process import InProcessService
from tests.support.salad_queue import PlatformsApi, SaladJobQueue
from tests.support.scheduled import facing
from tests.support.scheduling import FullServer, a_node
from tests.support.sqs import Line, Server, made_line, moved_time
from tests.support.standing import StandingRedis, StandingSqlite, StandingSqs
from tests.support.virtual import START, VirtualClock, VirtualLoop, elapse
from tests.support.world import VISIBILITY, World
from worker.clock import CorrectedClock, SystemClock
from worker.queues.base import JobState, Queue
from worker.queues.memory import MemoryQueue
from worker.queues.policy import Policy
from worker.queues.redis import RedisPlace
from worker.queues.salad import SaladQueue
from worker.queues.sqs import SqsProducer
from worker.settings.node import SaladSettings

POLICY = Policy(visibility=VISIBILITY)
LEASE_S = VISIBILITY.total_seconds()
FENCING = frozenset({"sqlite", "availability", "redis"})
"""Queues that leave a job to a holder whose lease ran out, as long as nobody else has taken it."""

OVER = frozenset({"done", "dead", "succeeded", "failed"})


class LoopClock:
    """As `VirtualClock`, for threads too; ahead of it by ``skew``."""

    def __init__(self, skew: timedelta = timedelta(0)) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        self._loop = loop
        self.skew = skew

    def now(self) -> datetime:
        return START + timedelta(seconds=self._loop.now) + self.skew


class Submitting(Protocol):
    """What submits to a queue, and tells how a job stands."""

    async def submit(self, job_id: str, body: bytes, *, priority: int = 0) -> bool: ...

    async def state(self, job_id: str) -> JobState | None: ...


@dataclass(frozen=True)
class Way:
    """One worker's driver, and how its way to the queue is cut and mended; of the others' it says nothing."""

    driver: Queue
    cut: Callable[[], None]
    mend: Callable[[], None]
    set_clock: Callable[[timedelta], None] = lambda skew: None
    """Have the driver's own clock be ahead by so much; nothing where it goes by the queue's alone."""


@dataclass
class Outpost:
    """A queue with workers on it. ``opened`` gives a worker of that name its driver."""

    kind: str
    jobs: Submitting
    opened: Callable[[str], Any]
    again: Callable[[bytes], Any]
    """Puts a document there as a second job or message, where the queue lets one."""

    refuse: Callable[[], None] | None = None
    """No worker's credentials are good from now on, and those of connections neither; None where there are none."""

    accept: Callable[[], None] = lambda: None

    async def worker(self, name: str = "w1", **options: Any) -> tuple[World, Way]:
        """A worker that takes its jobs from here, and its way."""
        world = World(worker=name, **options)
        way: Way = await self.opened(name)
        world.queue = cast("MemoryQueue", self.jobs)
        world.link.queue = cast("MemoryQueue", way.driver)
        world.link.capacity, world.link.can_delay = way.driver.capacity, way.driver.can_delay
        return world, way

    async def over(self, *job_ids: str, seconds: float = 5000) -> None:
        """Let time pass until each of these jobs has ended."""
        until = asyncio.get_running_loop().time() + seconds
        for job_id in job_ids:
            while (await self.status_of(job_id)) not in OVER:
                assert asyncio.get_running_loop().time() < until, f"{job_id} is {await self.status_of(job_id)}"
                await elapse(1)

    async def status_of(self, job_id: str) -> str:
        state = await self.jobs.state(job_id)
        assert state is not None
        return state.status


class _Messages:
    """Of SQS nobody hears how a job stands: it is over when no message is left."""

    def __init__(self, line: Line, producer: SqsProducer) -> None:
        self.line, self._producer = line, producer

    async def submit(self, job_id: str, body: bytes, *, priority: int = 0) -> bool:
        return await self._producer.submit(job_id, body)

    async def state(self, job_id: str) -> JobState:
        waiting, hidden = await asyncio.to_thread(self.line.counts)
        status = "waiting" if waiting else "leased" if hidden else "done"
        return JobState(job_id, status, 0, (), None, None)


async def _sqlite(folder: Path, stack: AsyncExitStack, _: pytest.FixtureRequest) -> Outpost:
    """All workers on a file are of one machine, whose clock they share."""
    clock = LoopClock()

    def set_clock(skew: timedelta) -> None:
        clock.skew = skew

    async def opened(name: str) -> Way:
        driver = StandingSqlite(folder / "queue.db", clock, worker=name, policy=POLICY, rng=random.Random(1))
        stack.push_async_callback(driver.aclose)
        return Way(driver, driver.sever, driver.mend, set_clock)

    jobs = cast("Submitting", (await opened("jobs")).driver)
    return Outpost("sqlite", jobs, opened, lambda body: jobs.submit("a", body))


async def _availability(_: Path, stack: AsyncExitStack, __: pytest.FixtureRequest) -> Outpost:
    server = FullServer(VirtualClock(), POLICY)

    async def opened(name: str) -> Way:
        queue, way = await stack.enter_async_context(facing(server, a_node(name), policy=POLICY))
        return Way(queue, way.sever, way.mend)

    def token(wanted: str | None) -> None:
        server.node_token = wanted

    again = lambda body: server.queue.submit("a", body)  # noqa: E731
    return Outpost("availability", server.queue, opened, again, lambda: token("another"), lambda: token(None))


async def _redis(_: Path, stack: AsyncExitStack, request: pytest.FixtureRequest) -> Outpost:
    server: RedisServer = request.getfixturevalue("redis_server")
    place = server.place()
    user = place.stream
    server.ask("ACL", "SETUSER", user, "on", ">secret", "~*", "+@all")
    stack.callback(lambda: server.ask("ACL", "DELUSER", user))

    def password(wanted: str) -> None:
        server.ask("ACL", "SETUSER", user, "resetpass", f">{wanted}")
        server.ask("CLIENT", "KILL", "USER", user)

    async def again(body: bytes) -> None:
        await asyncio.to_thread(server.ask, "XADD", place.stream, "*", "job", body)

    async def opened(name: str) -> Way:
        cable = await stack.enter_async_context(cabled(server.port))
        url = cable.url().replace("//", f"//{user}:secret@")
        far = RedisPlace(url, place.stream, place.group)
        driver = StandingRedis(far, worker=name, policy=POLICY, clock=VirtualClock())
        stack.push_async_callback(driver.aclose)
        return Way(driver, cable.sever, cable.mend)

    jobs = StandingRedis(place, worker="jobs", policy=POLICY, clock=VirtualClock())
    stack.push_async_callback(jobs.aclose)
    return Outpost("redis", jobs, opened, again, lambda: password("another"), lambda: password("secret"))


async def _sqs(_: Path, stack: AsyncExitStack, request: pytest.FixtureRequest) -> Outpost:
    server: Server = request.getfixturevalue("sqs_server")
    stack.enter_context(moved_time(LoopClock()))
    line = made_line(server, dead_after=50)
    path = line.url.removeprefix(server.url)

    async def opened(name: str) -> Way:
        cable = await stack.enter_async_context(cabled(int(server.url.rpartition(":")[2])))
        url = f"http://127.0.0.1:{cable.port}{path}"
        driver = StandingSqs(url, CorrectedClock(SystemClock()), policy=POLICY, rng=random.Random(1))
        stack.push_async_callback(driver.aclose)
        return Way(driver, cable.sever, cable.mend)

    producer = SqsProducer(line.url, CorrectedClock(SystemClock()))
    stack.push_async_callback(producer.aclose)

    def known(keys: set[str] | None) -> None:
        server.bent.keys = keys

    again = lambda body: producer.submit("a", body)  # noqa: E731
    refuse, accept = lambda: known({"another"}), lambda: known(None)
    return Outpost("sqs", _Messages(line, producer), opened, again, refuse, accept)


async def _salad(_: Path, stack: AsyncExitStack, __: pytest.FixtureRequest) -> Outpost:
    platform = SaladJobQueue(heartbeat_s=10, grace_s=LEASE_S, attempts=100)
    nodes: list[Node] = []

    def refuse() -> None:
        for node in nodes:
            platform.refused.add(node.token)
            node.is_stuck = True
        platform.expire_tokens()

    async def again(body: bytes) -> None:
        platform.submit(f"again-{len(platform.jobs)}", body)

    async def opened(name: str) -> Way:
        settings, node = SaladSettings(), Node(name)
        nodes.append(node)
        driver = SaladQueue(settings, node, VirtualClock(), policy=POLICY, rng=random.Random(1))
        service = driver._service = InProcessService(settings, node, platform)
        stack.push_async_callback(driver.aclose)
        return Way(driver, service.sever, service.mend)

    return Outpost("salad", PlatformsApi(platform), opened, again, refuse, platform.refused.clear)


KINDS: Mapping[str, Any] = {
    "sqlite": _sqlite,
    "availability": _availability,
    "redis": _redis,
    "sqs": _sqs,
    "salad": _salad,
}


@asynccontextmanager
async def outpost(kind: str, folder: Path, request: pytest.FixtureRequest) -> AsyncIterator[Outpost]:
    async with AsyncExitStack() as stack:
        yield await KINDS[kind](folder, stack, request)
