"""A queue of SQS, on moto's server, as the queue of a workshop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from dataclasses import replace
from typing import Any

from tests.support import sqs
from tests.support.lines_base import MOST, VISIBILITY_S, attempts_told, away, ended_by, failure_of, success_of
from tests.support.s3 import REGION
from worker.errors import QueueUnavailable
from worker.queues.base import JobState
from worker.queues.sqs.messages import ID, dead_state, named


class Messages:
    """The queue tells nothing of a job: it is seen by its messages, which are looked at where the server has them."""

    keeps_causes = False
    counts = False

    def __init__(self, server: sqs.Server) -> None:
        self.server = server
        self.place = sqs.made_line(server, dead_after=MOST)
        self.producer = Sender(self)

    def variables(self, worker: str) -> dict[str, str]:
        return {
            "WORKER_QUEUE": "sqs",
            "WORKER_QUEUE_VISIBILITY": f"{VISIBILITY_S}s",
            "WORKER_QUEUE_MAX_DELIVERIES": str(MOST),
            "WORKER_SQS_QUEUE_URL": self.place.url,
            "AWS_DEFAULT_REGION": REGION,
        }

    async def waiting(self) -> int:
        return sum(1 for one in self.messages() if one.visible)

    async def hand_overs(self) -> set[tuple[str, int]]:
        """Hidden messages; those that a worker has put off are among them."""
        return {(job_of(one), one.approximate_receive_count) for one in self.messages() if not one.visible}

    async def is_over(self, job_id: str) -> bool:
        return all(job_of(one) != job_id for one in self.messages())

    async def states(self, job_ids: Iterable[str], objects: Mapping[str, bytes]) -> list[JobState]:
        """What is left, what died, and what the store has of the others."""
        left = [_left(one) for one in self.messages()]
        dead = [_buried(one, objects) for one in self._dead_letters()]
        known = {state.id for state in (*left, *dead)}
        found = [success_of(job_id, objects) for job_id in job_ids if job_id not in known]
        return [*left, *dead, *(ended_by(one, 0) for one in found if one is not None)]

    def quiet(self) -> AbstractAsyncContextManager[None]:
        return nullcontext()

    async def give_up(self, worker: str) -> None:
        """Its messages are seen again."""

    async def restart(self) -> None:
        """Every request fails: the server forgets its messages when it ends."""
        self.server.bent.do("*", sqs.Refused("ServiceUnavailable", 503))
        try:
            await away()
        finally:
            self.server.bent.mend()

    def messages(self) -> list[Any]:
        """As the server has them, seen or hidden."""
        return sqs.messages(self.place.url)

    def _dead_letters(self) -> Iterator[Mapping[str, Any]]:
        """As they would be received; they are not."""
        assert self.place.dead_url is not None
        for one in sqs.messages(self.place.dead_url):
            yield {
                "MessageId": one.id,
                "Body": one.body,
                "Attributes": {"ApproximateReceiveCount": str(one.approximate_receive_count)},
                "MessageAttributes": one.message_attributes,
            }


class Sender:
    """The user's side, as a `Producer`: SQS takes documents and tells nothing."""

    def __init__(self, line: Messages) -> None:
        self._line = line

    async def submit(self, job_id: str, body: bytes, *, priority: int = 0) -> bool:
        from botocore.exceptions import ClientError

        try:
            await asyncio.to_thread(self._line.place.put, body.decode(), MessageAttributes=named(job_id))
        except ClientError as error:
            raise QueueUnavailable(str(error)) from None
        return True

    async def state(self, job_id: str) -> JobState | None:
        return None

    async def jobs(self, status: str | None = None, limit: int = 100) -> list[JobState]:
        return []

    async def requeue(self, job_id: str) -> bool:
        return False

    async def cancel(self, job_id: str) -> bool:
        return False

    async def aclose(self) -> None:
        """Nothing is open."""


def job_of(message: Any) -> str:
    """Which job it is about."""
    told: str = message.message_attributes[ID]["StringValue"]
    return told


def _left(message: Any) -> JobState:
    status = "waiting" if message.visible else "leased"
    return JobState(job_of(message), status, message.approximate_receive_count, (), None, None)


def _buried(letter: Mapping[str, Any], objects: Mapping[str, bytes]) -> JobState:
    """A dead letter says why the job died; its attempts stand in the store."""
    state = dead_state(letter)
    told = failure_of(state.id, objects)
    return state if told is None else replace(state, attempts=attempts_told(told))


@asynccontextmanager
async def on_sqs() -> AsyncIterator[Messages]:
    with sqs.running_sqs() as server:
        yield Messages(server)
