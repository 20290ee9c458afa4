"""SaladCloud's job queue, as the queue of a workshop: each worker has an identity of its own."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from dataclasses import replace

from tests.support.lines_base import MOST, VISIBILITY_S, away, ended_by
from tests.support.metadata import MetadataService, said, token
from tests.support.receiver import Answer, Request
from tests.support.salad_queue import PlatformsApi, QueuedJob, SaladJobQueue
from tests.support.waiting import wait_until
from worker.queues.base import JobState
from worker.result import Result

GRACE_S = 0.2
"""How long a job waits for a worker whose stream has ended."""


class Identities(MetadataService):
    """Every worker's own service, under a path of its own."""

    def answer(self, request: Request) -> Answer:
        worker, _, path = request.target.removeprefix("/").partition("/")
        answer = super().answer(replace(request, target=f"/{path}"))
        return said({"jwt": token(self.tokens, worker)}) if path == "v1/token" and answer.status == 200 else answer


class Pushed:
    """The platform tells who has a job and what its output is, and of those before nothing."""

    keeps_causes = False
    counts = True

    def __init__(self, service: SaladJobQueue, identities: Identities) -> None:
        self.service, self._identities = service, identities
        self.producer = PlatformsApi(service)

    def variables(self, worker: str) -> dict[str, str]:
        return {
            **self._identities.variables(worker),
            "SALAD_METADATA_URI": self._identities.url(f"/{worker}"),
            "SALAD_SERVICE_ENDPOINT": self.service.target,
            "SALAD_SERVICE_USE_TLS": "false",
            "WORKER_QUEUE": "salad",
            "WORKER_QUEUE_VISIBILITY": f"{VISIBILITY_S}s",
            "WORKER_QUEUE_MAX_DELIVERIES": str(MOST),
        }

    async def waiting(self) -> int:
        return len(self._jobs("pending"))

    async def hand_overs(self) -> set[tuple[str, int]]:
        return {(job.id, job.attempts) for job in self._jobs("running")}

    async def is_over(self, job_id: str) -> bool:
        return self.service.jobs[job_id].status in ("succeeded", "failed")

    async def states(self, job_ids: Iterable[str], objects: Mapping[str, bytes]) -> list[JobState]:
        return [_state(job) for job in self.service.jobs.values()]

    def quiet(self) -> AbstractAsyncContextManager[None]:
        return nullcontext()

    async def give_up(self, worker: str) -> None:
        """Its stream is ended, and after a while its job is another's."""
        self.service.end_streams(worker=worker)
        await wait_until(lambda: all(job.worker != worker for job in self._jobs("running")))

    async def restart(self) -> None:
        await self.service.stop()
        await away()
        await self.service.start()

    def _jobs(self, status: str) -> list[QueuedJob]:
        return [job for job in self.service.jobs.values() if job.status == status]


STATUSES = {"pending": "waiting", "running": "leased", "failed": "dead", "cancelled": "done"}


def _state(job: QueuedJob) -> JobState:
    """What became of it is told by its output."""
    if job.status == "succeeded":
        return ended_by(Result.model_validate_json(json.dumps(job.output)), job.attempts)
    code = "cancelled" if job.status == "cancelled" else None
    return JobState(job.id, STATUSES[job.status], job.attempts, (), code, None)


@asynccontextmanager
async def on_salad() -> AsyncIterator[Pushed]:
    async with Identities() as identities, SaladJobQueue(grace_s=GRACE_S, attempts=MOST) as service:
        yield Pushed(service, identities)
