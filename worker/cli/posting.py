"""`sd-worker submit --url`: jobs posted to a worker or a scheduling server, and their ends waited for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from pathlib import Path
from typing import Any, Self

import httpx
import pybase64
import pydantic_core

from worker import http
from worker.cli.output import complain
from worker.errors import AuthFailed, ConfigError, DownloadFailed, FieldError
from worker.storage.base import EXTENSIONS
from worker.tasks import gather_bare

PATH = "/v1/jobs"
AT_ONCE = 8
"""Jobs that are asked for at a time: more than that a worker may not let wait, and they would come again and again."""

BUSY = frozenset({"too_many_pending", "not_ready", "draining"})
"""Codes of a server that took nothing in."""

TRIES = 3
"""How often a job that failed for a reason that may pass is asked for."""

PAUSE = timedelta(seconds=10)
POLL_S = 0.5
ANSWER_WITHIN = timedelta(days=1)
OVER = frozenset({"succeeded", "failed", "cancelled"})


@dataclass(frozen=True, slots=True)
class Told:
    """What is known of a job in the end: its id there, its status and result document, or why there is none."""

    id: str
    status: str
    result: dict[str, Any] | None = None
    said: str = ""

    @property
    def failed(self) -> bool:
        return self.status not in ("succeeded", "waiting", "running")

    def row(self) -> tuple[str, str, str, str]:
        """Id, status, seconds, and where its images are, or what went wrong."""
        result = self.result or {}
        seconds = (result.get("timings") or {}).get("total")
        error = result.get("error")
        made = [*result.get("images", ()), *result.get("files", ())]
        where = " ".join(_place(one) for one in made) if error is None else str(error.get("message", ""))
        return self.id, self.status, "" if seconds is None else f"{seconds:.1f}", self.said or where


class Poster:
    """A client of ``/v1/jobs`` below ``url``, which may have a path of its own.

    ``wait``: until each job has ended; asked asynchronously where the server can.
    """

    def __init__(self, url: str, key: str | None, *, wait: bool, poll_s: float = POLL_S) -> None:
        base = base_of(url)
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        self._client = http.client(
            base_url=base, timeout=ANSWER_WITHIN, loopback=http.is_loopback(base), headers=headers, connections=AT_ONCE
        )
        self._wait = wait
        self._poll_s = poll_s
        self._room = asyncio.Semaphore(AT_ONCE)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()

    async def is_worker(self) -> bool:
        """Whether there is such an endpoint; `AuthFailed` where the key does not open it, `DownloadFailed` where nobody
        answers."""
        answer = await self._asked("GET", f"{PATH}/{_NOBODY}")
        return answer.status_code != HTTPStatus.NOT_FOUND or _problem(answer).get("code") == "unknown_here"

    async def done(self, job_id: str, body: bytes) -> Told:
        """Have one job done, however often it has to be asked for; its id is also its key, so that it is done once."""
        headers = {"content-type": "application/json", "idempotency-key": job_id}
        if self._wait:
            headers["prefer"] = "respond-async"
        tries = 0
        while True:
            async with self._room:
                answer = await self._asked("POST", PATH, body, headers)
            problem = _problem(answer)
            code = problem.get("code")
            if code == "no_shared_state" and headers.pop("prefer", None):
                continue
            if answer.status_code in (429, 503) and (code in BUSY or tries < TRIES - 1):
                tries += code not in BUSY
                await self._later(job_id, answer, problem)
            else:
                return await self._ended(job_id, answer, problem)

    async def _later(self, job_id: str, answer: httpx.Response, problem: dict[str, Any]) -> None:
        asked = http.retry_after(answer, datetime.min.replace(tzinfo=UTC))
        pause = PAUSE if asked is None else asked
        complain(f"{job_id}: {_said(answer, problem)}; again in {pause.total_seconds():g} s")
        await asyncio.sleep(pause.total_seconds())

    async def _ended(self, job_id: str, answer: httpx.Response, problem: dict[str, Any]) -> Told:
        """What an answer means that is the last but for what is to be waited for."""
        document = _object(answer)
        if answer.status_code == HTTPStatus.OK:
            return Told(str(document.get("id", job_id)), str(document.get("status")), document)
        if answer.status_code == HTTPStatus.ACCEPTED or problem.get("code") == "still_running":
            there = str(document.get("id", job_id))
            status = str(document["status"]) if answer.is_success and "status" in document else "running"
            return await self._followed(there) if self._wait else Told(there, status)
        result = problem.get("result")
        status = str(result.get("status")) if isinstance(result, dict) else "refused"
        return Told(job_id, status, said=_said(answer, problem))

    async def _followed(self, there: str) -> Told:
        while True:
            answer = await self._asked("GET", f"{PATH}/{there}")
            document = _object(answer)
            if answer.status_code == HTTPStatus.NOT_FOUND:
                return Told(there, "gone", said="the server does not know it any more")
            if answer.is_success and document.get("status") in OVER:
                return Told(there, str(document["status"]), document.get("result"))
            if not answer.is_success and answer.status_code not in (429, 503):
                return Told(there, "unknown", said=_said(answer, _problem(answer)))
            await asyncio.sleep(self._poll_s)

    async def _asked(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> httpx.Response:
        with http.translating(DownloadFailed):
            answer = await self._client.request(method, path, content=body, headers=headers)
        if answer.status_code in (401, 403):
            raise AuthFailed("the key is refused; WORKER_API_KEY must be the server's")
        return answer


_NOBODY = "sd-worker-submit"
"""The id of no job."""


def base_of(url: str) -> str:
    """The URL below which ``/v1/jobs`` is, from that or from the whole; `ConfigError` for none."""
    parsed = http.parsed(url)
    if parsed is None or parsed.scheme not in ("http", "https") or not parsed.host:
        raise ConfigError((FieldError("--url", "must be an http or https URL"),))
    if parsed.userinfo or parsed.query:
        raise ConfigError((FieldError("--url", "takes no credentials and no query; the key is WORKER_API_KEY"),))
    return str(parsed).rstrip("/").removesuffix(PATH)


async def posted(poster: Poster, jobs: Sequence[tuple[str, bytes, int]], on_end: Callable[[], None]) -> list[Told]:
    """Have all done, each told in the order of the documents; ``on_end`` is called for each as it ends."""

    async def one(job_id: str, body: bytes) -> Told:
        told = await poster.done(job_id, body)
        on_end()
        return told

    return await gather_bare([one(job_id, body) for job_id, body, _ in jobs], name="submit")


def saved(told: Told, folder: Path) -> Told:
    """Write what stands in the result into files of the folder, and have the row name those."""
    result = dict(told.result or {})
    for kind in ("images", "files"):
        result[kind] = [_saved(one, told.id, folder) for one in result.get(kind, ())]
    return replace(told, result=result)


def _saved(output: dict[str, Any], job_id: str, folder: Path) -> dict[str, Any]:
    data = output.get("base64")
    if not isinstance(data, str):
        return output
    made = str(output.get("format", "bin"))
    path = folder / Path(f"{job_id}-{output.get('index', 0)}.{EXTENSIONS.get(made, made)}").name
    folder.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pybase64.b64decode(data))
    return {**output, "url": str(path)}


def _place(output: dict[str, Any]) -> str:
    if output.get("key") or output.get("url"):
        return str(output.get("url") or output["key"])
    return f"output {output.get('index')}: {output.get('bytes')} bytes of {output.get('format')}"


def _object(answer: httpx.Response) -> dict[str, Any]:
    try:
        found = pydantic_core.from_json(answer.content)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _problem(answer: httpx.Response) -> dict[str, Any]:
    return {} if answer.is_success else _object(answer)


def _said(answer: httpx.Response, problem: dict[str, Any]) -> str:
    """Why; the detail of a problem of ours names every wrong field."""
    status = HTTPStatus(answer.status_code).phrase if answer.status_code in set(HTTPStatus) else ""
    return str(problem.get("detail") or f"the server answered {answer.status_code} {status}".rstrip())
