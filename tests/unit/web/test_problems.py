"""Mistakes in a request are told field by field."""

from __future__ import annotations

import asyncio

import httpx
from fastapi import FastAPI, Request

from tests.support.serving import serving
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


async def test_who_goes_away_in_the_middle_of_his_body_is_no_bug() -> None:
    """Nobody is there to be answered, and nothing of ours failed."""
    app, bugs, left = FastAPI(), [], asyncio.Event()
    problems.install(app, lambda: bugs.append("bug"))

    @app.post("/")
    async def index(request: Request) -> None:
        try:
            await request.body()
        finally:
            left.set()

    async with serving(app) as service:
        _, writer = await asyncio.open_connection("::1", service.port)
        writer.write(b"POST / HTTP/1.1\r\nhost: worker\r\ncontent-length: 9\r\n\r\nhalf")
        await writer.drain()
        writer.close()
        await asyncio.wait_for(left.wait(), 10)
        async with httpx.AsyncClient(trust_env=False) as client:
            assert (await client.get(service.url())).status_code == 405
    assert bugs == []
