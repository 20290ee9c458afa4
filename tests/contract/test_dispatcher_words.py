"""Texts that a database cannot hold: told to whoever sent them, and nobody else hears of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from dispatcher.metrics import BUGS
from tests.support.databases import KINDS, given_database
from tests.support.dispatching import MODEL, Talk, a_job, a_node, a_result, dispatching


@pytest.fixture(name="talk", params=KINDS)
async def open_talk(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Talk]:
    """Over both databases, which differ in this."""
    async with dispatching(given_database(request.param, tmp_path).url) as talk:
        yield talk
        assert talk.view.metrics.value(BUGS) == 0


async def test_what_a_node_says_with_a_nul_is_refused(talk: Talk) -> None:
    """With the field, and the service goes on: others in the same batch are served."""
    await talk.submit(a_job("j1"))
    given = await talk.given()
    told = {
        "node.id": await talk.node("/availability", a_node(id="n\0", loaded=(MODEL,))),
        "running.0.id": await talk.node("/heartbeat", {"node": {"id": "n1"}, "running": [{"id": "j\0", "token": 1}]}),
        "running.0.hop": await talk.node("/heartbeat", {"node": {"id": "n1"}, "running": [{"id": "j", "hop": "\0"}]}),
        "reason": await talk.release(given, "drain\0"),
        "worker": await talk.release(given, worker="w\0"),
        "result.error.code": await talk.end(
            given, "failed", error={"code": "\0", "message": "", "retryable": False, "fault": "job"}
        ),
    }
    assert {field: answer.status_code for field, answer in told.items()} == dict.fromkeys(told, 422)
    assert [answer.json()["errors"][0]["field"] for answer in told.values()] == list(told)
    assert (await talk.end(given)).status_code == 204


async def test_an_id_with_a_nul_is_nobodys(talk: Talk) -> None:
    """As any other that is not known."""
    await talk.submit(a_job("j1"))
    answers = [
        await talk.client.get("/jobs/j%00"),
        await talk.client.delete("/jobs/j%00"),
        await talk.client.post("/jobs/j%00/requeue"),
        await talk.client.get("/jobs/j%00/explain"),
        await talk.node("/jobs/j%00/release", {"token": 1, "reason": "draining"}),
        await talk.node("/jobs/j%00/result", {"token": 1, "result": a_result("j\0")}),
    ]
    assert [answer.status_code for answer in answers] == [404] * 6
    listed = (await talk.client.get("/jobs?after=j%00")).json()["jobs"]
    assert [job["id"] for job in listed] == ["j1"]
