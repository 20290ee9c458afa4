"""The worker's side of a scheduling server.

A request for work is kept alive until it was answered, also when the receive that asked was cancelled: the next
receive takes it over, and a job that nobody waits for any more is given back.
"""

from __future__ import annotations

import asyncio
import random
import uuid
from datetime import timedelta
from typing import Any

import httpx
import structlog

from worker.clock import Clock
from worker.errors import UNRECEIVED, AuthFailed, JobCancelled, LeaseLost, QueueUnavailable
from worker.node import Node, Orders
from worker.queues.availability import answers
from worker.queues.availability.asking import Answered, Asking
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
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._node = node
        self._own_token = token
        self._policy = policy or Policy()
        self._wait_s = wait.total_seconds()
        self._closing_s = closing.total_seconds()
        self._rng = rng or random.SystemRandom()
        self._client = Client(url, self._token, clock, transport)
        self._rest = Rest(self._rng, idle)
        self._holding = Holding()
        self._asking = Asking(self._prepared, self._sent, self._came_late)
        self._beats = Beats(self._beat)
        self._orders: Orders | None = None
        self._returns: set[asyncio.Task[None]] = set()
        self._knows_heartbeats: bool | None = None

    async def _token(self, refused: str | None = None) -> str | None:
        return self._own_token or await self._node.identity_token(refused)

    async def receive(self) -> Received:
        loop = asyncio.get_running_loop()
        over = loop.time() + self._wait_s
        while True:
            if (orders := self._pending_orders()) is not None:
                return Received(None, orders)
            if not self._asking.left:
                await asyncio.sleep(min(self._rest.until, over) - loop.time())
            if (left_s := over - loop.time()) <= self._wait_s * _NOT_WORTH_IT:
                return Received()
            received = self._received(await self._answer(left_s))
            if received.delivery is not None or received.orders is not None:
                return received

    async def _answer(self, wait_s: float) -> Answered:
        try:
            return await self._asking.answer(wait_s)
        except QueueUnavailable as error:
            if error.retry_after is not None:
                self._rest.asked(asyncio.get_running_loop().time(), error.retry_after.total_seconds())
            raise

    async def _prepared(self, wait_s: float) -> bytes:
        report = await self._node.report()
        running = running_of(self._holding.kept(asyncio.get_running_loop().time()), report.jobs)
        return answers.availability(self._node.identity, report, running, wait_s)

    async def _sent(self, body: bytes, wait_s: float) -> Answer:
        reply = await self._client.call("POST", "/availability", body, patience=timedelta(seconds=wait_s) + ROOM)
        if not reply.is_success:
            raise QueueUnavailable(f"{self._client.place('/availability')}: answered {reply.status}")
        return answers.answer_of(reply.document())

    def _received(self, answered: Answered) -> Received:
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

    def _came_late(self, answer: Answer) -> None:
        """Nobody waits for it: its orders go to whoever asks next, its job goes back."""
        self._holding.cancel(answer.cancel or ())
        self._orders = answers.merged(self._orders, answers.orders_of(answer))
        if answer.generation is not None:
            task = asyncio.create_task(self._give_back(answer.generation), name="availability-give-back")
            self._returns.add(task)
            task.add_done_callback(self._returns.discard)

    async def _give_back(self, generation: Generation) -> None:
        job_id = str(generation.id)
        body = self._release(generation.token, UNRECEIVED, 0.0, charged=False)
        try:
            reply = await retrying(
                lambda: self._client.call("POST", job_path(job_id, "/release"), body, patience=PATIENCE),
                Retries(attempts=20),
                budget=GIVING_BACK,
                rng=self._rng,
                out_of_time=QueueUnavailable,
            )
        except QueueUnavailable as error:
            log.warning("late_job_not_given_back", job=job_id, error=error.message)
        else:
            log.info("late_job_given_back", job=job_id, status=reply.status)

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
        await self._tell(delivery, "/result", body, PATIENCE_WITH_RESULT)

    async def nack(self, delivery: Delivery, delay: timedelta, code: str, *, charged: bool) -> None:
        body = self._release(delivery.receipt, code, delay.total_seconds(), charged=charged)
        await self._tell(delivery, "/release", body, PATIENCE)

    def _release(self, token: Any, code: str, delay_s: float, *, charged: bool) -> bytes:
        return Release.of(token, code, delay_s, charged=charged, worker=self._node.identity.id).to_json()

    async def _tell(self, delivery: Delivery, verb: str, body: bytes, patience: timedelta) -> None:
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

    async def settled(self) -> None:
        """Until no answer is to come that nobody waits for, and what came late has been given back."""
        while pending := self._pending:
            await asyncio.wait(pending)

    @property
    def _pending(self) -> set[asyncio.Task[Any]]:
        return {*self._asking.tasks, *self._beats.tasks, *self._returns}

    async def aclose(self) -> None:
        """Tell the server that it need not keep us waiting, and give back what it has in hand for us."""
        try:
            async with asyncio.timeout(self._closing_s):
                await self._take_leave()
                await self.settled()
        except TimeoutError:
            log.warning("queue_cut_off", requests=len(self._pending))
        await cancel_all({*self._beats.tasks, *self._returns})
        await self._asking.aclose()
        await self._client.aclose()

    async def _take_leave(self) -> None:
        if self._asking.tasks and self._knows_heartbeats:
            try:
                await self._beat(away=True)
            except QueueUnavailable as error:
                log.warning("queue_unavailable", error=error.message)
