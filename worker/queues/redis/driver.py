"""The two sides of a queue in Redis."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta

import structlog

from worker.clock import Clock
from worker.errors import IdConflict, JobCancelled, LeaseLost, QueueUnavailable
from worker.node import Orders
from worker.queues.base import Delivery, JobState, Received
from worker.queues.policy import (
    Policy,
    end_code,
    fingerprint,
    has_images,
    is_charged,
    is_charged_loss,
    job_code,
    rest_of,
)
from worker.queues.redis.client import PATIENCE, Client, Stale
from worker.queues.redis.failures import GroupMissing, RedisMisused
from worker.queues.redis.ledger import Handed, Ledger
from worker.queues.redis.place import VARIABLE, RedisPlace
from worker.queues.redis.records import Arrival, Stray, bounded
from worker.result import Result
from worker.tasks import cancel_all
from worker.wire import NODE_RESTARTED, HeldThen, PreviousRun

log = structlog.get_logger()

WAIT = timedelta(seconds=10)
BLOCK = timedelta(seconds=5)
"""No command keeps a connection silent for longer: proxies cut what is idle."""

OLDEST = (6, 2)


class RedisProducer:
    """The submitting side. Every verb raises `QueueUnavailable`, as `RedisRefused` and `RedisMisused` too.

    ``clock``: another time than the server's own, which alone counts otherwise; ``patience``: for one answer.
    """

    def __init__(
        self,
        place: RedisPlace,
        *,
        policy: Policy | None = None,
        clock: Clock | None = None,
        patience: timedelta = PATIENCE,
    ) -> None:
        self._place = place
        self._policy = policy or Policy()
        self._client = Client(place, patience=patience)
        self._ledger = Ledger(self._client, self._policy, clock)

    async def submit(self, job_id: str, body: bytes, *, priority: int = 0) -> bool:
        same = await asyncio.to_thread(fingerprint, job_id, body)
        verdict = await self._ledger.submit(job_id, same, bounded(priority), uuid.uuid4().hex, body)
        if verdict == "conflict":
            raise IdConflict(f"another document is known under the id {job_id}")
        return verdict == "new"

    async def state(self, job_id: str) -> JobState | None:
        return await self._ledger.state(job_id)

    async def jobs(self, status: str | None = None, limit: int = 100) -> list[JobState]:
        """Open jobs in the order of hand-over, then those that are over, the latest end first; without images."""
        return await self._ledger.states(status, limit)

    async def requeue(self, job_id: str) -> bool:
        return await self._ledger.requeue(job_id)

    async def cancel(self, job_id: str) -> bool:
        return await self._ledger.cancel(job_id)

    async def check(self) -> str:
        """Make what a worker needs on the server, and say what is there and what about it is not safe."""
        server = await self._ledger.info("server")
        version = server.get("redis_version", "")
        if version and tuple(int(part) for part in version.split(".")[:2]) < OLDEST:
            raise RedisMisused(VARIABLE, f"is of Redis {version}; at least 6.2 is needed")
        await self._ledger.open()
        counts = ", ".join(f"{count} {status}" for status, count in (await self._ledger.counts()).items())
        warnings = await self._doubts()
        return "; ".join((f"{self._place.shown}: Redis {version}, stream {self._place.stream}: {counts}", *warnings))

    async def aclose(self) -> None:
        await self._client.aclose()

    async def _doubts(self) -> list[str]:
        memory, disk = await self._ledger.info("memory"), await self._ledger.info("persistence")
        doubts = []
        if (evicting := memory.get("maxmemory_policy", "noeviction")) != "noeviction":
            doubts.append(f"maxmemory-policy is {evicting}: jobs may be evicted")
        if disk.get("aof_enabled") == "0":
            doubts.append("appendonly is off: a crash of the server loses the latest jobs")
        return doubts


class RedisQueue(RedisProducer):
    """`Queue` and `Producer` in one, for the worker of that name.

    A lease that ran out is lost only once the job was handed over again or has ended: until then its holder may still
    extend and settle it. ``wait`` bounds one `receive`.
    """

    capacity: int | None = None
    can_delay: bool = True

    def __init__(
        self,
        place: RedisPlace,
        *,
        worker: str,
        policy: Policy | None = None,
        clock: Clock | None = None,
        wait: timedelta = WAIT,
        patience: timedelta = PATIENCE,
    ) -> None:
        super().__init__(place, policy=policy, clock=clock, patience=patience)
        self._worker = worker
        self._wait = wait
        self._unheard: set[str] = set()
        self._unanswered: set[int] = set()
        self._returns: set[asyncio.Task[None]] = set()
        self._closing_s = patience.total_seconds()

    async def receive(self) -> Received:
        loop = asyncio.get_running_loop()
        over = loop.time() + self._wait.total_seconds()
        if self._unheard:
            await self._give_back()
        while True:
            handed, due = await self._claim()
            if handed is not None:
                return Received(self._delivery(handed))
            left = timedelta(seconds=over - loop.time())
            if left <= timedelta(0):
                return Received()
            await self._rung(min(left, BLOCK if due is None else due, BLOCK))

    async def extend(self, delivery: Delivery) -> Orders | None:
        """Renews the lease of a cancelled job too, so that its holder can settle it."""
        answer = await self._ledger.extend(delivery.id, delivery.receipt)
        if answer == "lost":
            raise LeaseLost
        if answer == "cancelled":
            raise JobCancelled
        return None

    async def ack(self, delivery: Delivery, result: Result) -> None:
        await self._settle(delivery, result, "done")

    async def reject(self, delivery: Delivery, result: Result) -> None:
        await self._settle(delivery, result, "dead")

    async def nack(self, delivery: Delivery, delay: timedelta, code: str, *, charged: bool) -> None:
        token: int = delivery.receipt
        await self._end(
            token,
            lambda again: self._ledger.release(delivery.id, token, delay, code, charged=charged, again=again),
        )

    async def recall(self, run: PreviousRun) -> None:
        """As `Recalling.recall`; a job that may have ended the run rests, and is charged as engine faults are."""
        for job in run.jobs:
            if isinstance(job.token, int):
                await self._recall(run, job, job.token)

    async def jobs(self, status: str | None = None, limit: int = 100) -> list[JobState]:
        """As the producer's, after what nobody waits for any more was given back."""
        await self._settled()
        return await super().jobs(status, limit)

    async def aclose(self) -> None:
        """Give back what nobody waits for any more, as far as the server answers."""
        try:
            async with asyncio.timeout(self._closing_s):
                await self._settled()
                if self._unheard:
                    await self._return_unheard()
        except TimeoutError:
            log.warning("queue_cut_off", requests=len(self._returns))
        await cancel_all(self._returns)
        await super().aclose()

    async def _claim(self) -> tuple[Handed | None, timedelta | None]:
        """A job, or how long until one may be due. What a claim got that is not heard of is given back."""
        call = uuid.uuid4().hex
        try:
            claimed = await self._ledger.claim(self._worker, call, news=True)
            if claimed.strays:
                await self._adopt(claimed.strays)
                claimed = await self._ledger.claim(self._worker, call, news=False)
        except asyncio.CancelledError:
            self._unheard.add(call)
            task = asyncio.create_task(self._return_unheard(), name="redis-give-back")
            self._returns.add(task)
            task.add_done_callback(self._returns.discard)
            raise
        except QueueUnavailable:
            self._unheard.add(call)
            raise
        return claimed.handed, claimed.due

    async def _adopt(self, strays: Sequence[Stray]) -> None:
        """Make jobs of what other programs put into the stream; an entry that is gone by now is none."""
        arrivals = []
        for stray in strays:
            fields = await self._ledger.fields_of(stray)
            if fields is not None:
                arrivals.append(await asyncio.to_thread(Arrival.of, stray.entry, fields))
        verdicts = await self._ledger.adopt(arrivals)
        for one, verdict in zip(arrivals, verdicts, strict=True):
            if verdict == "duplicate":
                log.info("queue_entry_dropped", job=one.id, entry=one.entry, reason="its document stands there already")
            elif verdict == "conflict":
                log.warning("queue_entry_buried", job=one.id, entry=one.entry, code=IdConflict.code)

    async def _give_back(self) -> None:
        calls = list(self._unheard)
        strays = await self._ledger.void(self._worker, calls)
        self._unheard.difference_update(calls)
        if strays:
            await self._adopt(strays)

    async def _return_unheard(self) -> None:
        """Where the server does not answer, the next receive does it."""
        try:
            await self._give_back()
        except QueueUnavailable as error:
            log.info("claim_not_given_back", error=error.message)

    async def _settled(self) -> None:
        while self._returns:
            await asyncio.wait(self._returns)

    async def _rung(self, wait: timedelta) -> None:
        """Until there may be something to claim, at most so long."""
        try:
            await self._ledger.rung(wait)
        except Stale:
            return
        except GroupMissing:
            await self._ledger.open()

    def _delivery(self, handed: Handed) -> Delivery:
        *earlier, current = handed.record.handed
        return self._policy.delivery(handed.id, handed.body, handed.record.queued_at, current, earlier)

    async def _settle(self, delivery: Delivery, result: Result, status: str) -> None:
        token: int = delivery.receipt
        plain = await asyncio.to_thread(result.to_json, base64=False)
        images = await asyncio.to_thread(result.to_json) if has_images(result) else b""
        code = job_code(result, dead=status == "dead") or ""
        end = (status, end_code(result), int(is_charged(result)), code, plain, images)
        await self._end(token, lambda again: self._ledger.settle(delivery.id, token, *end, again=again))

    async def _end(self, token: int, tell: Callable[[bool], Awaitable[bool]]) -> None:
        """Tell it, and where an earlier telling went unanswered, that this is the same again."""
        try:
            came_through = await tell(token in self._unanswered)
        except (QueueUnavailable, asyncio.CancelledError):
            self._unanswered.add(token)
            raise
        self._unanswered.discard(token)
        if not came_through:
            raise LeaseLost

    async def _recall(self, run: PreviousRun, job: HeldThen, token: int) -> None:
        record = await self._ledger.record(job.id)
        handed = () if record is None else record.handed
        ours = [one for one in handed if one.token == token and one.worker == self._worker and one.code is None]
        if not ours:
            return
        code = run.code_of(job)
        earlier = [one.attempt for one in handed if one.run == ours[0].run and one.token != token]
        charged = is_charged_loss(code, self._worker, earlier)
        rest = timedelta(0) if code == NODE_RESTARTED else rest_of(len(earlier))
        await self._ledger.recall(job.id, token, code, charged=charged, rest=rest)
