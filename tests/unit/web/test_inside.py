"""Asking an application from within, without a socket."""

from __future__ import annotations

import asyncio
import json

from fastapi import FastAPI, Request
from structlog.testing import capture_logs

from worker.web import problems
from worker.web.inside import Answer, ask, is_patient


def application() -> FastAPI:
    app = FastAPI()
    problems.install(app, lambda: None)

    @app.post("/echo")
    async def echo(request: Request) -> dict[str, object]:
        body, query = (await request.body()).decode(), dict(request.query_params)
        told = request.headers["x-told"]
        return {"body": body, "query": query, "told": told, "patient": is_patient(request.scope)}

    @app.post("/breaks")
    async def breaks() -> None:
        raise ZeroDivisionError

    @app.post("/waits")
    async def waits(request: Request) -> str:
        await request.body()
        return str((await request.receive())["type"])

    return app


async def asked(path: str, left: asyncio.Event | None = None) -> Answer:
    return await ask(application(), path, b"abc", {"X-Told": "\xe4"}, left or asyncio.Event())


async def test_a_request_and_its_answer() -> None:
    """Path, query, headers and body arrive, status, headers and body come back; the caller is a patient one."""
    answer = await asked("/echo?a=1")
    assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
    assert json.loads(answer.body) == {"body": "abc", "query": {"a": "1"}, "told": "\xe4", "patient": True}
    assert (await asked("echo")).status == 200
    assert not is_patient({})


async def test_what_is_not_served() -> None:
    """A problem, as over HTTP."""
    answer = await asked("/no/such")
    assert (answer.status, answer.headers["content-type"]) == (404, problems.MEDIA_TYPE)


async def test_an_application_that_breaks() -> None:
    """A 500 whose traceback is in the log, and nothing is raised."""
    with capture_logs() as events:
        answer = await asked("/breaks")
    assert (answer.status, b'"internal"' in answer.body) == (500, True)
    assert [one["event"] for one in events] == ["endpoint_broke"]


async def test_a_caller_who_has_left() -> None:
    """The application hears of it as of a connection that is gone."""
    left = asyncio.Event()
    left.set()
    assert (await asked("/waits", left)).body == b'"http.disconnect"'
