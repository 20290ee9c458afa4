"""What every endpoint that takes jobs shares: reading documents, waiting for the end, and saying what went wrong."""

from __future__ import annotations

import asyncio
import math
import re
from typing import Any

import pydantic_core
from fastapi import Request, Response
from fastapi.responses import JSONResponse

from worker.desk import Desk, Ended, Ticket
from worker.desk.refusals import JobOver, NoSharedState, TooManyPending, UnknownHere
from worker.errors import (
    Expired,
    Fault,
    FieldError,
    IdConflict,
    InvalidJob,
    JobCancelled,
    JobTimedOut,
    UnsupportedDocument,
    UploadForbidden,
    UrlForbidden,
    WorkerError,
)
from worker.job import document_of
from worker.result import Result
from worker.tasks import cancel_all, first_of
from worker.web.inside import is_patient
from worker.web.problems import problem

RETRY_AFTER_S = 10
"""When what failed for a reason that passes may be asked for again."""

_TIMES = frozenset({Expired.code, JobTimedOut.code})
_STATUS_OF_FAULT = {Fault.JOB: 422, Fault.NODE: 503, Fault.DEPENDENCY: 503, Fault.OPERATOR: 503, Fault.BUG: 500}
_IN_THREAD = 1_000_000
_OF_FIELDS = frozenset({InvalidJob.code, UrlForbidden.code, UploadForbidden.code})
_FIELD = re.compile(r"(?:^|; )(?!(?:known|close|given): )([a-z][a-z0-9_]*(?:\.[A-Za-z0-9_-]+)*): ")


class Late(Exception):
    """The job goes on, but its caller has waited as long as he may."""


class Gone(Exception):
    """The caller went away."""


async def document_in(request: Request, *, max_body: int) -> dict[str, Any]:
    """The JSON object that the request carries, whose bytes are not kept. Raises `InvalidJob`.

    They are put together as they come: to join many megabytes in the end would stop everything else meanwhile.
    """
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
    if len(body) > _IN_THREAD:
        return await asyncio.to_thread(document_of, body, max_body=max_body)
    return document_of(body, max_body=max_body)


def hands_off(request: Request, wanted: bool) -> bool:
    """Whether the caller is answered before the end, as he ``wanted`` it.

    A queue's job never is: with the answer the queue forgets it, and it would be lost with this node.
    """
    return wanted and not is_patient(request.scope)


async def ended(request: Request, desk: Desk, ticket: Ticket) -> Ended:
    """Wait for a job until it has ended, and where a queue waits for it, until its webhook was tried.

    Raises `Late` once ``WORKER_HTTP_TIMEOUT`` is over, which promises that the job goes on; and `Gone` when the caller
    went away: then his job is cancelled, unless the operator wants it done all the same, or somebody else waits for it
    or was promised it.
    """
    with ticket.awaited():
        return await _ended(request, desk, ticket)


async def _ended(request: Request, desk: Desk, ticket: Ticket) -> Ended:
    timeout = None if is_patient(request.scope) else desk.rules.timeout
    over = asyncio.create_task(ticket.over(), name=f"wait-{ticket.id}")
    away = asyncio.create_task(gone(request), name=f"watch-{ticket.id}")
    try:
        limit = None if timeout is None else timeout.total_seconds()
        await asyncio.wait({over, away}, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
        if over.done():
            if is_patient(request.scope):
                await first_of(_let_go(desk, ticket), asyncio.wait({away}))
            return over.result()
        if not away.done():
            ticket.waits = False
            raise Late
        if desk.rules.cancel_on_disconnect and ticket.waits and ticket.waiters == 1:
            await desk.cancel(ticket.id)
        raise Gone
    finally:
        await cancel_all({over, away})


async def _let_go(desk: Desk, ticket: Ticket) -> None:
    while any(job.id == ticket.id for job in desk.tools.live):
        await desk.tools.live.changed()


async def gone(request: Request) -> None:
    """Until the connection is gone; the body must have been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def refused(error: WorkerError) -> JSONResponse:
    """The problem that keeps a job from being taken in. Raises what is a bug."""
    if error.fault is Fault.BUG:
        raise error
    errors = error.errors if isinstance(error, InvalidJob) else fields_in(error.code, error.message)
    return problem(_status(error), error.message, code=error.code, errors=errors, headers=_headers(error))


def late(ticket: Ticket) -> JSONResponse:
    """The job goes on: its state can be asked for."""
    said = f"the job takes longer than an answer may; ask for /v1/jobs/{ticket.id}"
    return problem(504, said, code="still_running", more={"id": ticket.id, "client_id": ticket.client_id})


def failed(result: Result) -> JSONResponse:
    """The problem that a job's end is, with the result document."""
    error = result.error
    if error is None:
        raise ValueError("a success is no problem")
    status = 409 if result.status == "cancelled" else 408 if error.code in _TIMES else _STATUS_OF_FAULT[error.fault]
    headers = {"retry-after": str(RETRY_AFTER_S)} if status == 503 else {}
    document = pydantic_core.from_json(result.to_json(base64=False))
    errors = fields_in(error.code, error.message)
    return problem(status, error.message, code=error.code, errors=errors, headers=headers, more={"result": document})


async def answered(result: Result) -> Response:
    """The result document, or the problem that it is."""
    if result.status != "succeeded":
        return failed(result)
    large = sum(len(output.base64 or "") for output in result.outputs) > _IN_THREAD
    body = await asyncio.to_thread(result.to_json) if large else result.to_json()
    return Response(body, media_type="application/json")


def fields_in(code: str, message: str) -> tuple[FieldError, ...]:
    """The wrong fields that the message of an error names: each stands before what is wrong with it."""
    if code not in _OF_FIELDS:
        return ()
    found = list(_FIELD.finditer(message) if code == InvalidJob.code else filter(None, [_FIELD.match(message)]))
    ends = [*(match.start() for match in found), len(message)][1:]
    return tuple(FieldError(match[1], message[match.end() : end]) for match, end in zip(found, ends, strict=True))


def _status(error: WorkerError) -> int:
    match error:
        case TooManyPending():
            return 429
        case JobCancelled() | IdConflict() | NoSharedState() | JobOver():
            return 409
        case UnknownHere():
            return 404
        case UnsupportedDocument():
            return 422
    return 408 if error.code in _TIMES else _STATUS_OF_FAULT[error.fault]


def _headers(error: WorkerError) -> dict[str, str]:
    if _status(error) not in (429, 503):
        return {}
    wait_s = error.retry_after.total_seconds() if error.retry_after is not None else RETRY_AFTER_S
    return {"retry-after": str(max(1, math.ceil(wait_s)))}
