"""Errors as `application/problem+json` (RFC 9457) with our ``code``, ``detail`` and ``errors``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from worker.errors import FieldError

MEDIA_TYPE = "application/problem+json"
CODES = {
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    413: "body_too_large",
    500: "internal",
}

NOBODY = Response(status_code=499)
"""What a caller who went away is not told."""


class FieldProblem(BaseModel):
    field: str
    message: str


class Problem(BaseModel):
    """``code`` is for programs, ``detail`` for people; ``errors`` names the fields that are wrong."""

    type: str = "about:blank"
    title: str
    status: int
    code: str
    detail: str
    errors: list[FieldProblem] = []


UNAUTHORIZED: dict[int | str, dict[str, Any]] = {
    401: {"model": Problem, "description": "The API key is missing or wrong"}
}


_RETRY = {"headers": {"Retry-After": {"schema": {"type": "integer"}, "description": "Seconds"}}}


def answers(**meanings: str) -> dict[int | str, dict[str, Any]]:
    """Problems as OpenAPI describes answers, by ``_404`` and so on; those that pass have a ``Retry-After``."""
    return {
        int(code[1:]): {"model": Problem, "description": said, **(_RETRY if code in ("_429", "_503") else {})}
        for code, said in meanings.items()
    }


def problem(
    status: int,
    detail: str,
    *,
    code: str | None = None,
    errors: Iterable[FieldError] = (),
    headers: Mapping[str, str] | None = None,
    more: Mapping[str, Any] | None = None,
) -> JSONResponse:
    """The answer that says what went wrong; a status has a code of its own unless one is given.

    ``more`` are members that this one problem has beside the common ones.
    """
    body = Problem(
        title=HTTPStatus(status).phrase,
        status=status,
        code=code or CODES.get(status, f"http_{status}"),
        detail=detail,
        errors=[FieldProblem(field=error.field, message=error.message) for error in errors],
    )
    content = {**body.model_dump(), **(more or {})}
    return JSONResponse(content, status, dict(headers or {}), media_type=MEDIA_TYPE)


def install(app: FastAPI, on_bug: Callable[[], None]) -> None:
    """Have every error of the application answered as a problem; one that nobody foresaw is told to ``on_bug``, and
    uvicorn logs its traceback. A caller who goes away in the middle of his body is no error."""

    @app.exception_handler(HTTPException)
    async def refused(_: Request, error: HTTPException) -> JSONResponse:
        return problem(error.status_code, str(error.detail), headers=error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        errors = [FieldError(".".join(map(str, item["loc"])), item["msg"]) for item in error.errors()]
        return problem(422, "; ".join(map(str, errors)), code="invalid_request", errors=errors)

    @app.exception_handler(ClientDisconnect)
    async def left(_: Request, __: ClientDisconnect) -> Response:
        return NOBODY

    @app.exception_handler(Exception)
    async def failed(_: Request, __: Exception) -> JSONResponse:
        on_bug()
        return problem(500, "the service failed; its log says how")


def described(document: dict[str, Any]) -> dict[str, Any]:
    """The OpenAPI document with the media type that problems really have, which FastAPI cannot be told."""
    answers = [
        response
        for path in document["paths"].values()
        for operation in path.values()
        for response in operation["responses"].values()
    ]
    for response in answers:
        content = response.get("content", {})
        if content.get("application/json", {}).get("schema", {}).get("$ref", "").endswith("/Problem"):
            content[MEDIA_TYPE] = content.pop("application/json")
    return document
