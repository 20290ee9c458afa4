"""What a queue of a workshop is, whatever it can tell of its jobs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from tests.support.virtual import takes
from worker.queues.base import Attempt, JobState, Producer
from worker.queues.policy import is_charged
from worker.result import Result

VISIBILITY_S = 2
MOST = 1000
OVER = ("done", "dead")
AWAY_S = 0.5
"""How long a queue that is started again is away."""


class Line(Protocol):
    """A queue on which several workers may be.

    ``keeps_causes``: it tells how every hand-over ended, those of lost workers too. Where it does not, the attempts in
    its ``states`` are those that the stored documents tell of. ``counts``: it tells how often a job was handed over.
    """

    keeps_causes: bool
    counts: bool

    @property
    def producer(self) -> Producer: ...

    def variables(self, worker: str) -> Mapping[str, str]:
        """What configures the worker of this name for it."""
        ...

    async def waiting(self) -> int:
        """How many jobs wait, as far as it matters: ten and more are ten."""
        ...

    async def hand_overs(self) -> set[tuple[str, int]]:
        """Those that are out: job and number."""
        ...

    async def is_over(self, job_id: str) -> bool:
        """Whether the queue will hand it over no more."""
        ...

    async def states(self, job_ids: Iterable[str], objects: Mapping[str, bytes]) -> list[JobState]:
        """Every job there is, with its result; ``job_ids`` are those that should be, ``objects`` what is stored."""
        ...

    def quiet(self) -> AbstractAsyncContextManager[None]:
        """A time in which a worker may be stopped without keeping all others from the queue."""
        ...

    async def give_up(self, worker: str) -> None:
        """What the queue does about a worker that stands still, where that is more than to let its leases end."""
        ...

    async def restart(self) -> None:
        """The queue goes away without a word, and some time later it is back with what it had."""
        ...


class Telling:
    """A queue that tells everything about its jobs through its `Producer`."""

    keeps_causes = True
    counts = True
    producer: Producer

    async def waiting(self) -> int:
        return len(await self.producer.jobs("waiting", 10))

    async def hand_overs(self) -> set[tuple[str, int]]:
        return {(state.id, state.deliveries) for state in await self.producer.jobs("leased")}

    async def is_over(self, job_id: str) -> bool:
        state = await self.producer.state(job_id)
        return state is not None and state.status in OVER

    async def states(self, job_ids: Iterable[str], objects: Mapping[str, bytes]) -> list[JobState]:
        return await self.producer.jobs(limit=1_000_000)

    async def give_up(self, worker: str) -> None:
        """Its leases end."""


async def away() -> None:
    """The time in which a queue is away."""
    await takes(AWAY_S)


def ended_by(result: Result, deliveries: int) -> JobState:
    """The state of a job that is over, as the document of its end tells it."""
    if result.status == "succeeded":
        return JobState(result.id, "done", deliveries, attempts_told(result), None, result)
    return JobState(result.id, "dead", deliveries, attempts_told(result), code_of(result), result)


def attempts_told(result: Result) -> tuple[Attempt, ...]:
    """The attempts that a document tells of, its own the last."""
    own = Attempt(result.worker.id, result.finished_at, code_of(result), is_charged(result))
    return (*(Attempt(one.worker, one.ended, one.code, bool(one.charged)) for one in result.attempts), own)


def code_of(result: Result) -> str:
    return result.error.code if result.error is not None else result.status


def success_of(job_id: str, objects: Mapping[str, bytes]) -> Result | None:
    """The success that is stored of a job."""
    body = objects.get(f"{job_id}/result.json")
    return None if body is None else Result.model_validate_json(body)


def failure_of(job_id: str, objects: Mapping[str, bytes]) -> Result | None:
    """The latest failure that is stored of a job."""
    start, end = f"{job_id}/failure-", ".json"
    numbers = [int(key[len(start) : -len(end)]) for key in objects if key.startswith(start)]
    return Result.model_validate_json(objects[f"{start}{max(numbers)}{end}"]) if numbers else None
