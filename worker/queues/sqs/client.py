"""One queue of SQS: its verbs in threads, its refusals as our errors."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

import pydantic_core

from worker import aws, http
from worker.aws import Refusal, Service
from worker.clock import CorrectedClock
from worker.errors import AuthFailed, QueueUnavailable
from worker.queues.sqs.errors import QueueRefused, error_of, is_forbidden, plain

if TYPE_CHECKING:
    from types_boto3_sqs.client import SQSClient
    from types_boto3_sqs.type_defs import MessageTypeDef

T = TypeVar("T")
THREADS = 12
LONGEST_POLL = timedelta(seconds=20)
LONGEST = timedelta(hours=12)
"""How long a message may be hidden, counted from when it was received, however often that is renewed."""

CONNECT, ANSWER = timedelta(seconds=5), timedelta(seconds=10)
SMALLEST_LIMIT = 256 * 1024
"""Bytes of a message that every queue takes where its owner has set no other limit."""

NO_RECEIPT = "sd-worker-check"
ALL: Final = "All"
BATCH = 10
"""Messages that one request may be about."""


@dataclass(frozen=True, slots=True)
class Traits:
    """What a queue says of itself; ``dead_letters`` is the URL of where its redrive policy sends messages that were
    received more than ``most_receives`` times. None: it has no such policy, or does not tell."""

    told: bool
    dead_letters: str | None = None
    most_receives: int | None = None
    message_most: int = SMALLEST_LIMIT
    waiting: int = 0
    held: int = 0
    delayed: int = 0


class SqsClient:
    """Every verb raises `QueueUnavailable` without a usable answer and what `error_of` makes of a refusal.

    ``answer`` is how long one is waited for, beside what a poll waits for a message, ``poll`` at most.
    """

    def __init__(
        self,
        url: str,
        clock: CorrectedClock,
        *,
        connect: timedelta = CONNECT,
        answer: timedelta = ANSWER,
        poll: timedelta = LONGEST_POLL,
        threads: int = THREADS,
    ) -> None:
        self.url = url
        self.place = http.shown(url)
        self.is_fifo = url.endswith(".fifo")
        self._poll, self._patience = min(poll, LONGEST_POLL), connect + answer
        self._service: Service[SQSClient] = Service(
            lambda: aws.sqs_client(url, connections=threads, connect_timeout=connect, read_timeout=self._poll + answer),
            clock=clock,
            threads=threads,
            unavailable=lambda why: QueueUnavailable(f"{self.place}: {why}"),
            name="sqs",
        )

    async def receive(
        self, *, wait: timedelta, visibility: timedelta, most: int = 1, url: str | None = None
    ) -> Sequence[MessageTypeDef]:
        """Messages that are hidden from now on, after waiting so long for the first; whole seconds count."""
        where = url or self.url

        def call(sqs: SQSClient) -> Sequence[MessageTypeDef]:
            return sqs.receive_message(
                QueueUrl=where,
                MaxNumberOfMessages=most,
                WaitTimeSeconds=int(min(wait, self._poll).total_seconds()),
                VisibilityTimeout=whole(visibility),
                AttributeNames=[ALL],
                MessageAttributeNames=[ALL],
            ).get("Messages", [])

        return self._granted(await self._in_time(call, self._poll))

    async def hide(self, receipt: str, visibility: timedelta, *, url: str | None = None) -> None:
        """Hide a message that we hold for so long from now on; not at all: it is handed over at once.

        Raises `LeaseLost`.
        """
        where, seconds = url or self.url, whole(visibility)
        await self._done(
            lambda sqs: sqs.change_message_visibility(QueueUrl=where, ReceiptHandle=receipt, VisibilityTimeout=seconds),
            held=True,
        )

    async def delete(self, receipt: str, *, url: str | None = None) -> None:
        """Raises `LeaseLost`; a standard queue need not notice that a receipt is an old one."""
        where = url or self.url
        await self._done(lambda sqs: sqs.delete_message(QueueUrl=where, ReceiptHandle=receipt), held=True)

    async def send(self, message: Mapping[str, Any], *, url: str | None = None) -> Refusal | None:
        """Send a message, given as `SendMessage` takes it; how it was refused."""
        where = url or self.url

        def call(sqs: SQSClient) -> None:
            sqs.send_message(QueueUrl=where, **message)

        return await self._asked(call)

    async def show(self, receipts: Sequence[str], *, url: str) -> None:
        """Have messages that we hold handed over at once, as far as they are ours still."""

        def call(sqs: SQSClient, some: Sequence[str]) -> None:
            entries = [
                {"Id": str(number), "ReceiptHandle": receipt, "VisibilityTimeout": 0}
                for number, receipt in enumerate(some)
            ]
            sqs.change_message_visibility_batch(QueueUrl=url, Entries=entries)  # type: ignore[arg-type]

        for first in range(0, len(receipts), BATCH):
            some = receipts[first : first + BATCH]
            self._granted(await self._asked(partial(call, some=some)))

    async def traits(self) -> Traits:
        """What may be known of the queue; where ``sqs:GetQueueAttributes`` is not allowed, nothing.

        Raises `QueueUnavailable`, `QueueRefused` and `QueueGone`.
        """
        answer = await self._asked(
            lambda sqs: sqs.get_queue_attributes(QueueUrl=self.url, AttributeNames=[ALL])["Attributes"]
        )
        if not isinstance(answer, Refusal):
            return traits_of(self.url, answer)
        if answer.of_credentials or not is_forbidden(answer):
            raise error_of(answer, self.place)
        await self._may_be_used()
        return Traits(told=False)

    async def _may_be_used(self) -> None:
        """Ask for what changes nothing but is allowed only to those who may hold messages."""
        answer = await self._asked(
            lambda sqs: sqs.change_message_visibility(QueueUrl=self.url, ReceiptHandle=NO_RECEIPT, VisibilityTimeout=0)
        )
        if isinstance(answer, Refusal) and (is_forbidden(answer) or plain(answer.code) != "ReceiptHandleIsInvalid"):
            raise error_of(answer, self.place)

    async def aclose(self) -> None:
        await self._service.aclose()

    async def _done(self, call: Callable[[SQSClient], T], *, held: bool = False) -> T:
        return self._granted(await self._asked(call), held=held)

    async def _asked(self, call: Callable[[SQSClient], T]) -> T | Refusal:
        return await self._in_time(call, timedelta(0))

    async def _in_time(self, call: Callable[[SQSClient], T], more: timedelta) -> T | Refusal:
        """Its answer, waited for so much longer than others; without credentials to ask with, `QueueRefused`."""
        try:
            async with asyncio.timeout((self._patience + more).total_seconds()):
                return await self._service.ask(call)
        except TimeoutError:
            raise QueueUnavailable(f"{self.place}: no answer in time") from None
        except AuthFailed as error:
            raise QueueRefused(f"{self.place}: {error.message}") from None

    def _granted(self, answer: T | Refusal, *, held: bool = False) -> T:
        if isinstance(answer, Refusal):
            raise error_of(answer, self.place, held=held)
        return answer


def whole(duration: timedelta) -> int:
    """Seconds, rounded up, at most what SQS takes."""
    return min(math.ceil(duration.total_seconds()), int(LONGEST.total_seconds()))


def traits_of(url: str, attributes: Mapping[Any, str]) -> Traits:
    """What the attributes of the queue with this URL say. A redrive policy that cannot be read is none."""
    target, most = _redrive(attributes.get("RedrivePolicy", ""))
    name = None if target is None else target.rpartition(":")[2]
    return Traits(
        told=True,
        dead_letters=None if name is None else f"{url.rpartition('/')[0]}/{name}",
        most_receives=most,
        message_most=int(attributes.get("MaximumMessageSize", SMALLEST_LIMIT)),
        waiting=int(attributes.get("ApproximateNumberOfMessages", 0)),
        held=int(attributes.get("ApproximateNumberOfMessagesNotVisible", 0)),
        delayed=int(attributes.get("ApproximateNumberOfMessagesDelayed", 0)),
    )


def _redrive(text: str) -> tuple[str | None, int | None]:
    try:
        policy = pydantic_core.from_json(text)
        return str(policy["deadLetterTargetArn"]), int(policy["maxReceiveCount"])
    except (ValueError, KeyError, TypeError):
        return None, None
