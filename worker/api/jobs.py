"""`/v1/jobs`: a job document in, and its result out, at once or later."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Header, Path, Request, Response
from fastapi.responses import StreamingResponse

from worker.api import sse
from worker.api.answers import Gone, Late, answered, document_in, ended, hands_off, late, refused
from worker.api.schemas import job_schema
from worker.desk import Desk
from worker.desk.inquiry import Inquiry
from worker.desk.states import State
from worker.errors import InvalidJob, WorkerError
from worker.job import ID, usable_id
from worker.result import Result
from worker.web import problems
from worker.web.problems import NOBODY

ASYNC = "respond-async"
JobId = Annotated[str, Path(pattern=f"^{ID}$", description="As the answer to the request tells it")]
Key = Annotated[
    str | None,
    Header(max_length=255, description="Asked again with the same key and document, the same job answers"),
]

EXAMPLES: dict[str, dict[str, Any]] = {
    "params": {
        "summary": "The same on every engine",
        "value": {"params": {"prompt": "a lighthouse at dusk", "width": 512, "height": 512, "steps": 20}},
    },
    "webhook": {
        "summary": "Asynchronous: the webhook tells how it ended",
        "value": {
            "id": "lighthouse-1",
            "params": {"prompt": "a lighthouse at dusk", "seed": 7},
            "output": {"format": "webp"},
            "webhook": {"url": "https://example.com/hook", "events": ["succeeded", "failed"]},
        },
    },
}
_TAKES: dict[str, Any] = {
    "parameters": [
        {
            "name": "Prefer",
            "in": "header",
            "schema": {"type": "string"},
            "description": "`respond-async`: answered 202 at once",
            "example": ASYNC,
        }
    ],
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": job_schema(), "examples": EXAMPLES}},
    },
}
_ACCEPTED: dict[str, Any] = {
    "model": State,
    "description": "It will be done; ask for it under `Location`",
    "headers": {
        "Location": {"schema": {"type": "string"}, "description": "Where its state is"},
        "Preference-Applied": {"schema": {"type": "string"}, "description": "`respond-async`, where that was asked"},
    },
}


def routes(desk: Desk) -> APIRouter:
    router = APIRouter(prefix="/v1/jobs", tags=["jobs"])
    _taking(router, desk)
    _asking(router, Inquiry(desk))
    return router


def _taking(router: APIRouter, desk: Desk) -> None:
    @router.post(
        "",
        summary="Have a job done",
        response_model=Result,
        openapi_extra=_TAKES,
        responses={
            200: {"description": "It succeeded"},
            202: _ACCEPTED,
            **problems.answers(
                _408="It took too long, or came too late",
                _409="It was cancelled, its key or id stands for another document, or nobody could learn how it ends",
                _413="The body is too large",
                _422="The job can never succeed as it is",
                _429="Too many jobs wait",
                _500="A fault of the worker",
                _503="It may succeed later, or elsewhere",
                _504="It takes longer than an answer may, and goes on",
            ),
        },
    )
    async def post(request: Request, idempotency_key: Key = None) -> Response:
        """The answer is the result document, unless the job names a webhook or the caller prefers `respond-async`: then
        it is 202 with the job's id at once."""
        try:
            document = await document_in(request, max_body=desk.rules.limits.max_body)
        except WorkerError as error:
            return refused(error)
        answer = done(request, desk, document, key=idempotency_key)
        del document
        return await answer


def _asking(router: APIRouter, inquiry: Inquiry) -> None:
    unknown = {"_404": "No such job is known here", "_503": "The queue or the store does not answer"}

    @router.get(
        "/{id}",
        summary="How far a job is, or how it ended",
        response_model=State,
        response_model_exclude_none=True,
        responses=problems.answers(**unknown),
    )
    async def get(id: JobId) -> Response:
        try:
            return await _told(await inquiry.state(id))
        except WorkerError as error:
            return refused(error)

    @router.delete(
        "/{id}",
        summary="Cancel a job that waits or runs",
        response_model=State,
        responses={
            200: {"description": "It is cancelled"},
            202: {"model": State, "description": "It is being cancelled"},
            **problems.answers(**unknown, _409="It has ended already"),
        },
    )
    async def delete(id: JobId) -> Response:
        try:
            state = await inquiry.cancel(id)
        except WorkerError as error:
            return refused(error)
        return await _told(state, status=200 if state.is_over else 202)

    @router.get(
        "/{id}/events",
        summary="Follow a job",
        response_class=StreamingResponse,
        responses={
            200: {
                "description": "`state`, `progress` and at last `end`, each with the job's state as its data",
                "content": {sse.MEDIA_TYPE: {"schema": {"type": "string"}}},
            },
            **problems.answers(**unknown),
        },
    )
    async def follow(id: JobId) -> Response:
        try:
            states = inquiry.follow(id, await inquiry.state(id))
        except WorkerError as error:
            return refused(error)
        return StreamingResponse(sse.events(states), media_type=sse.MEDIA_TYPE, headers=sse.HEADERS)


async def done(request: Request, desk: Desk, document: Mapping[str, Any], *, key: str | None = None) -> Response:
    """Have the job of a document done: its result, or 202 where the request or the job wants no waiting.

    The document, which may be large, is let go of before the job is waited for.
    """
    try:
        _checked(document)
        preferred = prefers_async(request.headers.getlist("prefer"))
        document = document if preferred else await desk.followed(document)
        if preferred or hands_off(request, document.get("webhook") is not None):
            return accepted(request, await desk.accept(document, key=key), preferred=preferred)
        ticket = await desk.take(document, waits=True, key=key)
        del document
        result = (await ended(request, desk, ticket)).result
    except WorkerError as error:
        return refused(error)
    except Late:
        return late(ticket)
    except Gone:
        return NOBODY
    return await answered(result)


def prefers_async(headers: Iterable[str]) -> bool:
    """Whether ``Prefer`` (RFC 7240) asks for an answer at once; preferences may have values and parameters."""
    names = (one.split(";")[0].split("=")[0].strip().lower() for header in headers for one in header.split(","))
    return ASYNC in names


def accepted(request: Request, state: State, *, preferred: bool) -> Response:
    """202: the job has come in."""
    headers = {"location": f"{request.scope.get('root_path', '')}/v1/jobs/{state.id}"}
    headers |= {"preference-applied": ASYNC, "vary": "prefer"} if preferred else {}
    return Response(state.to_json(), 202, headers, media_type="application/json")


async def _told(state: State, *, status: int = 200) -> Response:
    body = await asyncio.to_thread(state.to_json) if state.is_large else state.to_json()
    return Response(body, status, media_type="application/json")


def _checked(document: Mapping[str, Any]) -> None:
    """Raise `InvalidJob` for an id that can be none."""
    if document.get("id") is not None and usable_id(document["id"]) is None:
        raise InvalidJob(f"must be a text like {ID}", field="id")
