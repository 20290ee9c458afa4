"""What the endpoints in the image server's own language share."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pybase64
import pydantic_core
from fastapi import HTTPException, Request, Response
from fastapi.responses import JSONResponse

from worker.api.answers import Gone, Late, answered, ended, failed, hands_off, late, refused
from worker.api.relay import PROBLEM, Relay, Responses
from worker.desk import Desk, Ended
from worker.engines.base import Engine
from worker.errors import FieldError, InvalidJob, WorkerError
from worker.gate import Gate
from worker.live import Hop
from worker.result import Result
from worker.settings.groups import EngineKind
from worker.web.problems import NOBODY, problem

OURS = frozenset({"id", "checkpoint", "models", "output", "webhook", "timeout", "deadline", "priority", "metadata"})
"""Fields of the job document that may stand beside a server's own; no server has one of these names."""

RESPONSES: Responses = {
    200: {"description": "As the server answers", "content": {"application/json": {}}},
    202: {"description": "Its owner is told by webhook", "content": {"application/json": {}}},
    **{
        status: {"description": said, "content": PROBLEM}
        for status, said in {
            408: "It took too long, or came too late",
            409: "It was cancelled, or its key stands for another request",
            413: "The body is too large",
            422: "It can never succeed as it is",
            429: "Too many jobs wait",
            500: "A fault of the worker",
            503: "It may succeed later, or elsewhere",
            504: "It takes longer than an answer may, and goes on",
        }.items()
    },
}
"""What endpoints answer that have a job done."""

_IN_REQUEST = re.compile(r"\brequest\.(?=[a-z0-9_]+[.:])")


@dataclass(frozen=True, slots=True)
class Native:
    """The server behind the worker. ``kind`` is the configured one; which it is tells ``engine.name`` in the end.

    ``relay`` passes on what is no job.
    """

    desk: Desk
    engine: Engine
    gate: Gate
    kind: EngineKind
    relay: Relay

    def may_be(self, *names: str) -> bool:
        """Whether endpoints of such a server are worth having: it is one, or what it is is yet to be found out."""
        return self.kind == "auto" or self.kind in names

    def speaks(self, *names: str) -> Callable[[], Awaitable[None]]:
        """A dependency of routes: 404 where the server turned out to be another."""

        async def check() -> None:
            if self.engine.name not in names:
                raise HTTPException(404, f"the server here is {self.engine.name}, which has no such endpoint")

        return check

    async def stop_running(self) -> bool:
        """Cancel the HTTP job that generates now; jobs of a queue are not the callers' to stop. Whether there was one.

        Its own caller is told so: a picture that was cut short is none.
        """
        for ticket in self.desk.tickets:
            held = self.desk.held(ticket.id)
            if held is not None and held.hop is Hop.GENERATE:
                return await self.desk.cancel(ticket.id)
        return False


def document_of_request(body: Mapping[str, Any], endpoint: str) -> dict[str, Any]:
    """The job document of a native body, and of what stands of ours beside it."""
    native = {key: value for key, value in body.items() if key not in OURS}
    return {**{key: value for key, value in body.items() if key in OURS}, "request": native, "endpoint": endpoint}


async def done(
    request: Request, native: Native, document: Mapping[str, Any], *, made_here: bool = True
) -> Ended | Response:
    """How the job ended that succeeded, or what its caller is to be answered instead.

    ``made_here``: nothing is stored unless the document names a place, and `Ended.made` has what was made. The
    document, which may be large, is let go of before the job is waited for.
    """
    desk, key = native.desk, request.headers.get("idempotency-key")
    try:
        ticket = await desk.take(document, waits=True, native=made_here, key=key)
        del document
        end = await ended(request, desk, ticket)
    except WorkerError as error:
        return refused(as_the_caller_wrote(error))
    except Late:
        return late(ticket)
    except Gone:
        return NOBODY
    return end if end.result.status == "succeeded" else failed(told_to_the_caller(end.result))


async def accepted(request: Request, native: Native, document: Mapping[str, Any]) -> Response:
    """Take a job in whose owner is told by webhook: 202 with its id; for a queue, the result that he was told."""
    if not hands_off(request, True):
        end = await done(request, native, document, made_here=False)
        return end if isinstance(end, Response) else await answered(end.result)
    try:
        state = await native.desk.accept(document, key=request.headers.get("idempotency-key"))
    except WorkerError as error:
        return refused(as_the_caller_wrote(error))
    return JSONResponse(state.model_dump(mode="json", exclude_none=True), 202)


def as_the_caller_wrote(error: WorkerError) -> WorkerError:
    """The error with the fields by the names that the caller gave them."""
    if not isinstance(error, InvalidJob):
        return error
    return InvalidJob(errors=tuple(FieldError(_bare(one.field), one.message) for one in error.errors))


def told_to_the_caller(result: Result) -> Result:
    """The result with the fields in its error by the names that the caller gave them."""
    if result.error is None:
        return result
    error = result.error.model_copy(update={"message": _IN_REQUEST.sub("", result.error.message)})
    return result.model_copy(update={"error": error})


def _bare(field: str) -> str:
    return field.removeprefix("request.")


def lies_elsewhere(end: Ended) -> Response | None:
    """The problem that the images are stored and not at hand, as when another's request was joined by its key."""
    if end.made is not None or all(image.base64 for image in end.result.images):
        return None
    document = pydantic_core.from_json(end.result.to_json(base64=False))
    said = "the job has succeeded, but its images are not at hand: the result says where they lie"
    return problem(503, said, code="images_stored", more={"result": document})


def pictures(end: Ended) -> list[bytes]:
    """The images that were made, as base64, in their order; the empty text for one that lies elsewhere alone.

    To be called in a thread.
    """
    if end.made is None:
        return [(image.base64 or "").encode("ascii") for image in end.result.images]
    images = {image.index for image in end.result.images}
    return [pybase64.b64encode(artifact.data) for artifact in end.made.artifacts if artifact.index in images]
