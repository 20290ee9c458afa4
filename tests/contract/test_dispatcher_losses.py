"""What a node says of the run before its present one: its jobs come back at once, and a killer of nodes is found."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from dispatcher.metrics import RELEASED
from tests.support.dispatching import MODEL, Talk, dispatching


@pytest.fixture(name="talk")
async def open_talk(tmp_path: Path) -> AsyncIterator[Talk]:
    async with dispatching(tmp_path, MAX_ATTEMPTS="1") as talk:
        yield talk


def previous(*jobs: dict[str, Any], ended: str = "out_of_memory", run: str = "r1", **more: Any) -> dict[str, Any]:
    return {"previous": {"ended": ended, "run": run, "at": "2026-01-01T00:00:00.000Z", "jobs": list(jobs), **more}}


def then(given: dict[str, Any], hop: str = "generate") -> dict[str, Any]:
    return {"id": given["id"], "token": given["token"], "hop": hop, "hop_s": 3.5}


async def ends(talk: Talk, job_id: str = "j1") -> list[tuple[str, str | None, bool]]:
    return [(one["worker"], one["code"], one["charged"]) for one in (await talk.job(job_id))["attempts"]]


async def test_a_node_that_comes_back_gives_its_jobs_back_with_its_first_words(talk: Talk) -> None:
    """The one at work may have killed it and rests; the other waited there, and the next node gets it."""
    first, second = await talk.given("j1"), await talk.given("j2")
    answer = await talk.ask(id="n1", loaded=(MODEL,), stats=previous(then(first), then(second, "waiting")))
    assert answer["generation"]["id"] == "j2"
    assert await ends(talk, "j1") == [("n1", "node_killed_oom", False)]
    assert await ends(talk, "j2") == [("n1", "node_restarted", False)]
    assert (await talk.job("j1"))["status"] == "delayed"
    assert talk.view.metrics.registry.get_sample_value(RELEASED, {"code": "node_killed_oom"}) == 1


async def test_the_second_node_that_a_job_takes_down_is_its_last(talk: Talk) -> None:
    """With one attempt allowed: the job is dead before it is handed to a third node."""
    given = await talk.given("j1")
    await talk.release(given, "engine_lost")
    again = (await talk.ask(id="n2", loaded=(MODEL,)))["generation"]
    await talk.beat(node="n2", stats=previous(then(again, "images"), ended="crashed", exit_code=70))
    assert await ends(talk) == [("n1", "engine_lost", False), ("n2", "node_crashed", True)]
    job = await talk.job("j1")
    assert (job["status"], job["code"]) == ("dead", "node_crashed")
    assert (job["result"]["error"]["fault"], job["result"]["error"]["retryable"]) == ("job", False)


async def test_a_node_that_vanished_is_no_word_against_its_job(talk: Talk) -> None:
    """Interruptions are nobody's fault; a server that had died is an engine fault like any other."""
    codes = {"killed": "node_restarted", "machine_restarted": "node_restarted", "server_died": "engine_lost"}
    for ended, code in codes.items():
        given = await talk.given(ended)
        await talk.beat(stats=previous(then(given), ended=ended, run=ended))
        assert await ends(talk, ended) == [("n1", code, False)]
        await talk.client.delete(f"/jobs/{ended}")


async def test_it_is_heard_once_and_again_after_the_next_end(talk: Talk) -> None:
    """Every heartbeat says it: the job that the node was given since then is not touched."""
    given = await talk.given("j1")
    told = previous(then(given), ended="killed")
    await talk.beat(stats=told)
    again = (await talk.ask(id="n1", loaded=(MODEL,), stats=told))["generation"]
    assert (await talk.beat(again, stats=told))["lost"] == []
    await talk.beat(stats=previous(then(again), ended="killed", run="r2"))
    assert [worker for worker, *_ in await ends(talk)] == ["n1", "n1"]


STRANGE: tuple[dict[str, Any], ...] = (
    {"previous": "killed"},
    {"previous": None},
    {"previous": {"run": "r1"}},
    {"previous": {"run": "r2", "ended": "killed", "jobs": [{"token": 1}]}},
    {"previous": {"run": "r3", "ended": "killed", "jobs": [{"id": "j1", "token": "1"}, {"id": "j1", "token": True}]}},
    {"previous": {"run": "r4\0", "ended": "killed\0"}},
    {"previous": {"run": ["r5"], "ended": "out_of_memory", "jobs": [{"id": "j1", "token": 10**30}]}},
)


async def test_what_cannot_be_understood_costs_no_lease(talk: Talk) -> None:
    """A renewal is worth more than a statistic."""
    given = await talk.given("j1")
    with structlog.testing.capture_logs() as logged:
        for told in STRANGE:
            assert (await talk.beat(given, stats=told))["lost"] == []
    assert (await talk.job("j1"))["status"] == "leased"
    assert [one["event"] for one in logged].count("previous_run_not_understood") == 4


async def test_a_node_speaks_for_itself_alone(talk: Talk) -> None:
    """Another's job is not its to lose."""
    given = await talk.given("j1")
    await talk.ask(id="n2")
    await talk.beat(node="n2", stats=previous(then(given)))
    assert (await talk.job("j1"))["status"] == "leased"
