"""The service's errors as problems."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ValidationError

from dispatcher.auth import CHALLENGE, Forbidden, KeysUnavailable, Unauthorized
from dispatcher.store.base import StoreUnavailable
from worker.errors import FieldError, IdConflict, InvalidJob, UnsupportedDocument, WorkerError
from worker.job import field_errors
from worker.web import problems
from worker.web.problems import Problem, problem

M = TypeVar("M", bound=BaseModel)


class Unreadable(WorkerError):
    """The body is not what this endpoint takes."""

    def __init__(self, *errors: FieldError) -> None:
        self.errors = errors
        super().__init__("; ".join(map(str, errors)))


class Missing(WorkerError):
    """There is no such thing here."""

    code = "not_found"


class Conflict(WorkerError):
    """It is not in a state in which that could be done."""


class LeaseOver(WorkerError):
    """Another holds the job, or it is over; nothing was changed."""

    code = "lease_lost"


STATUSES: Mapping[type[WorkerError], int] = {
    Unauthorized: 401,
    Forbidden: 403,
    Missing: 404,
    Conflict: 409,
    LeaseOver: 409,
    IdConflict: 409,
    InvalidJob: 422,
    Unreadable: 422,
    UnsupportedDocument: 422,
    KeysUnavailable: 503,
}
ABOUT: Mapping[int, str] = {
    401: "The token is missing or wrong",
    403: "This token is good for something else",
    404: "There is no such thing here",
    409: "Not in a state in which that could be done; nothing was changed",
    413: "The body is too large",
    422: "Something in the request is wrong; `errors` names it",
    503: "The database does not answer; ask again",
}


def answers(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """How the OpenAPI document describes these problems."""
    return {status: {"model": Problem, "description": ABOUT[status]} for status in statuses}


def install(app: FastAPI, on_bug: Callable[[], None]) -> None:
    """Have every error of the application answered as a problem."""
    problems.install(app, on_bug)

    @app.exception_handler(WorkerError)
    async def failed(_: Request, error: WorkerError) -> JSONResponse:
        return answer(error, on_bug)

    @app.exception_handler(StoreUnavailable)
    async def unavailable(_: Request, error: StoreUnavailable) -> JSONResponse:
        return answer(error, on_bug)


def answer(error: WorkerError | StoreUnavailable, on_bug: Callable[[], None]) -> JSONResponse:
    """The problem that an error is told as; ``on_bug`` hears of one that nobody foresaw."""
    if isinstance(error, StoreUnavailable):
        headers = {"retry-after": "1"}
        return problem(503, "the database does not answer", code="database_unavailable", headers=headers)
    status = next((status for kind, status in STATUSES.items() if isinstance(error, kind)), None)
    if status is None:
        on_bug()
        return problem(500, "the service failed; its log says how")
    headers = {"www-authenticate": CHALLENGE} if status == 401 else {}
    if error.retry_after is not None:
        headers["retry-after"] = str(int(error.retry_after.total_seconds()) or 1)
    return problem(status, error.message, code=error.code, errors=getattr(error, "errors", ()), headers=headers)


async def read(request: Request, kind: type[M]) -> M:
    """The body of the request; `Unreadable` names what is wrong with it."""
    try:
        return kind.model_validate_json(await request.body())
    except ValidationError as error:
        raise Unreadable(*field_errors(error)) from None


def taking(schema: dict[str, Any], example: Any = None) -> dict[str, Any]:
    """How the OpenAPI document describes a body that we read ourselves."""
    content = {"schema": schema} if example is None else {"schema": schema, "example": example}
    return {"requestBody": {"required": True, "content": {"application/json": content}}}
