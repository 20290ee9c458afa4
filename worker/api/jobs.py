"""`/v1/jobs`: a job document in, and its result out."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Header, Request, Response

from worker.api.answers import Gone, Late, document_in, ended, failed, late, refused
from worker.desk import Desk
from worker.errors import WorkerError
from worker.result import Result
from worker.web.problems import Problem

_IN_THREAD = 1_000_000
_NOBODY = Response(status_code=499)
"""What a caller who went away is not told."""

_JOB_SCHEMA: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {"type": "object"},
                "example": {"params": {"prompt": "a lighthouse at dusk", "width": 512, "height": 512, "steps": 20}},
            }
        },
    }
}


def _problems(**meanings: str) -> dict[int | str, dict[str, Any]]:
    return {int(code[1:]): {"model": Problem, "description": said} for code, said in meanings.items()}


def routes(desk: Desk) -> APIRouter:
    router = APIRouter(prefix="/v1/jobs", tags=["jobs"])

    @router.post(
        "",
        summary="Have a job done",
        response_model=Result,
        openapi_extra=_JOB_SCHEMA,
        responses={
            200: {"description": "It succeeded"},
            **_problems(
                _408="It took too long, or came too late",
                _409="It was cancelled, or its key stands for another document",
                _413="The body is too large",
                _422="The job can never succeed as it is",
                _429="Too many jobs wait",
                _500="A fault of the worker",
                _503="It may succeed later, or elsewhere",
                _504="It takes longer than an answer may, and goes on",
            ),
        },
    )
    async def post(request: Request, idempotency_key: Annotated[str | None, Header(max_length=255)] = None) -> Response:
        try:
            document = await document_in(request, max_body=desk.rules.limits.max_body)
            ticket = await desk.take(document, waits=True, key=idempotency_key)
            result = (await ended(request, desk, ticket)).result
        except WorkerError as error:
            return refused(error)
        except Late:
            return late(ticket)
        except Gone:
            return _NOBODY
        return await answered(result)

    return router


async def answered(result: Result) -> Response:
    """The result document, or the problem that it is."""
    if result.status != "succeeded":
        return failed(result)
    large = sum(len(output.base64 or "") for output in result.outputs) > _IN_THREAD
    body = await asyncio.to_thread(result.to_json) if large else result.to_json()
    return Response(body, media_type="application/json")
