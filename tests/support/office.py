"""A whole worker in virtual time that takes HTTP jobs, and a client of its `/v1/jobs`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import httpx
from fastapi import FastAPI

from tests.support.fakes import FakeReceiver, FakeStorage
from tests.support.virtual import elapse
from tests.support.world import World
from worker.api import jobs
from worker.desk import Desk, Elsewhere, Rules
from worker.desk.inquiry import Inquiry
from worker.job import Limits
from worker.queues.base import Producer
from worker.queues.memory import MemoryQueue
from worker.queues.policy import Policy
from worker.result import Result
from worker.status import Phase
from worker.storage.base import Archive
from worker.storage.inline import InlineStorage
from worker.storage.keys import in_order
from worker.web import problems
from worker.webhooks import Defaults

HOUR = timedelta(hours=1)
PATH = "/v1/jobs"
ASYNC = {"prefer": "respond-async"}
RULES = Rules(Limits(), 100, HOUR, None, cancel_on_disconnect=True, secret=b"sesame")
HOOK = "https://hooks.example/mine"


class SharedStorage(FakeStorage):
    """A store that every replica sees, as S3 is; documents are found by the job's id."""

    name = "s3"

    async def find_result(self, job_id: str) -> Result | None:
        await self._call("find_result")
        body = self.objects.get(f"{job_id}/result.json")
        return next(reversed(self._failures(job_id)), None) if body is None else Result.model_validate_json(body)

    async def find_failures(self, job_id: str) -> tuple[Result, ...]:
        await self._call("find_failures")
        return self._failures(job_id)

    def _failures(self, job_id: str) -> tuple[Result, ...]:
        names = [key for key in self.objects if key.startswith(f"{job_id}/failure-")]
        return in_order(self.objects[name] for name in sorted(names))


class Office(World):
    """``hooks`` takes webhooks of HTTP jobs; the operator's own URL is only there where ``hook`` says so.

    ``passes_on``: asynchronous jobs go to its own queue; ``producer`` is another's.
    """

    desk: Desk

    def __init__(
        self,
        *,
        rules: Rules = RULES,
        hook: str | None = None,
        passes_on: bool = False,
        producer: Producer | None = None,
        archives: Sequence[Archive] = (),
        **world: Any,
    ) -> None:
        self._passes_on, self._producer, self._archives = passes_on, producer, archives
        self._defaults = Defaults(url=hook)
        super().__init__(http=rules, **world)
        self.inquiry = Inquiry(self.desk)

    def _desk(self, rules: Rules) -> Desk:
        own = MemoryQueue(self.queue._clock, worker=self.worker, policy=Policy(max_attempts=3), can_delay=False)
        self.hooks = FakeReceiver(self.clock, self._defaults)
        return Desk(
            own,
            self.tools,
            self.status,
            rules,
            inline=InlineStorage(8_000_000),
            notifier=self.hooks,
            elsewhere=Elsewhere(self.queue if self._passes_on else self._producer, self._archives),
        )

    def app(self) -> FastAPI:
        """The routes of jobs alone."""
        app = FastAPI()
        app.include_router(jobs.routes(self.desk))
        problems.install(app, self.metrics.bug)
        return app

    @asynccontextmanager
    async def open(self) -> AsyncIterator[httpx.AsyncClient]:
        """At work and READY; a client of it."""
        transport = httpx.ASGITransport(self.app())
        try:
            async with self.running(), httpx.AsyncClient(transport=transport, base_url="http://worker") as client:
                await self.status.reached(Phase.READY)
                yield client
        finally:
            await self.hooks.aclose()


def document(prompt: str = "x", **fields: Any) -> dict[str, Any]:
    return {"params": {"prompt": prompt}, **fields}


def shared(storage: SharedStorage | None = None, **more: Any) -> Office:
    """One whose results are in a store that others see too."""
    storage = storage or SharedStorage()
    return Office(storage=storage, archives=[storage], **more)


async def until_over(office: Office, client: httpx.AsyncClient, job_id: str) -> dict[str, Any]:
    """The state of a job once it is over."""
    while True:
        state: dict[str, Any] = (await client.get(f"{PATH}/{job_id}")).json()
        if "status" in state and state["status"] not in ("waiting", "running"):
            return state
        await elapse(0.5)


def asking(client: httpx.AsyncClient, body: dict[str, Any], **headers: str) -> asyncio.Task[httpx.Response]:
    """A request under way."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return asyncio.create_task(client.post(PATH, json=body, headers=named), name="caller")
