"""`POST /prompt` and `POST /interrupt`: a prompt in comfyui-api's language, answered as it answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field, ValidationError

from worker.api.answers import Gone, Late, document_in, ended, failed, late, refused
from worker.api.comfyui import models
from worker.api.comfyui.answer import answered, in_their_words, outputs
from worker.api.comfyui.notifier import PromptNotifier
from worker.api.comfyui.request import HttpUpload, Malformed, PromptRequest, Unsaved, echo, read
from worker.api.comfyui.store import PromptStore, Uploads
from worker.api.examples import STANDARD
from worker.api.models import Shown
from worker.api.native import Native
from worker.desk import Desk, Ended
from worker.errors import DownloadFailed, InvalidJob, UrlForbidden, WorkerError
from worker.job import field_errors
from worker.made import Made
from worker.tasks import LARGE, aside
from worker.urls import Guard
from worker.web.problems import NOBODY, Problem, problem
from worker.webhooks import Sender

NAME = "comfyui"


@dataclass(frozen=True, slots=True)
class Means:
    """How prompts reach out: ``guard`` is before every URL that a request names."""

    guard: Guard
    sender: Sender
    uploads: Uploads


class Execution(BaseModel):
    """Milliseconds of the server's clock."""

    start: int
    end: int
    duration: int


class NodeStart(BaseModel):
    start: int


class ExecutionStats(Execution):
    total: Execution
    nodes: dict[str, NodeStart]


class Stats(BaseModel):
    """Milliseconds."""

    comfy_execution: ExecutionStats
    preprocess_time: int
    comfy_round_trip_time: int
    postprocess_time: int
    upload_time: int
    total_time: int


class PromptAnswer(BaseModel):
    """The request without its credentials, and what was made: ``images`` are base64, or URLs where it was uploaded."""

    id: str
    prompt: dict[str, Any]
    status: str | None = Field(None, description="`ok` where the end is told by webhook, or nobody waits for it")
    images: list[str] | None = None
    filenames: list[str] | None = None
    stats: Stats | None = None
    warnings: list[str] | None = None


class Interrupt(BaseModel):
    id: str = Field(min_length=1, max_length=200)


class InterruptAnswer(BaseModel):
    id: str
    interrupted: str


_EXAMPLE = {
    "prompt": STANDARD,
    "convert_output": {"format": "jpeg", "options": {"quality": 80, "progressive": True}},
}


_TOLD = """A webhook, or an upload whose `async` is not false, is answered 202 at once; anything else when it is done.
Problems have comfyui-api's `error` and `location` beside their own members."""


def _described(model: type[BaseModel], example: Mapping[str, Any]) -> dict[str, Any]:
    schema = models.inlined(model.model_json_schema())
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema, "example": example}}}}


def _problems(**meanings: str) -> dict[int | str, dict[str, Any]]:
    return {int(code[1:]): {"model": Problem, "description": said} for code, said in meanings.items()}


def routes(native: Native, means: Means, shown: Shown | None) -> APIRouter:
    router = APIRouter(tags=["comfyui"], dependencies=[Depends(native.speaks(NAME))])
    prompts = Prompts(native.desk, means)

    @router.post(
        "/prompt",
        summary="Have a graph run, as comfyui-api does",
        description=_TOLD,
        response_model=PromptAnswer,
        openapi_extra=_described(PromptRequest, _EXAMPLE),
        responses={
            200: {"description": "What was made"},
            202: {"model": PromptAnswer, "description": "It was taken: the webhook, or the place of the upload, tells"},
            **_problems(
                _400="The request is not of comfyui-api's form, or its graph saves nothing",
                _404="The server here is no ComfyUI",
                _408="It took too long",
                _409="It was interrupted",
                _413="The body is too large",
                _422="The prompt can never succeed as it is",
                _429="Too many prompts wait",
                _500="A fault of the worker",
                _503="It may succeed later, or elsewhere",
                _504="It takes longer than an answer may, and goes on",
            ),
        },
    )
    async def prompt(request: Request) -> Response:
        return await prompts.answered(request)

    @router.post(
        "/interrupt",
        summary="Cancel the prompts of an id, waiting or running",
        response_model=InterruptAnswer,
        openapi_extra=_described(Interrupt, {"id": "123e4567-e89b-12d3-a456-426614174000"}),
        responses=_problems(_400="The request names no id", _404="No prompt of this id waits or runs"),
    )
    async def interrupt(request: Request) -> Response:
        return await interrupted(request, native.desk)

    router.include_router(models.routes(native, shown))
    return router


class Prompts:
    """Takes prompts in and answers them."""

    def __init__(self, desk: Desk, means: Means) -> None:
        self._desk = desk
        self._means = means

    async def answered(self, request: Request) -> Response:
        """What the caller is answered, be it a problem."""
        try:
            document = await document_in(request, max_body=self._desk.rules.limits.max_body)
            asked = await aside(_size(request), lambda: read(document))
            return await self._done(request, asked, echo(asked, document))
        except (Malformed, Unsaved) as error:
            return in_their_words(refused(error), 400)
        except WorkerError as error:
            return in_their_words(refused(error))

    async def _done(self, request: Request, asked: PromptRequest, told: Mapping[str, Any]) -> Response:
        await self._check_urls(asked)
        desk = self._desk
        upload, named = asked.upload, asked.webhook is not None or asked.webhook_v2 is not None
        ticket = await desk.take(
            asked.document,
            waits=asked.waits,
            native=True,
            store=None if upload is None else PromptStore(asked, upload, self._means.uploads, self._made),
            notifier=PromptNotifier(asked, told, self._means.sender, self._made) if named else None,
            credentials=asked.credentials,
        )
        if not asked.waits:
            return await answered({**told, "status": "ok"}, status=202, size=_size(request))
        try:
            return await self._ended(request, await ended(request, desk, ticket), asked, told)
        except Late:
            return in_their_words(late(ticket))
        except Gone:
            return NOBODY

    async def _ended(self, request: Request, end: Ended, asked: PromptRequest, told: Mapping[str, Any]) -> Response:
        if end.result.status != "succeeded" or end.made is None:
            return in_their_words(failed(end.result))
        content = {**told, **await outputs(asked, end.result, end.made)}
        return await answered(content, size=end.made.size + _size(request))

    async def _check_urls(self, asked: PromptRequest) -> None:
        """Refuse, before anything is done for it, a URL that may not be visited.

        Raises `InvalidJob` naming it. A host that cannot be resolved now may be there later.
        """
        named = {"webhook": asked.webhook, "webhook_v2": asked.webhook_v2}
        if isinstance(asked.upload, HttpUpload):
            named["http_upload.url_prefix"] = asked.upload.url_prefix
        for field, url in named.items():
            try:
                if url is not None:
                    await self._means.guard.check(url)
            except UrlForbidden as error:
                raise InvalidJob(error.message, field=field) from None
            except DownloadFailed:
                continue

    def _made(self, job_id: str) -> Made | None:
        held = self._desk.held(job_id)
        made = None if held is None else held.made
        return made if isinstance(made, Made) else None


async def interrupted(request: Request, desk: Desk) -> Response:
    """Cancel all that the caller calls so; an id of ours does too."""
    try:
        document = await document_in(request, max_body=desk.rules.limits.max_body)
        asked = Interrupt.model_validate(document)
    except ValidationError as error:
        return in_their_words(refused(InvalidJob(errors=field_errors(error))), 400)
    except WorkerError as error:
        return in_their_words(refused(error), 400)
    known = [ticket.id for ticket in desk.tickets.called(asked.id)] or [asked.id]
    found = [await desk.cancel(job_id) for job_id in known]
    if any(found):
        return JSONResponse({"id": asked.id, "interrupted": "success"})
    said = {"id": asked.id, "interrupted": "failed", "error": "no prompt of this id waits or runs", "location": "id"}
    return problem(404, "no prompt of this id waits or runs", code="unknown_here", more=said)


def _size(request: Request) -> int:
    """About how long an answer is that repeats the request."""
    length = request.headers.get("content-length", "")
    return int(length) if length.isdecimal() else LARGE + 1
