"""Mistakes in a request are told field by field."""

from __future__ import annotations

import httpx
from fastapi import FastAPI

from worker.errors import FieldError
from worker.web import problems


async def test_a_request_that_does_not_fit_names_its_fields() -> None:
    """422 with the path of each wrong field, without its value."""
    app = FastAPI()
    problems.install(app, lambda: None)

    @app.get("/")
    async def index(limit: int, order: bool) -> None: ...

    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://worker") as client:
        response = await client.get("/", params={"limit": "secret"})
    assert response.status_code == 422
    assert response.headers["content-type"] == problems.MEDIA_TYPE
    found = response.json()
    assert found["code"] == "invalid_request"
    assert [error["field"] for error in found["errors"]] == ["query.limit", "query.order"]
    assert "secret" not in response.text


def test_a_problem_may_have_a_code_of_its_own() -> None:
    """A status has its code, another is given by name, errors and headers go along."""
    assert b'"code":"http_418"' in problems.problem(418, "short and stout").body
    given = problems.problem(409, "gone", code="no_shared_state", errors=[FieldError("id", "x")], headers={"a": "b"})
    assert b'"code":"no_shared_state"' in given.body
    assert b'"errors":[{"field":"id","message":"x"}]' in given.body
    assert given.headers["a"] == "b"
