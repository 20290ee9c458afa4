"""The catalogue, what follows from it for jobs and nodes, and how the dispatcher explains itself."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from dispatcher.metrics import ASSIGNMENTS, BUGS, LOADS, SUBMITTED
from tests.support.dispatching import AS_NODE, MODEL, SPACE, Talk, a_job, dispatching
from tests.support.waiting import wait_until
from worker.wire import LEASED, Answer

DIGEST = "ab" * 32
ENTRY: dict[str, Any] = {
    "kind": "checkpoint",
    "name": MODEL,
    "url": "https://cdn.example/d8",
    "sha256": DIGEST,
    "size": 2_000_000_000,
}


@pytest.fixture(name="talk")
async def open_talk(tmp_path: Path) -> AsyncIterator[Talk]:
    async with dispatching(tmp_path) as talk:
        yield talk
        assert talk.view.metrics.value(BUGS) == 0


async def put(talk: Talk, *entries: dict[str, Any]) -> None:
    assert (await talk.client.put("/models", json=list(entries))).status_code == 204


async def test_the_catalogue_is_kept(talk: Talk) -> None:
    """Entries are added, replaced by kind and name, listed, and removed."""
    await put(talk, ENTRY, {"kind": "lora", "name": "a/b.safetensors", "base": "sdxl"})
    await put(talk, {**ENTRY, "url": "https://cdn.example/new"})
    listed = (await talk.client.get("/models")).json()["models"]
    assert {(one["kind"], one["name"], one.get("url")) for one in listed} == {
        ("checkpoint", MODEL, "https://cdn.example/new"),
        ("lora", "a/b.safetensors", None),
    }
    assert (await talk.client.delete("/models/lora/a/b.safetensors")).status_code == 204
    assert (await talk.client.delete("/models/lora/a/b.safetensors")).status_code == 404
    assert len((await talk.client.get("/models")).json()["models"]) == 1


async def test_wrong_entries_are_refused_by_field(talk: Talk) -> None:
    """Nothing of the list is taken then."""
    answer = await talk.client.put("/models", json=[ENTRY, {**ENTRY, "sha256": "no"}, {"kind": "lora", "name": "../x"}])
    assert (answer.status_code, answer.json()["code"]) == (422, "unreadable")
    assert [error["field"] for error in answer.json()["errors"]] == ["1.sha256", "2"]
    assert (await talk.client.get("/models")).json()["models"] == []


async def test_a_job_is_told_whence_its_model_is_to_be_had(talk: Talk) -> None:
    """Beside its document, which stays what its user sent."""
    await put(talk, ENTRY)
    own = {"kind": "checkpoint", "name": MODEL, "url": "https://mine.example/d8"}
    await talk.submit(a_job("bare"), a_job("own", models=[own]))
    first = (await talk.ask(loaded=(MODEL,)))["generation"]
    second = (await talk.ask(loaded=(MODEL,), id="n2"))["generation"]
    given = {one["id"]: one for one in (first, second)}
    assert given["bare"]["sources"] == [ENTRY]
    assert "models" not in given["bare"]
    assert given["own"]["models"] == [own]


async def test_a_users_document_names_no_source_of_the_operators(talk: Talk) -> None:
    """A job that brings ``sources`` is refused, and one without an entry goes out without any."""
    bad = a_job("bad", sources=[ENTRY])
    assert (await talk.client.post("/jobs", json=bad)).status_code == 422
    assert "sources" not in await talk.given()


async def test_an_entry_that_changes_counts_at_the_next_hand_over(talk: Talk) -> None:
    """The document is the very same, or its standing success would be of another; the sources are today's."""
    await put(talk, ENTRY)
    job = await talk.given()
    moved = {**ENTRY, "url": "https://elsewhere.example/d8", "sha256": "cd" * 32}
    await put(talk, moved)
    await talk.release(job)
    again = (await talk.ask(loaded=(MODEL,)))["generation"]
    assert again["sources"] == [moved]
    assert {k: v for k, v in again.items() if k not in LEASED} == {k: v for k, v in job.items() if k not in LEASED}


async def test_a_file_without_a_digest_is_known_by_its_name(talk: Talk) -> None:
    """A node that does not say the digest, as the published example, is warm for jobs that have it."""
    await put(talk, ENTRY)
    await talk.submit(a_job("j1"))
    await talk.ask(loaded=(MODEL,))
    assert talk.view.metrics.value(ASSIGNMENTS, why="warm") == 1
    assert talk.view.metrics.value(LOADS) == 0


async def test_models_in_demand_are_ordered_onto_nodes(talk: Talk) -> None:
    """A node is told to fetch what jobs wait for, at its next request and its next heartbeat, until it has it."""
    await put(talk, ENTRY)
    await talk.ask(free=SPACE)
    await talk.submit(*(a_job(f"j{i}") for i in range(3)))
    await wait_until(lambda: talk.view.fleet["n1"].due.download)
    beat = Answer.model_validate(await talk.beat())
    (order,) = beat.downloads
    assert (order.url, order.name, order.kind, order.sha256) == (ENTRY["url"], MODEL, "checkpoint", DIGEST)
    assert "download" not in await talk.beat()
    await wait_until(lambda: _is_stored(talk))
    answer = await talk.ask(models=[{**_held(), "tier": "disk"}])
    assert "download" not in answer


def _held() -> dict[str, Any]:
    return {"kind": "checkpoint", "name": MODEL, "sha256": DIGEST, "size": 2_000_000_000}


async def _is_stored(talk: Talk) -> bool:
    return any(row.orders.get("download") for row in await talk.view.store.nodes())


async def test_a_waiting_job_is_explained(talk: Talk) -> None:
    """Where it stands, what it would cost on each node, and in words why it waits."""
    await talk.submit(a_job("j1"), a_job("j2"))
    nobody = (await talk.client.get("/jobs/j1/explain")).json()
    assert nobody["why"] == "no node was heard of lately"
    assert (nobody["first_in_line"], nobody["nodes"]) == (True, [])
    await talk.ask(id="warm", loaded=(MODEL,))
    await talk.ask(id="cold", wait=0)
    told = (await talk.client.get("/jobs/j2/explain")).json()
    assert told["model"] == "checkpoint/dreamshaper_8"
    assert (told["nodes"][0]["node"], told["nodes"][0]["why"]) == ("warm", "warm")
    assert told["nodes"][0]["cost_s"] == 0
    assert "1 have its model in memory" in told["why"]


async def test_a_given_job_is_explained(talk: Talk) -> None:
    """Which node does it, why that one, and how it ended."""
    job = await talk.given()
    told = (await talk.client.get("/jobs/j1/explain")).json()
    assert told["why"].startswith("node n1 does it")
    assert (told["assigned"]["node"], told["assigned"]["why"]) == ("n1", "warm")
    await talk.client.delete("/jobs/j1")
    assert "cancelled" in (await talk.client.get("/jobs/j1/explain")).json()["why"]
    await talk.end(job)
    assert (await talk.client.get("/jobs/j1/explain")).json()["why"] == "it is over: succeeded"


async def test_a_node_is_explained(talk: Talk) -> None:
    """What it would get now, with everything that was weighed, and its skips in an empty answer."""
    await talk.ask(loaded=(MODEL,))
    await talk.submit(a_job("j1"), a_job("j2", "other.safetensors"))
    told = (await talk.client.get("/nodes/n1/explain")).json()
    assert (told["would_get"]["job"], told["would_get"]["why"]) == ("j1", "warm")
    assert {one["job"] for one in told["weighed"]} == {"j1", "j2"}
    assert told["loaded"] == ["checkpoint/dreamshaper_8"]
    await talk.client.delete("/jobs/j1")
    await talk.client.delete("/jobs/j2")
    assert (await talk.client.get("/nodes/n1/explain")).json()["would_get"] is None
    assert (await talk.client.get("/nodes/no/explain")).status_code == 404


async def test_a_job_that_nobody_could_do_holds_nobody_up(tmp_path: Path) -> None:
    """It stands first and waits on, while the one behind it comes up for being passed over."""
    async with dispatching(tmp_path, MAX_SKIPS="2") as talk:
        await put(talk, {**ENTRY, "name": "huge.safetensors", "size": 90_000_000_000})
        await talk.ask(loaded=(MODEL,), free=SPACE)
        await talk.submit(a_job("huge", "huge.safetensors"))
        await talk.submit(a_job("rare", "rare.safetensors"))
        await talk.submit(*(a_job(f"j{number}") for number in range(12)))
        given = [(await talk.given(free=SPACE))["id"] for _ in range(5)]
        assert "rare" in given
        assert given[0] != "rare"
        assert (await talk.job("huge"))["status"] == "waiting"
        assert "huge" in talk.view.desk.lookout.aside


async def test_an_empty_answer_says_what_was_passed_over(talk: Talk) -> None:
    """Jobs that this node did not get, counted by reason."""
    await put(talk, {**ENTRY, "name": "huge.safetensors", "size": 90_000_000_000})
    await talk.submit(a_job("j1", "huge.safetensors"))
    answer = await talk.ask(free=SPACE)
    assert answer["skipped"] == {"too_large": 1}


async def test_the_fleet_is_shown(talk: Talk) -> None:
    """Every node with what it has and does, and the models that jobs wait for, as they were counted last."""
    job = await talk.given(running=[], stats={"done": 3})
    await talk.submit(a_job("j2"))
    await talk.beat({**job, "progress": 0.5, "hop": "generate"})

    async def is_counted() -> bool:
        return [one["waiting"] for one in (await talk.client.get("/fleet")).json()["models"]] == [1]

    await wait_until(is_counted)
    fleet = (await talk.client.get("/fleet")).json()
    (node,) = fleet["nodes"]
    assert (node["id"], node["alive"], node["loaded"]) == ("n1", True, [f"checkpoint/{MODEL}"])
    assert node["running"] == [{"id": "j1"}]
    (model,) = fleet["models"]
    assert (model["model"], model["waiting"], model["warm"], model["copies"]) == ("checkpoint/dreamshaper_8", 1, 1, 1)
    assert (fleet["waiting"], fleet["leased"], fleet["alive"], fleet["away"]) == (1, 1, 1, 0)


async def test_a_node_that_is_silent_is_away(tmp_path: Path) -> None:
    """Its copies do not count any more, until it is heard of again."""
    async with dispatching(tmp_path, NODE_TIMEOUT="1s") as talk:
        await talk.ask(loaded=(MODEL,))
        assert talk.view.fleet.warm("checkpoint/dreamshaper_8") == 1
        await wait_until(lambda: talk.view.fleet.warm("checkpoint/dreamshaper_8") == 0)
        assert (await talk.client.get("/fleet")).json()["away"] == 1
        await talk.ask(loaded=(MODEL,))
        assert talk.view.fleet.warm("checkpoint/dreamshaper_8") == 1


async def test_everything_is_counted(talk: Talk) -> None:
    """Prometheus text with what waits, who is there, and why jobs went where they went."""
    await talk.given()
    await talk.submit(a_job("j2"))
    answer = await talk.client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    lines = answer.text.splitlines()
    assert 'sd_dispatcher_assignments_total{why="warm"} 1.0' in lines
    assert "sd_dispatcher_jobs_waiting 1.0" in lines
    assert 'sd_dispatcher_nodes{state="alive"} 1.0' in lines
    assert any(line.startswith('sd_dispatcher_request_seconds_count{endpoint="availability"}') for line in lines)
    assert talk.view.metrics.value(SUBMITTED) == 2


async def test_the_page_loads_nothing_from_elsewhere(talk: Talk) -> None:
    """The dashboard and the API's page come from here alone, and may speak to nobody else."""
    for path, words in (("/", "Models in demand"), ("/docs", "sd-dispatcher API")):
        answer = await talk.client.get(path)
        assert answer.status_code == 200
        assert words in answer.text
        assert "http://" not in answer.text
        assert "https://" not in answer.text
        assert "connect-src 'self'" in answer.headers["content-security-policy"]


async def test_the_api_describes_itself(talk: Talk) -> None:
    """Every endpoint, its body, and its problems as what they are."""
    document = (await talk.client.get("/openapi.json")).json()
    assert document["openapi"].startswith("3.1")
    paths = document["paths"]
    assert {"/availability", "/heartbeat", "/jobs", "/jobs/{id}/result", "/models", "/fleet", "/ready"} <= set(paths)
    asked = paths["/availability"]["post"]
    assert asked["requestBody"]["content"]["application/json"]["example"]["node"]["id"] == "random-uuid"
    assert "application/problem+json" in asked["responses"]["401"]["content"]
    assert "409" in paths["/jobs/{id}/result"]["post"]["responses"]


async def test_what_is_not_there_is_a_problem(talk: Talk) -> None:
    """Unknown paths, wrong methods and bodies that are too large, in one form."""
    found = [
        await talk.client.get("/nothing"),
        await talk.client.get("/availability"),
        await talk.client.post("/availability", content=b"{", headers=AS_NODE),
    ]
    assert [(one.status_code, one.json()["code"]) for one in found] == [
        (404, "not_found"),
        (405, "method_not_allowed"),
        (422, "unreadable"),
    ]
    assert all(one.headers["content-type"] == "application/problem+json" for one in found)


async def test_a_body_over_the_limit_is_refused(tmp_path: Path) -> None:
    """413 for users and nodes alike."""
    async with dispatching(tmp_path, MAX_BODY="1000") as talk:
        answer = await talk.client.post("/jobs", json=a_job("j1", metadata="x" * 2000))
        assert (answer.status_code, answer.json()["code"]) == (413, "body_too_large")
