"""The user's side of a scheduling server: putting jobs there, and seeing what becomes of them."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any
from urllib.parse import urlencode

import pydantic_core

from worker.clock import Clock
from worker.errors import FieldError, IdConflict, InvalidJob, QueueUnavailable
from worker.job import document_of
from worker.queues.availability.answers import state_of, states_of
from worker.queues.availability.client import Client, Reply, job_path
from worker.queues.base import JobState

PATIENCE = timedelta(seconds=60)


class AvailabilityProducer:
    """`Producer` over the scheduling API; ``token`` is a user's. Every verb raises `QueueUnavailable`.

    A token that is refused is `AuthFailed` as well. Only JSON objects can be submitted: `InvalidJob` otherwise, and
    for what the server refuses, naming each wrong field as it does.
    """

    def __init__(self, url: str, clock: Clock, *, token: str | None = None) -> None:
        self._secret = token
        self._client = Client(url, self._token, clock)

    async def _token(self, refused: str | None = None) -> str | None:
        return self._secret

    async def submit(self, job_id: str, body: bytes, *, priority: int = 0) -> bool:
        document = {**document_of(body, max_body=len(body)), "id": job_id}
        if priority:
            document["priority"] = priority
        reply = await self._call("POST", "/jobs", pydantic_core.to_json(document))
        if reply.is_conflict:
            raise IdConflict(f"another document is known under the id {job_id}")
        if not reply.is_success:
            raise _refused(reply)
        return reply.status != 200

    async def state(self, job_id: str) -> JobState | None:
        reply = await self._call("GET", job_path(job_id))
        return state_of(self._read(reply)) if not reply.is_absent else None

    async def jobs(self, status: str | None = None, limit: int = 100) -> list[JobState]:
        """As the server lists them: open ones in the order of hand-over, then those that are over; without images."""
        asked = {"limit": limit} if status is None else {"status": status, "limit": limit}
        return states_of(self._read(await self._call("GET", f"/jobs?{urlencode(asked)}")))

    async def requeue(self, job_id: str) -> bool:
        return self._done(await self._call("POST", job_path(job_id, "/requeue")))

    async def cancel(self, job_id: str) -> bool:
        return self._done(await self._call("DELETE", job_path(job_id)))

    async def aclose(self) -> None:
        await self._client.aclose()

    async def _call(self, method: str, path: str, body: bytes | None = None) -> Reply:
        return await self._client.call(method, path, body, patience=PATIENCE)

    def _read(self, reply: Reply) -> Any:
        if not reply.is_success:
            raise QueueUnavailable(f"{self._client.place()}: answered {reply.status}")
        return reply.document()

    def _done(self, reply: Reply) -> bool:
        """Whether the job was as the verb needs it; one that is unknown, or over, is not."""
        if reply.is_absent or reply.is_conflict:
            return False
        self._read(reply)
        return True


def _refused(reply: Reply) -> InvalidJob:
    """What the server has against a document, by field."""
    problem = reply.problem()
    found = [_mistake(one) for one in problem.get("errors") or () if isinstance(one, Mapping)]
    said = str(problem.get("detail") or f"the scheduling server answered {reply.status}")
    return InvalidJob(errors=tuple(found) or (FieldError("", said),))


def _mistake(error: Mapping[str, Any]) -> FieldError:
    return FieldError(str(error.get("field", "")), str(error.get("message", "is refused")))
