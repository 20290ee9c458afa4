"""The worker's side of a scheduling server.

A request for work is kept alive until it was answered, also when the receive that asked was cancelled: the next
receive takes it over, and a job that nobody waits for any more is given back.
"""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import Coroutine
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import structlog

from worker.clock import Clock
from worker.errors import UNRECEIVED, AuthFailed, JobCancelled, LeaseLost, QueueUnavailable
from worker.node import Node, Orders
from worker.queues.availability import answers
from worker.queues.availability.beats import Beats
from worker.queues.availability.client import Client, QueueRefused, Reply, job_path
from worker.queues.availability.held import Held, Holding, running_of
from worker.queues.availability.rest import IDLE, Rest
from worker.queues.base import Delivery, Received
from worker.queues.policy import Policy
from worker.result import Result
from worker.retry import Policy as Retries
from worker.retry import retrying
from worker.tasks import cancel_all
from worker.wire import Answer, Ended, Generation, Release

log = structlog.get_logger()

WAIT = timedelta(seconds=20)
CLOSING = timedelta(seconds=5)
ROOM = timedelta(seconds=15)
"""For an answer to come when the time that we offered to wait is over."""

_NOT_WORTH_IT = 0.02
"""Of a bounded wait, another request."""

PATIENCE = timedelta(seconds=10)
PATIENCE_WITH_RESULT = timedelta(seconds=60)
GIVING_BACK = timedelta(seconds=60)


@dataclass(frozen=True, slots=True)
class _Answered:
    """A request for work and its answer; times are the event loop's."""

    answer: Answer
    sent: float
    at: float
    offered_s: float


class AvailabilityQueue:
    """`Queue` over the scheduling API.

    ``wait`` bounds one `receive`; ``closing`` is how long `aclose` waits for answers that are still to come. What is
    in effect where the server does not say stands in ``policy``. Every refusal of our token is `AuthFailed` as well.
    """

    capacity: int | None = None
    can_delay: bool = True

    def __init__(
        self,
        url: str,
        node: Node,
        clock: Clock,
        *,
        token: str | None = None,
        policy: Policy | None = None,
        wait: timedelta = WAIT,
        idle: Retries = IDLE,
        closing: timedelta = CLOSING,
        rng: random.Random | None = None,
    ) -> None:
        self._node = node
        self._own_token = token
        self._policy = policy or Policy()
        self._wait_s = wait.total_seconds()
        self._closing_s = closing.total_seconds()
        self._rng = rng or random.SystemRandom()
        self._client = Client(url, self._token, clock)
        self._rest = Rest(self._rng, idle)
        self._holding = Holding()
        self._beats = Beats(self._beat)
        self._orders: Orders | None = None
        self._left: dict[asyncio.Task[_Answered], None] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._knows_heartbeats: bool | None = None

    async def _token(self) -> str | None:
        return self._own_token or await self._node.identity_token()

    async def receive(self) -> Received:
        loop = asyncio.get_running_loop()
        over = loop.time() + self._wait_s
        while True:
            if (orders := self._pending_orders()) is not None:
                return Received(None, orders)
            if not self._left:
                await asyncio.sleep(min(self._rest.until, over) - loop.time())
            if (left_s := over - loop.time()) <= self._wait_s * _NOT_WORTH_IT:
                return Received()
            received = await self._asked(left_s)
            if received.delivery is not None or received.orders is not None:
                return received

    async def _asked(self, wait_s: float) -> Received:
        """What a request for work brings: one that a cancelled receive has left, else a new one."""
        poll = next(iter(self._left), None)
        if poll is None:
            poll = self._own(self._poll(wait_s), "availability-poll")
        else:
            del self._left[poll]
        try:
            await asyncio.wait({poll})
        except asyncio.CancelledError:
            self._left[poll] = None
            poll.add_done_callback(self._came_late)
            raise
        try:
            return self._received(poll.result())
        except QueueUnavailable as error:
            if error.retry_after is not None:
                self._rest.asked(asyncio.get_running_loop().time(), error.retry_after.total_seconds())
            raise

    async def _poll(self, wait_s: float) -> _Answered:
        loop = asyncio.get_running_loop()
        report = await self._node.report()
        sent = loop.time()
        running = running_of(self._holding.kept(sent), report.jobs)
        body = answers.availability(self._node.identity, report, running, wait_s)
        reply = await self._client.call("POST", "/availability", body, patience=timedelta(seconds=wait_s) + ROOM)
        if not reply.is_success:
            raise QueueUnavailable(f"{self._client.place('/availability')}: answered {reply.status}")
        return _Answered(answers.answer_of(reply.document()), sent, loop.time(), wait_s)

    def _received(self, answered: _Answered) -> Received:
        answer = answered.answer
        orders = answers.orders_of(answer)
        self._holding.cancel(answer.cancel or ())
        if answer.generation is None:
            self._rest.nothing(
                sent=answered.sent, now=answered.at, offered_s=answered.offered_s, retry_after_s=answer.retry_after
            )
            return Received(None, orders)
        self._rest.worked()
        delivery = answers.delivery_of(answer.generation, uuid.uuid4().hex, self._policy)
        now = asyncio.get_running_loop().time()
        self._holding.add(delivery, leased=answer.generation.id is not None, now=now)
        return Received(delivery, orders)

    def _came_late(self, poll: asyncio.Task[_Answered]) -> None:
        """Give back what came when nobody waited. What has no id cannot be given back: the next receive takes it."""
        if poll not in self._left:
            return
        if poll.cancelled() or poll.exception() is not None:
            del self._left[poll]
            return
        answer = poll.result().answer
        generation = answer.generation
        if generation is not None and generation.id is None:
            return
        del self._left[poll]
        self._orders = answers.merged(self._orders, answers.orders_of(answer))
        if generation is not None:
            self._own(self._give_back(generation), "availability-give-back")

    async def _give_back(self, generation: Generation) -> None:
        job_id = str(generation.id)
        body = self._release(generation.token, UNRECEIVED, 0.0, charged=False)
        try:
            await retrying(
                lambda: self._client.call("POST", job_path(job_id, "/release"), body, patience=PATIENCE),
                Retries(attempts=20),
                budget=GIVING_BACK,
                rng=random.Random(self._rng.random()),
                out_of_time=QueueUnavailable,
            )
        except QueueUnavailable as error:
            log.warning("late_job_not_given_back", job=job_id, error=error.message)
        else:
            log.info("late_job_given_back", job=job_id)

    async def extend(self, delivery: Delivery) -> Orders | None:
        """Renews the lease of a cancelled job too, so that its holder can settle it."""
        held = self._holding.of(delivery)
        held.wanted_at = asyncio.get_running_loop().time()
        if held.leased and self._knows_heartbeats is not False:
            await self._beats.join()
        if held.lost:
            raise LeaseLost
        if held.cancelled:
            raise JobCancelled
        return self._pending_orders()

    async def _beat(self, *, away: bool = False) -> None:
        """Renew everything that is held; a server that never took a heartbeat and knows none gets no more."""
        report = await self._node.report()
        sent = self._holding.kept(asyncio.get_running_loop().time())
        body = answers.heartbeat(self._node.identity, report, running_of(sent, report.jobs), away=away)
        reply = await self._client.call("POST", "/heartbeat", body, patience=PATIENCE)
        if reply.is_absent and not self._knows_heartbeats:
            self._does_without()
            return
        if not reply.is_success:
            raise QueueUnavailable(f"{self._client.place('/heartbeat')}: answered {reply.status}")
        beat = answers.beat_of(reply.document())
        self._knows_heartbeats = True
        self._holding.heard(sent, beat)
        self._orders = answers.merged(self._orders, answers.orders_of(beat.as_answer()))

    def _does_without(self) -> None:
        if self._knows_heartbeats is None:
            log.warning("queue_without_leases", queue=self._client.place(), detail="it redelivers nothing")
        self._knows_heartbeats = False

    def _pending_orders(self) -> Orders | None:
        orders, self._orders = self._orders, None
        return orders

    async def ack(self, delivery: Delivery, result: Result) -> None:
        await self._end(delivery, result, dead=False)

    async def reject(self, delivery: Delivery, result: Result) -> None:
        await self._end(delivery, result, dead=True)

    async def _end(self, delivery: Delivery, result: Result, *, dead: bool) -> None:
        document = result.model_dump(mode="json", exclude_none=True)
        body = Ended(token=delivery.receipt, result=document, dead=dead).to_json()
        await self._answer(delivery, "/result", body, PATIENCE_WITH_RESULT)

    async def nack(self, delivery: Delivery, delay: timedelta, code: str, *, charged: bool) -> None:
        body = self._release(delivery.receipt, code, delay.total_seconds(), charged=charged)
        await self._answer(delivery, "/release", body, PATIENCE)

    def _release(self, token: Any, code: str, delay_s: float, *, charged: bool) -> bytes:
        return Release.of(token, code, delay_s, charged=charged, worker=self._node.identity.id).to_json()

    async def _answer(self, delivery: Delivery, verb: str, body: bytes, patience: timedelta) -> None:
        held = self._holding.of(delivery)
        with self._holding.answering(held):
            if held.leased:
                reply = await self._client.call("POST", job_path(held.id, verb), body, patience=patience)
                self._judge(reply, held, verb)

    def _judge(self, reply: Reply, held: Held, verb: str) -> None:
        """A server that keeps no account of leases need not know how they end.

        What any other does not take will not be taken later either: the lease runs out, and its limits end the job.
        """
        if reply.is_success or (reply.is_absent and not self._knows_heartbeats):
            return
        if not reply.is_conflict:
            log.error("answer_refused", job=held.id, path=verb, status=reply.status)
        raise LeaseLost

    async def check(self) -> str:
        """Sends a heartbeat, which takes no job. Raises `AuthFailed` for a token that is refused."""
        try:
            await self._beats.join()
        except QueueRefused as error:
            raise AuthFailed(error.message) from None
        if self._knows_heartbeats:
            return f"{self._client.place()}: takes heartbeats, leases jobs"
        return f"{self._client.place()}: answers, but knows no heartbeats: nothing is leased, nothing redelivered"

    def _own(self, work: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def settled(self) -> None:
        """Until no answer is to come that nobody waits for, and what came late has been given back."""
        while pending := self._tasks | self._beats.tasks:
            await asyncio.wait(pending)

    async def aclose(self) -> None:
        """Tell the server that it need not keep us waiting, and give back what it has in hand for us."""
        try:
            async with asyncio.timeout(self._closing_s):
                await self._take_leave()
                await self.settled()
        except TimeoutError:
            log.warning("queue_cut_off", requests=len(self._tasks))
        if self._left:
            log.warning("jobs_without_id_dropped", jobs=len(self._left))
        await cancel_all(self._tasks | self._beats.tasks)
        await self._client.aclose()

    async def _take_leave(self) -> None:
        if self._left and self._knows_heartbeats:
            try:
                await self._beat(away=True)
            except QueueUnavailable as error:
                log.warning("queue_unavailable", error=error.message)
