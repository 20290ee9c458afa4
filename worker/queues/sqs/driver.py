"""The worker's side of an SQS queue.

SQS keeps no causes and takes nothing back: every receive counts, also one that nobody waited for any more. And an old
receipt is no fence: a standard queue takes it though another holds the message by now. So a lease that was not renewed
in time is lost here as soon as SQS has ended it by its own rule, without asking.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import structlog

from worker.clock import CorrectedClock
from worker.errors import AuthFailed, ConfigError, LeaseLost, QueueUnavailable
from worker.node import Orders
from worker.queues.base import Delivery, Received
from worker.queues.policy import Policy
from worker.queues.sqs.client import ANSWER, CONNECT, LONGEST, SqsClient, Traits
from worker.queues.sqs.errors import NO_QUEUE, QueueGone, QueueRefused, error_of, is_passing, plain
from worker.queues.sqs.messages import Receipt, dead_letter, delivery_of
from worker.queues.sqs.polls import Polls
from worker.result import Result
from worker.retry import Policy as Retries
from worker.retry import retrying
from worker.tasks import cancel_all

log = structlog.get_logger()

WAIT = timedelta(seconds=5)
"""Of one poll. A longer one costs less, but the end of a drain waits for the end of it."""

ROOM = timedelta(seconds=5)
"""For an answer to come when a poll's time is over."""

SHORTEST = timedelta(seconds=1)
TRAITS_LAST = timedelta(minutes=5)
VISIBILITY_MOST = LONGEST / 2
GIVING_BACK = timedelta(seconds=30)
_CONDEMNED_MOST = 1000


@dataclass(frozen=True, slots=True)
class _Claim:
    """A message that SQS has handed over, not before the poll was ``sent``: from then on, in seconds, it is leased."""

    message: Mapping[str, Any]
    traits: Traits
    sent: float


@dataclass(slots=True)
class _Held:
    """``received`` begins the 12 hours that SQS grants at most; the lease ends at ``until``.

    ``turn``: two requests that are under way together may come to SQS in either order.
    """

    received: float
    until: float
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)


class SqsQueue:
    """`Queue` over SQS, standard or FIFO. It has no `Producer` side: what is submitted is `SqsProducer`'s.

    ``wait`` bounds one poll, as half a visibility does; what was to come when it was given up is waited for by
    `aclose`, so that it goes back. ``elapsed`` gives the seconds by which leases are measured, the event loop's where
    it is None. A refusal of our credentials is `AuthFailed`, a queue that does not exist `ConfigError`; both are also
    `QueueUnavailable`, but for those of `check`.
    """

    capacity: int | None = None
    can_delay: bool = True

    def __init__(
        self,
        url: str,
        clock: CorrectedClock,
        *,
        policy: Policy | None = None,
        wait: timedelta = WAIT,
        connect: timedelta = CONNECT,
        answer: timedelta = ANSWER,
        rng: random.Random | None = None,
        elapsed: Callable[[], float] | None = None,
    ) -> None:
        self._policy = policy or Policy()
        self._visibility = timedelta(seconds=max(1, int(min(self._policy.visibility, VISIBILITY_MOST).total_seconds())))
        self._wait = min(wait, max(self._visibility / 2, SHORTEST))
        self._rng = rng or random.SystemRandom()
        self._elapsed_in = elapsed
        self._client = SqsClient(url, clock, connect=connect, answer=answer, poll=self._wait)
        self._polls: Polls[_Claim | None] = Polls(self._poll, self._came_late)
        self._held: dict[str, _Held] = {}
        self._condemned: dict[str, None] = {}
        self._returns: set[asyncio.Task[None]] = set()
        self._traits: Traits | None = None
        self._traits_until = float("-inf")
        self._said: set[str] = set()

    def _elapsed(self) -> float:
        return self._elapsed_in() if self._elapsed_in is not None else asyncio.get_running_loop().time()

    async def receive(self) -> Received:
        claim = await self._polls.answer()
        if claim is None:
            return Received()
        if claim.message["MessageId"] in self._condemned:
            self._came_late(claim)
            return Received()
        delivery = delivery_of(claim.message, self._policy, self._visibility, claim.traits)
        self._held[delivery.receipt.handle] = _Held(claim.sent, self._end_of(claim))
        return Received(delivery)

    async def _poll(self) -> _Claim | None:
        self._traits = traits = await self._fresh_traits()
        sent = self._elapsed()
        messages = await self._client.receive(wait=self._wait, visibility=self._visibility)
        return _Claim(messages[0], traits, sent) if messages else None

    def _end_of(self, claim: _Claim) -> float:
        return claim.sent + self._visibility.total_seconds()

    def _came_late(self, claim: _Claim | None) -> None:
        """Nobody waits for it: it is given back. Its receive has been counted, which SQS cannot undo."""
        if claim is None:
            return
        task = asyncio.create_task(self._give_back(claim), name="sqs-give-back")
        self._returns.add(task)
        task.add_done_callback(self._returns.discard)

    async def _give_back(self, claim: _Claim) -> None:
        message = claim.message

        async def show() -> None:
            if self._elapsed() >= self._end_of(claim):
                raise LeaseLost
            await self._client.hide(message["ReceiptHandle"], timedelta(0))

        try:
            await retrying(
                show,
                Retries(attempts=8),
                budget=min(GIVING_BACK, self._visibility),
                rng=self._rng,
                out_of_time=QueueUnavailable,
            )
        except LeaseLost:
            return
        except QueueUnavailable as error:
            log.warning("late_job_not_given_back", message=message["MessageId"], error=error.message)
        else:
            log.info("late_job_given_back", message=message["MessageId"])

    async def extend(self, delivery: Delivery) -> Orders | None:
        """Renews for another visibility while SQS's 12 hours last; who would outlast them loses the lease before."""
        async with self._turn(delivery, is_last=False) as held:
            sent, visibility_s = self._elapsed(), self._visibility.total_seconds()
            if held.received + LONGEST.total_seconds() - sent < visibility_s:
                log.warning("lease_at_its_end", job=delivery.id, held_s=round(sent - held.received))
                raise LeaseLost("SQS hides a message for 12 hours at most")
            await self._client.hide(delivery.receipt.handle, self._visibility)
            held.until = sent + visibility_s
        return None

    async def ack(self, delivery: Delivery, result: Result) -> None:
        async with self._turn(delivery):
            await self._client.delete(delivery.receipt.handle)

    async def nack(self, delivery: Delivery, delay: timedelta, code: str, *, charged: bool) -> None:
        async with self._turn(delivery) as held:
            left = timedelta(seconds=held.received + LONGEST.total_seconds() - self._elapsed()) - ROOM
            await self._client.hide(delivery.receipt.handle, max(timedelta(0), min(delay, left)))

    async def reject(self, delivery: Delivery, result: Result) -> None:
        """To the dead letters, where the queue has some that we may send to.

        Where we may not, the message is left to SQS, which moves it when it was received too often: this worker hands
        it out no more. Without dead letters it is deleted.
        """
        self._holding(delivery)
        receipt: Receipt = delivery.receipt
        self._traits = traits = await self._fresh_traits()
        if traits.dead_letters is None:
            if not traits.told and self._is_news("unknown"):
                log.warning("dead_letters_unknown", needs="sqs:GetQueueAttributes")
        elif not await self._buried(receipt.message, result, traits.dead_letters, traits.message_most):
            self._condemn(receipt.message["MessageId"])
            async with self._turn(delivery):
                await self._client.hide(receipt.handle, timedelta(0))
            return
        async with self._turn(delivery):
            await self._client.delete(receipt.handle)

    async def _buried(self, message: Mapping[str, Any], result: Result, url: str, most: int) -> bool:
        """Send a dead letter; False where only SQS itself can. Raises where that may be different later."""
        refusal = await self._client.send(dead_letter(message, result, fifo=url.endswith(".fifo"), most=most), url=url)
        if refusal is None:
            return True
        if plain(refusal.code) in NO_QUEUE:
            if self._is_news("gone"):
                log.warning("dead_letters_gone", queue=url, error=str(refusal))
            return True
        if refusal.of_credentials or is_passing(refusal):
            raise error_of(refusal, url)
        if self._is_news("refused"):
            log.warning("dead_letter_refused", queue=url, needs="sqs:SendMessage", error=str(refusal))
        return False

    def _condemn(self, message_id: str) -> None:
        self._condemned[message_id] = None
        if len(self._condemned) > _CONDEMNED_MOST:
            del self._condemned[next(iter(self._condemned))]

    async def check(self) -> str:
        """Reads the queue's attributes, or shows that messages may be held. It receives nothing."""
        try:
            self._traits = traits = await self._client.traits()
        except QueueRefused as error:
            raise AuthFailed(error.message) from None
        except QueueGone as error:
            raise ConfigError(error.mistakes) from None
        self._traits_until = self._elapsed() + TRAITS_LAST.total_seconds()
        kind = "FIFO" if self._client.is_fifo else "standard"
        if not traits.told:
            return f"{self._client.place}: {kind}; sqs:GetQueueAttributes is missing: its dead letters are not known"
        found = f"{traits.waiting} waiting, {traits.delayed} delayed, {traits.held} held"
        return f"{self._client.place}: {kind}, {found}; {self._dead_letters(traits)}"

    def _dead_letters(self, traits: Traits) -> str:
        if traits.dead_letters is None or traits.most_receives is None:
            return "no dead-letter queue: jobs that failed are deleted"
        said = f"dead letters go to {traits.dead_letters.rpartition('/')[2]}"
        if traits.most_receives >= self._policy.max_deliveries:
            return said
        most = f"maxReceiveCount={traits.most_receives}"
        return f"{said}, but {most} is less than WORKER_QUEUE_MAX_DELIVERIES={self._policy.max_deliveries}"

    async def settled(self) -> None:
        """Until no message is to come that nobody waits for, and what came late has been given back."""
        while pending := {*self._returns, *([self._polls.pending] if self._polls.pending is not None else [])}:
            await asyncio.wait(pending)

    async def aclose(self) -> None:
        try:
            async with asyncio.timeout((self._wait + ROOM).total_seconds()):
                await self.settled()
        except TimeoutError:
            log.warning("queue_cut_off", queue=self._client.place)
        pending = self._polls.pending
        await cancel_all({*self._returns, *([pending] if pending is not None else [])})
        await self._client.aclose()

    async def _fresh_traits(self) -> Traits:
        """What the queue says of itself, asked again from time to time; while it does not answer, what it said."""
        if self._traits is not None and self._elapsed() < self._traits_until:
            return self._traits
        try:
            traits = await self._client.traits()
        except QueueUnavailable:
            if self._traits is None:
                raise
            return self._traits
        self._traits_until = self._elapsed() + TRAITS_LAST.total_seconds()
        return traits

    def _holding(self, delivery: Delivery) -> _Held:
        held = self._held.get(delivery.receipt.handle)
        if held is None:
            raise LeaseLost
        if self._elapsed() >= held.until:
            self._let_go(delivery)
            raise LeaseLost("not renewed in time: SQS hands the message over again")
        return held

    def _let_go(self, delivery: Delivery) -> None:
        self._held.pop(delivery.receipt.handle, None)

    @asynccontextmanager
    async def _turn(self, delivery: Delivery, *, is_last: bool = True) -> AsyncIterator[_Held]:
        """Ask about a delivery, which ours is no more when that was the last or SQS says that it is lost."""
        async with self._holding(delivery).turn:
            held = self._holding(delivery)
            try:
                yield held
            except LeaseLost:
                self._let_go(delivery)
                raise
            if is_last:
                self._let_go(delivery)

    def _is_news(self, what: str) -> bool:
        """Whether this is to be said, which is so once."""
        if what in self._said:
            return False
        self._said.add(what)
        return True
