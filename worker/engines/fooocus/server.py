"""The routes of Fooocus-API that the driver uses, and what they answer."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from urllib.parse import quote

from worker.engines.answer import Answer
from worker.engines.client import Client
from worker.engines.fooocus.dialects import CLEAN, HISTORY
from worker.engines.fooocus.failure import checked
from worker.engines.fooocus.inventory import Inventory, inventory_of
from worker.engines.given import looked
from worker.errors import EngineCrashed, OutputEmpty

MODELS = "/v1/engines/all-models"
SUBMIT = timedelta(seconds=60)
"""For a request's images to be decoded and the model folders to be read before the job is queued."""

FETCH = timedelta(seconds=60)
_FILE = re.compile(r"/files/(\d{4}-\d\d-\d\d/[^/?#]+)\Z")


@dataclass(frozen=True, slots=True)
class Queue:
    """``waiting`` jobs with the one that runs; ``last`` is the job that was submitted last."""

    waiting: int
    finished: int
    last: str | None


class Server:
    """One server that was recognised. Every method raises `EngineCrashed`, and `AuthFailed` for a refused key."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def inventory(self) -> Inventory | None:
        """What it offers; None where what answers is no Fooocus-API."""
        api = await self._client.get("/openapi.json")
        listed = await self._client.get(MODELS)
        if listed.status in (401, 403):
            checked(listed)
        styles = await self._client.get("/v1/engines/styles")
        if not (api.ok and listed.ok and styles.ok):
            return None
        return await asyncio.to_thread(lambda: inventory_of(api.json, listed.json, styles.json))

    async def models(self) -> Answer:
        """The folders are read anew by each such request: no refresh is needed after a download."""
        return await self._client.get(MODELS)

    async def queue(self) -> Queue:
        document = _sound(await self._client.get("/v1/generation/job-queue")).json
        if not isinstance(document, dict):
            raise EngineCrashed("the server's queue is no document")
        waiting, finished, last = (document.get(k) for k in ("running_size", "finished_size", "last_job_id"))
        return Queue(
            waiting if type(waiting) is int else 0,
            finished if type(finished) is int else 0,
            last if isinstance(last, str) else None,
        )

    async def head(self) -> str | None:
        """The job that runs, or is the next to; None where nothing waits."""
        document = _sound(await self._client.get(HISTORY)).json
        queue = document.get("queue") if isinstance(document, dict) else None
        first = queue[0] if isinstance(queue, list) and queue else None
        job = first.get("job_id") if isinstance(first, dict) else None
        return job if isinstance(job, str) else None

    async def submit(self, path: str, body: Mapping[str, Any]) -> Answer:
        return await self._client.post(path, body, timeout=SUBMIT)

    async def query(self, job: str) -> Any:
        """The job's document; None where the server does not know it, as after its restart."""
        answer = await self._client.get(f"/v1/generation/query-job?job_id={quote(job, safe='')}")
        document = answer.json
        if answer.status == 404 and isinstance(document, dict) and document.get("job_type") == "Not Found":
            return None
        return _sound(answer).json

    async def preview(self, job: str) -> bytes | None:
        """The picture of a running job as it is by now, where it was not told to make none."""
        query = f"job_id={quote(job, safe='')}&require_step_preview=true"
        document = (await self._client.get(f"/v1/generation/query-job?{query}")).json
        return looked(document.get("job_step_preview")) if isinstance(document, dict) else None

    async def stop(self) -> None:
        """Interrupt what runs at its next step; where nothing runs, the next job is hit at its first."""
        _sound(await self._client.post("/v1/generation/stop"))

    async def clean(self, timeout: timedelta) -> None:
        _sound(await self._client.get(CLEAN, timeout=timeout))

    async def picture(self, url: str) -> bytes:
        """The saved file itself. Only the path of its URL counts, since the host in it may be anything."""
        found = _FILE.search(url)
        if found is None:
            raise OutputEmpty("the server gives no usable place of a picture")
        answer = await self._client.get(f"/files/{found[1]}", timeout=FETCH)
        if not answer.ok:
            raise OutputEmpty(f"the server answered {answer.status} for a picture that it says it made")
        return answer.body

    async def delete(self, job: str) -> bool:
        """Take a finished job's files away, and say whether that is so.

        The server answers 500 after it has done so, unless it keeps its history in a database.
        """
        await self._client.get(f"{HISTORY}?job_id={quote(job, safe='')}&delete=true")
        return await self.query(job) is None


def _sound(answer: Answer) -> Answer:
    """The answer of a route that asks nothing of the GPU: a 500 there is as good as none."""
    if answer.status >= 500:
        raise EngineCrashed(f"the server answered {answer.status}")
    return checked(answer)


def file_of(url: str) -> str | None:
    """The path of a picture in the server's folder of outputs."""
    found = _FILE.search(url)
    return found[1] if found is not None else None
