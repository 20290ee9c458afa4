"""The page, the status that feeds it, and looks at pictures in the making."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from tests.support.pictures import encoded, picture
from worker.api.app import View, create_app
from worker.api.page import POLICY
from worker.api.previews import BYTES_MOST
from worker.errors import EngineCrashed
from worker.live import Hop, Live, Preview
from worker.metrics import Metrics
from worker.node import Identity
from worker.settings.http import HttpSettings
from worker.stages import StageClock
from worker.status import Status

PAGE_MOST = 25_000


@pytest.fixture
def view() -> View:
    return View(Status(), Live(), Metrics(), Identity("node-1", "machine-1", "0.1.0"))


@pytest.fixture
async def client(view: View) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(create_app(view, HttpSettings()))
    async with httpx.AsyncClient(transport=transport, base_url="http://worker") as found:
        yield found


async def test_the_page_loads_nothing_from_elsewhere(client: httpx.AsyncClient) -> None:
    """One small document without a link to another host, whose policy lets its own script and style run alone."""
    response = await client.get("/")
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert len(response.content) < PAGE_MOST
    assert re.findall(r"(?:https?:)?//[a-z]", response.text.replace("http://www.w3.org/2000/svg", "")) == []
    assert response.headers["content-security-policy"] == POLICY
    assert "unsafe" not in POLICY
    assert "default-src 'none'" in POLICY


async def test_neither_does_the_documentation(client: httpx.AsyncClient) -> None:
    """Its policy, too, knows its one script and style by their hashes, as browsers compute them."""
    response = await client.get("/docs")
    assert re.findall(r"(?:https?:)?//[a-z]", response.text) == []
    policy = response.headers["content-security-policy"]
    for tag in ("script", "style"):
        [text] = re.findall(rf"<{tag}>(.*?)</{tag}>", response.text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy


@pytest.mark.parametrize("path", ["/", "/docs"])
async def test_nothing_is_shown_as_markup(client: httpx.AsyncClient, path: str) -> None:
    """Names of jobs come from callers."""
    text = (await client.get(path)).text
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|style=\"", text)


async def test_the_last_jobs_are_told_with_their_hops(view: View, client: httpx.AsyncClient) -> None:
    """Of each how it ended, and when each hop began and ended, in seconds before now; held ones show theirs so far."""
    with view.live.holding("over") as job:
        with StageClock(job, view.metrics).hop(Hop.GENERATE):
            pass
        job.ended("failed", "output_flat")
    view.metrics.settled("failed", "output_flat")
    with view.live.holding("held") as job:
        with StageClock(job, view.metrics).hop(Hop.MODELS):
            pass
        found = (await client.get("/v1/status")).json()
    [past], [held] = found["recent"], found["jobs"]
    [span] = past.pop("spans")
    assert span["hop"] == "generate"
    assert span["began_s"] >= span["ended_s"] >= past.pop("ended_s") >= 0
    assert past == {"id": "over", "outcome": "failed", "code": "output_flat"}
    assert [one["hop"] for one in held["spans"]] == ["models"]
    assert found["outcomes"] == {"failed": {"output_flat": 1}}


async def shown(view: View, client: httpx.AsyncClient, look: Preview | None, job_id: str = "job-1") -> httpx.Response:
    """What a caller is told who asks for a look at a job that offers this one."""
    with view.live.holding("job-1") as job:
        job.enter(Hop.GENERATE)
        job.report(0.5, None, look)
        return await client.get(f"/v1/jobs/{job_id}/preview")


@pytest.mark.parametrize("kind", ["jpeg", "png", "webp"])
async def test_a_picture_in_the_making_is_shown(view: View, client: httpx.AsyncClient, kind: str) -> None:
    """As what its bytes are, and never kept by anybody."""
    made = encoded(picture(8, 8), kind.upper())

    async def look() -> bytes:
        return made

    response = await shown(view, client, look)
    assert (response.status_code, response.headers["content-type"]) == (200, f"image/{kind}")
    assert response.content == made
    assert response.headers["cache-control"] == "no-store"
    assert response.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("given", [None, b"", b"<svg onload='alert(1)'/>", b"\xff\xd8\xff" + bytes(BYTES_MOST)])
async def test_what_is_no_picture_is_not_shown(view: View, client: httpx.AsyncClient, given: bytes | None) -> None:
    """Nothing yet, markup, or more than a look may have: there is none."""

    async def look() -> bytes | None:
        return given

    response = await shown(view, client, look)
    assert (response.status_code, response.json()["code"]) == (404, "not_found")


async def test_a_server_that_does_not_answer_shows_nothing(view: View, client: httpx.AsyncClient) -> None:
    """That is no fault of the worker's."""

    async def look() -> bytes:
        raise EngineCrashed("gone")

    assert (await shown(view, client, look)).status_code == 404


async def test_there_is_a_look_only_while_a_job_generates(view: View, client: httpx.AsyncClient) -> None:
    """Not of another job, not where the server shows none, and not once the hop is over."""

    async def look() -> bytes:
        return encoded(picture(8, 8))

    assert (await shown(view, client, look, "job-2")).status_code == 404
    assert (await shown(view, client, None)).status_code == 404
    with view.live.holding("job-1") as job:
        job.report(0.5, None, look)
        status: dict[str, Any] = (await client.get("/v1/status")).json()
        assert status["jobs"][0]["preview"] is True
        job.enter(Hop.IMAGES)
        assert (await client.get("/v1/jobs/job-1/preview")).status_code == 404
