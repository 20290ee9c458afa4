"""Attempts at one job that end as a history says, on any queue: by the worker's own settlement, without any engine."""

from __future__ import annotations

import asyncio
import random
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Literal

from hypothesis import strategies as st

from tests.support.clock import FakeClock
from tests.support.fakes import FakeReceiver, document
from tests.support.queues import taken
from tests.support.sqs import Server, made_line, moved_time, submitting
from worker import failpoints
from worker.clock import CorrectedClock, SystemClock
from worker.dependencies import Dependencies
from worker.drain import Drain
from worker.errors import DiskFull, Disposition, Draining, EngineCrashed, Fault, OutputEmpty, WorkerError
from worker.history import informed
from worker.job import Limits, document_of, parse
from worker.lease import Lease
from worker.live import Live
from worker.lookahead import Pace
from worker.metrics import Metrics
from worker.node import Identity
from worker.patience import Patience
from worker.queues.base import Delivery, Producer, Queue
from worker.queues.memory import MemoryQueue
from worker.queues.policy import Policy, is_charged
from worker.queues.sqlite import SqliteQueue
from worker.queues.sqs import SqsQueue
from worker.result import Result
from worker.settlement import Bench, Failure, Journey, settle
from worker.stages import StageClock
from worker.storage import Storages
from worker.storage.directory import DirectoryStorage

JOB = "counted"
BODY = document(JOB)
QUEUES = ("memory", "sqlite", "sqs")
MOST = 3
POLICY = Policy(visibility=timedelta(minutes=2), max_attempts=MOST, max_deliveries=1000)
LATER = timedelta(minutes=20)
"""Longer than any lease or delay."""

Cause = Literal["charged", "lost", "disk_full", "draining", "killed"]
KILLS = ("before_failure", "after_failure", "after_webhook", "after_nack", "after_reject")
"""Where a worker may vanish while it settles."""


@dataclass(frozen=True, slots=True)
class Step:
    """How an attempt ends, on which worker; ``kill`` is the failpoint at which that vanishes, if it gets there."""

    cause: Cause
    worker: str
    kill: str | None = None


CHARGED = Step("charged", "w1")


def histories(*kills: str) -> st.SearchStrategy[list[Step]]:
    causes: Sequence[Cause] = ("charged", "charged", "lost", "disk_full", "draining", "killed")
    step = st.builds(Step, st.sampled_from(causes), st.sampled_from(["w1", "w2"]), st.sampled_from([None, *kills]))
    return st.lists(step, max_size=8)


class Killed(BaseException):
    """The process is gone."""


def error_of(cause: Cause) -> WorkerError:
    match cause:
        case "charged":
            return OutputEmpty("nothing").blamed(Fault.JOB, Disposition.NACK_CHARGED)
        case "lost":
            return EngineCrashed("gone")
        case "disk_full":
            return DiskFull("full")
        case "draining":
            return Draining()
        case "killed":
            raise Killed


@dataclass
class Floor:
    """One job on a queue, its workers, and where they keep how it failed; ``attempts`` are those that were begun.

    ``before`` is what was on record when it was put on the queue again.
    """

    clock: FakeClock
    workers: dict[str, Queue]
    producer: Producer
    stores: Storages
    attempts: list[Step] = field(default_factory=list)
    before: frozenset[object] = frozenset()
    receiver: FakeReceiver = field(init=False)

    def __post_init__(self) -> None:
        self.receiver = FakeReceiver(CorrectedClock(self.clock))

    async def charged(self) -> int:
        """How many charged attempts are on record since it was last put on the queue."""
        return len(await self._on_record() - self.before)

    async def _on_record(self) -> frozenset[object]:
        """By the queue, else by the store."""
        state = await self.producer.state(JOB)
        if state is not None:
            return frozenset((one.worker, one.ended) for one in state.attempts if one.charged)
        store = self.stores.default
        assert isinstance(store, DirectoryStorage)
        failures = await store.find_failures(JOB)
        return frozenset((one.worker.id, one.finished_at) for one in failures if is_charged(one))

    async def again(self) -> None:
        """Have the dead job run again."""
        self.before = await self._on_record()
        assert await self.producer.requeue(JOB)
        self.clock.advance(LATER)

    async def dead(self) -> str | None:
        """The code by which it is a dead letter, if it is one."""
        return next((one.code for one in await self.producer.jobs("dead")), None)

    async def attempt(self, step: Step) -> None:
        """One delivery, which ends as the step says unless it is over by what is on record."""
        queue = self.workers[step.worker]
        delivery = await taken(queue)
        failpoints.install(_killing(step.kill))
        try:
            await self._work(delivery, queue, step)
        except Killed:
            pass
        finally:
            failpoints.install(None)
        self.clock.advance(LATER)

    async def _work(self, delivery: Delivery, queue: Queue, step: Step) -> None:
        live = Live()
        metrics, job = Metrics(), parse(document_of(BODY, max_body=1000), fallback_id=JOB, limits=Limits())
        with live.holding(delivery.id) as held:
            lease = _Sure(queue, delivery, held, rng=random.Random(1))
            journey = Journey(delivery, held, lease, StageClock(held, metrics), self.clock.now(), job)
            journey.delivery, ended = await informed(
                delivery, job, self.stores.default, Patience(self.stores, Dependencies())
            )
            drain = Drain(live, Pace())
            identity = Identity(step.worker, "machine", "0")
            bench = Bench(queue, self.stores, self.receiver, metrics, self.clock, identity, random.Random(1), drain)
            await settle(self._outcome(ended, step), journey, bench)

    def _outcome(self, ended: Result | None, step: Step) -> Failure | WorkerError:
        if ended is not None:
            return Failure(ended)
        self.attempts.append(step)
        return error_of(step.cause)


class _Sure(Lease):
    async def before_effect(self) -> None:
        """Nobody takes it meanwhile."""


def _killing(point: str | None) -> Callable[[str], None]:
    def reached(name: str) -> None:
        if name == point:
            raise Killed

    return reached


@asynccontextmanager
async def floor(kind: str, folder: Path, server: Server) -> AsyncIterator[Floor]:
    """A job on a queue of this kind, with workers w1 and w2."""
    clock, names = FakeClock(), ("w1", "w2")
    stores = Storages(DirectoryStorage(folder / "outputs"), ())
    async with AsyncExitStack() as stack:
        workers: dict[str, Queue] = {}
        producer: Producer
        if kind == "memory":
            first = MemoryQueue(clock, worker="w1", policy=POLICY)
            producer, workers = first, {"w1": first, "w2": first.beside("w2")}
        elif kind == "sqlite":
            files = {name: SqliteQueue(folder / "queue.db", clock, worker=name, policy=POLICY) for name in names}
            producer, workers = files["w1"], {**files}
        else:
            stack.enter_context(moved_time(clock))
            line = made_line(server, dead_after=1000)
            producer = await stack.enter_async_context(submitting(line))
            right, rng = CorrectedClock(SystemClock()), random.Random(1)
            elapsed: Callable[[], float] = lambda: clock.now().timestamp()  # noqa: E731
            options = {"policy": POLICY, "wait": timedelta(0), "rng": rng, "elapsed": elapsed}
            workers = {name: SqsQueue(line.url, right, **options) for name in names}  # type: ignore[arg-type]
        for one in workers.values():
            stack.push_async_callback(one.aclose)
        await producer.submit(JOB, BODY)
        yield Floor(clock, workers, producer, stores)


async def counted(kind: str, history: Sequence[Step], folder: Path, server: Server) -> list[Step]:
    """The attempts that were begun, for a history after which every attempt is the job's own failure.

    Once it is dead it is put on the queue again, and the history comes backwards.
    Asserts that none is begun once `MOST` charged ones are on record, and that it is dead with just so many.
    """
    async with floor(kind, folder, server) as ground:
        await _until_dead(ground, history)
        await ground.again()
        await _until_dead(ground, history[::-1])
        return ground.attempts


async def _until_dead(ground: Floor, history: Sequence[Step]) -> None:
    for step in [*history, *[CHARGED] * (2 * MOST)]:
        if await ground.dead() is not None:
            break
        before, begun = await ground.charged(), len(ground.attempts)
        await ground.attempt(step)
        assert before < MOST or len(ground.attempts) == begun, history
    assert (await ground.dead(), await ground.charged()) in (("output_empty", MOST), ("engine_lost", MOST))


def run_counted(kind: str, history: Sequence[Step], server: Server) -> list[Step]:
    """As `counted`, in a loop and a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        return asyncio.run(counted(kind, history, Path(folder), server))
