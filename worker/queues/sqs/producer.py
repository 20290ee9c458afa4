"""The submitting side of an SQS queue, as far as SQS has one: it sends, and looks into the dead letters."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pydantic_core

from worker.clock import CorrectedClock
from worker.documents import S3Documents
from worker.errors import ConfigError, FieldError, InvalidJob, LeaseLost, QueueUnavailable
from worker.queues.base import JobState
from worker.queues.policy import fingerprint
from worker.queues.sqs.client import BATCH, SqsClient, Traits
from worker.queues.sqs.errors import VARIABLE, error_of
from worker.queues.sqs.messages import NOT_TAKEN, dead_state, job_id_of, named, revived

PEEKED_FOR = timedelta(seconds=60)
"""How long dead letters that were looked at stay hidden when nobody gives them back."""

PEEK_WAIT = timedelta(seconds=1)
"""So that all of SQS's servers are asked, not a sample of them."""

_ATTRIBUTES = 1024
"""Bytes that our attributes take at most: they count as the message's."""


@dataclass(frozen=True, slots=True)
class Overflow:
    """Where documents go that are too large for a message: a bucket that the workers may read."""

    bucket: str
    prefix: str = ""
    endpoint_url: str | None = None
    region: str | None = None

    def key(self, job_id: str, body: bytes) -> str:
        """Another document under the same id has a key of its own."""
        parts = (*self.prefix.split("/"), job_id, f"job-{hashlib.sha256(body).hexdigest()[:12]}.json")
        return "/".join(part for part in parts if part)


class SqsProducer:
    """`Producer` over SQS.

    What SQS has no way of is not there: priorities, the state of a job, withdrawing one. Raises as `SqsQueue` does.
    Dead letters that were looked at stay hidden from others until `aclose` gives them back.
    """

    def __init__(self, url: str, clock: CorrectedClock, *, overflow: Overflow | None = None) -> None:
        self._clock = clock
        self._client = SqsClient(url, clock, threads=4)
        self._overflow = overflow
        self._documents: S3Documents | None = None
        self._traits: Traits | None = None
        self._letters: dict[str, Mapping[str, Any]] = {}

    async def submit(self, job_id: str, body: bytes, *, priority: int = 0) -> bool:
        """Send it; always True. SQS knows no ids: what was submitted twice is done once, by its mark in the store.

        A FIFO queue drops the same document for 5 minutes. Raises `InvalidJob` for one that is too large, and
        `UploadFailed` where the store does not take it.
        """
        traits = await self._known()
        text = sendable(body)
        if (size := len(text.encode())) + _ATTRIBUTES > traits.message_most:
            text = pydantic_core.to_json({"job_url": await self._stored(job_id, body, size, traits)}).decode()
        message: dict[str, Any] = {"MessageBody": text, "MessageAttributes": named(job_id)}
        if self._client.is_fifo:
            key = hashlib.sha256(f"{job_id}\n{fingerprint(job_id, body)}".encode()).hexdigest()
            message |= {"MessageGroupId": job_id, "MessageDeduplicationId": key}
        await self._send(message)
        return True

    async def _stored(self, job_id: str, body: bytes, size: int, traits: Traits) -> str:
        """Where the document lies from now on."""
        if self._overflow is None:
            limit = f"{traits.message_most - _ATTRIBUTES} fit into a message of this queue (MaximumMessageSize)"
            raise InvalidJob(f"the document has {size} bytes, {limit}; larger ones need WORKER_S3_BUCKET")
        place = self._overflow
        if self._documents is None:
            self._documents = S3Documents(endpoint_url=place.endpoint_url, region=place.region, clock=self._clock)
        return await self._documents.put(place.bucket, place.key(job_id, body), body)

    async def state(self, job_id: str) -> JobState | None:
        """None: SQS finds no message by a job's id."""
        return None

    async def jobs(self, status: str | None = None, limit: int = 100) -> list[JobState]:
        """Dead letters, in no order. `ConfigError` for any others: SQS tells how many there are and no more."""
        traits = await self._known(fresh=True)
        if status != "dead":
            counts = f"{traits.waiting} wait, {traits.delayed} are delayed, {traits.held} are held"
            said = f"is sqs, which lists dead letters alone (`queue dead`); of others it knows the number: {counts}"
            raise ConfigError((FieldError("WORKER_QUEUE", said),))
        await self._peek(self._dead_letters(traits), limit)
        return [dead_state(message) for message in list(self._letters.values())[:limit]]

    async def requeue(self, job_id: str) -> bool:
        """As `Producer.requeue`: the dead letter is sent to the queue and then deleted."""
        url = self._dead_letters(await self._known())
        letter = self._letter(job_id)
        while letter is None and await self._peek(url, len(self._letters) + BATCH):
            letter = self._letter(job_id)
        if letter is None:
            return False
        await self._send(revived(letter, uuid.uuid4().hex, fifo=self._client.is_fifo))
        with suppress(LeaseLost):
            await self._client.delete(letter["ReceiptHandle"], url=url)
        del self._letters[letter["MessageId"]]
        return True

    async def cancel(self, job_id: str) -> bool:
        """False: SQS withdraws nothing, and its holder hears nothing through it."""
        return False

    async def aclose(self) -> None:
        """Give the dead letters back that were looked at; where SQS does not answer they come back by themselves."""
        url = self._traits.dead_letters if self._traits is not None else None
        letters, self._letters = self._letters, {}
        try:
            with suppress(QueueUnavailable):
                if url is not None:
                    await self._client.show([letter["ReceiptHandle"] for letter in letters.values()], url=url)
        finally:
            if self._documents is not None:
                await self._documents.aclose()
            await self._client.aclose()

    async def _peek(self, url: str, limit: int) -> int:
        """Look at dead letters until there are so many, or no more; how many were found."""
        found = 0
        while len(self._letters) < limit:
            messages = await self._client.receive(wait=PEEK_WAIT, visibility=PEEKED_FOR, most=BATCH, url=url)
            found += len(messages)
            self._letters |= {message["MessageId"]: dict(message) for message in messages}
            if not messages:
                break
        return found

    def _letter(self, job_id: str) -> Mapping[str, Any] | None:
        return next((one for one in self._letters.values() if job_id_of(one) == job_id), None)

    async def _send(self, message: Mapping[str, Any]) -> None:
        refusal = await self._client.send(message)
        if refusal is not None:
            raise error_of(refusal, self._client.place)

    async def _known(self, *, fresh: bool = False) -> Traits:
        if self._traits is None or fresh:
            self._traits = await self._client.traits()
        return self._traits

    def _dead_letters(self, traits: Traits) -> str:
        if traits.dead_letters is None:
            said = "has no redrive policy: it has no dead letters"
            if not traits.told:
                said = "does not tell of its dead letters: sqs:GetQueueAttributes is missing"
            raise ConfigError((FieldError(VARIABLE, said),))
        return traits.dead_letters


def sendable(body: bytes) -> str:
    """The document as a text that SQS takes: JSON in ASCII where it holds characters that are not allowed."""
    try:
        text = body.decode()
    except UnicodeDecodeError:
        text = body.decode("utf-8", "surrogatepass")
    return json.dumps(json.loads(text)) if NOT_TAKEN.search(text) else text
