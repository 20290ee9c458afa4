"""`/workflow/{name}`: the operator's own endpoints. Each takes an input, and answers as `/v1/jobs` does, unless the
server's callers are used to another language."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any

from fastapi import APIRouter, HTTPException, Request, Response

from worker.api.answers import document_in, refused
from worker.api.jobs import ASYNC, Key, done
from worker.api.schemas import job_schema
from worker.desk import Desk
from worker.desk.states import State
from worker.errors import FieldError, InvalidJob, WorkerError
from worker.result import Result
from worker.web import problems
from worker.workflows import Workflow, WorkflowBroken, Workflows

COMPONENTS = "#/components/schemas/"
SHOWN_MOST = 20
FIELDS = ("id", "webhook", "output", "models", "checkpoint", "metadata", "priority", "timeout", "deadline", "v")
"""What of the job document may stand beside the input."""

_ELSEWHERE: Mapping[str, str] = {
    "convert_output": "output.format and output.quality say it here",
    "webhook_v2": "webhook says it here",
    "s3": "output says where results go",
    "http_upload": "output.upload_urls says where results go",
    "azure_blob_upload": "output says where results go",
    "hf_upload": "output says where results go",
    "credentials": "is taken by /prompt alone",
}
"""What comfyui-api takes beside the input."""

_PROBLEMS = problems.answers(
    _408="It took too long, or came too late",
    _409="It was cancelled, or its key stands for another document",
    _413="The body is too large",
    _422="The input is wrong, or the job can never succeed as it is",
    _429="Too many jobs wait",
    _500="A fault of the worker",
    _503="It may succeed later, or elsewhere; or the workflow itself is broken",
    _504="It takes longer than an answer may, and goes on",
)

_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {"description": "It succeeded"},
    202: {"model": State, "description": "It will be done; ask for it under `Location`"},
    **_PROBLEMS,
}
_PREFER: dict[str, Any] = {
    "name": "Prefer",
    "in": "header",
    "schema": {"type": "string"},
    "description": "`respond-async`: answered 202 at once",
    "example": ASYNC,
}

Endpoint = Callable[..., Awaitable[Response]]
Language = Callable[[Request, str], Awaitable[Response]]
"""Answers a request to the workflow of a name."""


def routes(desk: Desk, workflows: Workflows, language: Callable[[], Language | None] = lambda: None) -> APIRouter:
    """``language``: another than our own, by what is known of the server when somebody asks."""
    router = APIRouter(prefix="/workflow", tags=["workflows"])
    for workflow in workflows:
        described = workflow.described
        router.add_api_route(
            f"/{described.name}",
            _endpoint(described.name, desk, workflows, language),
            methods=["POST"],
            operation_id=component_of(described.name),
            summary=described.summary,
            description=described.description,
            response_model=Result,
            openapi_extra=_request_of(workflow),
            responses=_ANSWERS,
        )

    @router.post("/{name:path}", include_in_schema=False)
    async def other(request: Request, name: str) -> Response:
        """One that is broken, or none at all."""
        try:
            workflows.find(name)
        except WorkflowBroken as error:
            spoken = language()
            return refused(error) if spoken is None else await spoken(request, name)
        except InvalidJob:
            pass
        names = [workflow.described.name for workflow in workflows][:SHOWN_MOST]
        raise HTTPException(404, f"no workflow of this name is here; there are: {', '.join(names) or 'none'}")

    return router


def _endpoint(name: str, desk: Desk, workflows: Workflows, language: Callable[[], Language | None]) -> Endpoint:
    async def post(request: Request, idempotency_key: Key = None) -> Response:
        spoken = language()
        if spoken is not None:
            return await spoken(request, name)
        try:
            document = job_of(name, await document_in(request, max_body=desk.rules.limits.max_body))
            await workflows.check(name, document["template"]["input"], field="input")
        except WorkerError as error:
            return refused(error)
        return await done(request, desk, document, key=idempotency_key)

    return post


def job_of(name: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """The job document that a request to a workflow stands for. Raises `InvalidJob`."""
    wrong = tuple(_unknown(body))
    if wrong:
        raise InvalidJob(errors=wrong)
    given = body.get("input", {})
    if not isinstance(given, dict):
        raise InvalidJob("must be an object", field="input")
    beside = {field: value for field, value in body.items() if field != "input"}
    return {**beside, "template": {"name": name, "input": given}}


def _unknown(body: Mapping[str, Any]) -> Iterator[FieldError]:
    for field in body:
        if field == "input" or field in FIELDS or field.startswith("x-"):
            continue
        hint = _ELSEWHERE.get(field, "the workflow's own fields stand in input" if "input" not in body else "")
        yield FieldError(field, f"unknown field{'; ' if hint else ''}{hint}")


def component_of(name: str) -> str:
    """Under which name an input's schema stands in the OpenAPI document: no two workflows share one."""
    return f"workflow.{name.replace('/', '..')}"


def _request_of(workflow: Workflow) -> dict[str, Any]:
    described, job = workflow.described, job_schema()["properties"]
    beside = {name: job[name] for name in FIELDS}
    schema = {
        "type": "object",
        "properties": {"input": {"$ref": COMPONENTS + component_of(described.name)}, **beside},
        "required": ["input"] if described.schema.get("required") else [],
        "patternProperties": {"^x-": {}},
        "additionalProperties": False,
    }
    content: dict[str, Any] = {"schema": schema}
    if described.example is not None:
        content["example"] = {"input": described.example}
    return {"parameters": [_PREFER], "requestBody": {"required": True, "content": {"application/json": content}}}


def described(document: dict[str, Any], workflows: Workflows) -> dict[str, Any]:
    """The OpenAPI document with the schemas of the workflows' inputs."""
    if not list(workflows):
        return document
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    for workflow in workflows:
        component = component_of(workflow.described.name)
        schema = {key: value for key, value in workflow.described.schema.items() if key not in ("$schema", "$id")}
        schemas[component] = _moved(schema, COMPONENTS + component)
    return document


def _moved(part: Any, root: str) -> Any:
    """A schema whose references within itself hold where it stands below ``root``."""
    if isinstance(part, list):
        return [_moved(item, root) for item in part]
    if not isinstance(part, dict):
        return part
    return {
        key: root + value[1:] if key in ("$ref", "$dynamicRef") and isinstance(value, str) else _moved(value, root)
        for key, value in part.items()
    }
