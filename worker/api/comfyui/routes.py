"""`POST /prompt` and `POST /interrupt`: a prompt in comfyui-api's language, answered as it answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field, ValidationError

from worker.api.answers import document_in, refused
from worker.api.comfyui import models
from worker.api.comfyui.answer import in_their_words
from worker.api.comfyui.prompts import Prompts
from worker.api.comfyui.request import PromptRequest, Wishes
from worker.api.examples import STANDARD
from worker.api.models import Shown
from worker.api.native import Native
from worker.api.schemas import inlined
from worker.desk import Desk
from worker.errors import InvalidJob, WorkerError
from worker.job import field_errors
from worker.web import problems
from worker.web.problems import problem

NAME = "comfyui"


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
    schema = inlined(model.model_json_schema())
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema, "example": example}}}}


def described(document: dict[str, Any]) -> dict[str, Any]:
    """The OpenAPI document, changed into that of a worker whose workflows speak comfyui-api's language."""
    schema = inlined(Wishes.model_json_schema())
    answer = {
        "allOf": [
            {"$ref": f"#/components/schemas/{PromptAnswer.__name__}"},
            {"type": "object", "properties": {"input": {"type": "object"}}},
        ]
    }
    for path, item in document["paths"].items():
        if not path.startswith("/workflow/"):
            continue
        post = item["post"]
        asked = post["requestBody"]["content"]["application/json"]["schema"]
        del asked["additionalProperties"], asked["patternProperties"]
        asked["properties"] = {"input": asked["properties"]["input"], **schema["properties"]}
        post["parameters"] = [one for one in post["parameters"] if one["in"] == "path"]
        for status in ("200", "202"):
            post["responses"][status]["content"] = {"application/json": {"schema": answer}}
        post["responses"]["400"] = {**post["responses"]["422"], "description": "The request or the input is wrong"}
    return document


def routes(native: Native, prompts: Prompts, shown: Shown | None) -> APIRouter:
    router = APIRouter(tags=["comfyui"], dependencies=[Depends(native.speaks(NAME))])

    @router.post(
        "/prompt",
        summary="Have a graph run, as comfyui-api does",
        description=_TOLD,
        response_model=PromptAnswer,
        openapi_extra=_described(PromptRequest, _EXAMPLE),
        responses={
            200: {"description": "What was made"},
            202: {"model": PromptAnswer, "description": "It was taken: the webhook, or the place of the upload, tells"},
            **problems.answers(
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
        responses=problems.answers(_400="The request names no id", _404="No prompt of this id waits or runs"),
    )
    async def interrupt(request: Request) -> Response:
        return await interrupted(request, native.desk)

    router.include_router(models.routes(native, shown))
    return router


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
