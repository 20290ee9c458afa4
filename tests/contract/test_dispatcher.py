"""The dispatcher's endpoints as users and nodes meet them, over a real database on a real socket."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from dispatcher.metrics import BUGS, STALE
from tests.support.dispatching import AS_NODE, MODEL, Talk, a_job, a_node, a_result, dispatching
from tests.support.scheduling import EXAMPLE_ANSWER, EXAMPLE_REQUEST
from tests.support.waiting import wait_until
from worker.job import Limits, parse
from worker.queues.availability.answers import document_of
from worker.wire import Answer, Generation


@pytest.fixture(name="talk")
async def open_talk(tmp_path: Path) -> AsyncIterator[Talk]:
    async with dispatching(tmp_path) as talk:
        yield talk
        assert talk.view.metrics.value(BUGS) == 0


async def test_a_job_travels_from_its_user_to_a_node_and_back(talk: Talk) -> None:
    """Submitted, given under a lease, ended by its holder, and read with its result."""
    answer = await talk.submit(a_job("j1"))
    assert (answer.status_code, answer.json()) == (201, {"id": "j1", "created": True})
    job = (await talk.ask(loaded=(MODEL,)))["generation"]
    assert (job["id"], job["checkpoint"], job["redelivered"]) == ("j1", MODEL, False)
    assert (job["deliveries"], job["max_attempts"], job["max_deliveries"], job["lease"]) == (1, 3, 10, 120)
    assert (await talk.job("j1"))["status"] == "leased"
    assert (await talk.end(job)).status_code == 204
    ended = await talk.job("j1")
    assert (ended["status"], ended["code"], ended["result"]["status"]) == ("done", None, "succeeded")


async def test_the_document_arrives_as_it_was_sent(talk: Talk) -> None:
    """Nothing is added to or lost from what the worker takes for the job, nulls within it included."""
    document = a_job("j1", None, metadata={"a": None, "b": [1]}, priority=3, models=[{"kind": "lora", "name": "x"}])
    await talk.submit(document)
    generation = Generation.model_validate((await talk.ask())["generation"])
    assert document_of(generation) == document
    assert parse(document_of(generation), fallback_id="-", limits=Limits()).id == "j1"


async def test_submitting_again_changes_nothing(talk: Talk) -> None:
    """The very same document is known: 200; another one under its id is a conflict that names it."""
    await talk.submit(a_job("j1"))
    again = await talk.submit(a_job("j1"))
    assert (again.status_code, again.json()["created"]) == (200, False)
    other = await talk.client.post("/jobs", json=a_job("j1", params={"prompt": "a dog"}))
    assert (other.status_code, other.json()["code"]) == (409, "id_conflict")
    assert "j1" in other.json()["detail"]


async def test_many_are_submitted_at_once_or_none(talk: Talk) -> None:
    """A list is taken whole; with one wrong document in it nothing is, and each mistake names its place."""
    jobs = [a_job(f"j{i}") for i in range(40)]
    answer = await talk.submit(*jobs)
    assert [one["created"] for one in answer.json()] == [True] * 40
    wrong = await talk.client.post("/jobs", json=[a_job("k1"), a_job("k2", nonsense=1), {"id": "k3"}])
    assert (wrong.status_code, wrong.json()["code"]) == (422, "invalid_job")
    fields = [error["field"] for error in wrong.json()["errors"]]
    assert fields[0] == "1.nonsense"
    assert fields[1].startswith("2")
    assert (await talk.client.get("/jobs/k1")).status_code == 404


async def test_a_job_without_an_id_gets_one(talk: Talk) -> None:
    """A random one, so that two such documents are two jobs."""
    document = a_job("-")
    del document["id"]
    first, second = await talk.submit(document), await talk.submit(document)
    assert first.json()["id"] != second.json()["id"]
    assert (first.json()["created"], second.json()["created"]) == (True, True)


NO_JOBS = (
    (b"{", ""),
    (b"[1]", "0"),
    (b'{"job_url": "https://example.com/job.json"}', "job_url"),
    (b'{"id": "j", "v": "1", "params": {"prompt": ""}}', "v"),
    (b'{"id": "j", "params": {"prompt": "", "steps": 1000}}', "params.steps"),
)


async def test_what_is_no_job_is_refused_by_its_field(talk: Talk) -> None:
    """422 with the field that is wrong."""
    for body, field in NO_JOBS:
        answer = await talk.client.post("/jobs", content=body)
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid_job")
        assert answer.headers["content-type"] == "application/problem+json"
        assert [error["field"] for error in answer.json()["errors"]] == [field]


async def test_a_document_of_the_future_is_refused(talk: Talk) -> None:
    """422 with a code of its own: whether it could be done nobody here can tell."""
    answer = await talk.client.post("/jobs", json=a_job("j", v=9))
    assert (answer.status_code, answer.json()["code"]) == (422, "unsupported_document")


async def test_the_published_example_is_taken_word_for_word(talk: Talk) -> None:
    """The guide's request gets a job whose checkpoint it has, in an answer of the guide's form."""
    published = json.loads(EXAMPLE_ANSWER)["generation"]
    await talk.submit({"id": "cat", **published})
    headers = {**AS_NODE, "content-type": "application/json"}
    answer = await talk.client.post("/availability", content=EXAMPLE_REQUEST, headers=headers)
    assert answer.status_code == 200
    generation = answer.json()["generation"]
    assert {name: generation[name] for name in published} == published
    nothing = await talk.client.post("/availability", content=EXAMPLE_REQUEST, headers=headers)
    assert "generation" not in nothing.json()
    assert nothing.json()["retry_after"] > 0
    assert "random-uuid" in talk.view.fleet
    assert "checkpoint/dreamshaper_8" in talk.view.fleet["random-uuid"].stock.loaded


async def test_a_published_node_is_ordered_by_urls_alone(talk: Talk) -> None:
    """Who says no more than the guide's example gets download orders in the guide's form."""
    urls = {"kind": "checkpoint", "name": "b.safetensors", "url": "https://cdn.example/b"}
    assert (await talk.client.put("/models", json=[urls])).status_code == 204
    body = {"node": {"id": "n1", "gpu": "rtx4090", "vram_gb": 24}, "vram_models": {"checkpoints": [MODEL]}}
    assert (await talk.node("/availability", body)).status_code == 200
    await talk.submit(a_job("j1", "b.safetensors"), a_job("j2", "b.safetensors"))
    await wait_until(lambda: talk.view.fleet["n1"].due.download)
    answer = (await talk.node("/availability", body)).json()
    assert answer["download"] == {"checkpoints": ["https://cdn.example/b"]}
    ours = (await talk.node("/availability", {**body, "node": {"id": "n1", "instance": "1"}})).json()
    assert Answer.model_validate(ours).downloads[0].name == "b.safetensors"


async def test_a_held_request_is_answered_when_a_job_comes(talk: Talk) -> None:
    """A long poll gets the job that is submitted meanwhile."""
    asking = asyncio.create_task(talk.ask(loaded=(MODEL,), wait=30), name="asking")
    await wait_until(lambda: talk.view.desk.polls)
    await talk.submit(a_job("j1"))
    assert (await asking)["generation"]["id"] == "j1"


async def test_a_held_request_ends_with_nothing_when_its_time_is_up(talk: Talk) -> None:
    """An empty answer after the time that the node offered, to be asked again at once."""
    answer = await talk.ask(wait=0.05)
    assert "generation" not in answer
    assert answer["retry_after"] == 0


async def test_the_job_goes_to_the_node_that_has_its_model(talk: Talk) -> None:
    """Of several held requests the warm node's is answered, whoever asked first."""
    nodes = {"cold": (), "warm": (MODEL,), "other": ("x.safetensors",)}
    asking = {
        name: asyncio.create_task(talk.ask(id=name, loaded=loaded, wait=30), name=name)
        for name, loaded in nodes.items()
    }
    await wait_until(lambda: talk.view.desk.polls == 3)
    await talk.submit(a_job("j1"))
    assert (await asking["warm"])["generation"]["id"] == "j1"
    talk.view.desk.stop()
    assert "generation" not in await asking["cold"]
    assert "generation" not in await asking["other"]


async def test_a_second_request_of_a_node_replaces_the_first(talk: Talk) -> None:
    """The earlier one is answered with nothing: a job given to it would be lost on a dead connection."""
    first = asyncio.create_task(talk.ask(loaded=(MODEL,), wait=30), name="first")
    await wait_until(lambda: talk.view.desk.polls)
    second = asyncio.create_task(talk.ask(loaded=(MODEL,), wait=30), name="second")
    assert "generation" not in await first
    await wait_until(lambda: talk.view.desk.polls)
    await talk.submit(a_job("j1"))
    assert (await second)["generation"]["id"] == "j1"


async def test_a_node_that_hangs_up_leaves_nothing_leased(talk: Talk) -> None:
    """Its held request is forgotten, and the next node gets the job."""
    reader, writer = await asyncio.open_connection("::1", talk.port)
    body = json.dumps(a_node("gone", loaded=(MODEL,), wait=30)).encode()
    head = f"POST /availability HTTP/1.1\r\nhost: x\r\nauthorization: {AS_NODE['authorization']}\r\n"
    writer.write(head.encode() + f"content-length: {len(body)}\r\n\r\n".encode() + body)
    await writer.drain()
    await wait_until(lambda: talk.view.desk.polls)
    writer.close()
    await wait_until(lambda: not talk.view.desk.polls)
    await talk.submit(a_job("j1"))
    assert (await talk.ask(id="here", loaded=(MODEL,)))["generation"]["id"] == "j1"
    assert await reader.read() == b""


async def test_a_node_that_goes_away_need_not_wait_for_its_own_request(talk: Talk) -> None:
    """A heartbeat that says so has the held request answered with nothing."""
    asking = asyncio.create_task(talk.ask(wait=30), name="asking")
    await wait_until(lambda: talk.view.desk.polls)
    await talk.beat(away=True)
    assert "generation" not in await asking


async def test_a_job_that_is_given_back_is_given_again(talk: Talk) -> None:
    """With a greater token, its earlier end told; a release for a drain counts as no delivery."""
    first = await talk.given()
    assert (await talk.release(first, "engine_oom", charged=True, worker="n1")).status_code == 204
    second = (await talk.ask(id="n2", loaded=(MODEL,)))["generation"]
    assert second["token"] > first["token"]
    assert (second["deliveries"], second["redelivered"]) == (2, True)
    (attempt,) = second["attempts"]
    assert (attempt["worker"], attempt["code"], attempt["charged"]) == ("n1", "engine_oom", True)
    await talk.release(second, "draining")
    assert (await talk.ask(id="n3", loaded=(MODEL,)))["generation"]["deliveries"] == 2


async def test_a_job_that_is_given_back_with_a_delay_waits_for_it(talk: Talk) -> None:
    """It is `delayed`, and nobody gets it before."""
    job = await talk.given()
    await talk.release(job, "dependency", delay=3600)
    assert (await talk.job("j1"))["status"] == "delayed"
    assert "generation" not in await talk.ask(id="n2", loaded=(MODEL,))
    why = (await talk.client.get("/jobs/j1/explain")).json()["why"]
    assert "dependency" in why


async def test_a_stale_token_changes_nothing(talk: Talk) -> None:
    """409 for result and release under a lease that is over; the job stays with who holds it now."""
    stale = await talk.given()
    await talk.release(stale)
    present = (await talk.ask(id="n2", loaded=(MODEL,)))["generation"]
    ended, released = await talk.end(stale, "failed"), await talk.release(stale)
    assert (ended.status_code, released.status_code) == (409, 409)
    assert ended.json()["code"] == "lease_lost"
    row = await talk.job("j1")
    assert (row["status"], row["node"], row["result"]) == ("leased", "n2", None)
    assert talk.view.metrics.value(STALE, verb="result") == 1
    assert (await talk.end(present)).status_code == 204
    assert (await talk.end(present)).status_code == 204
    assert (await talk.end(stale)).status_code == 409


async def test_what_is_no_token_opens_nothing(talk: Talk) -> None:
    """Whatever stands there is a stale token, never a mistake of the server's."""
    job = await talk.given()
    for token in (None, "7", True, 1.5, [1], 2**70):
        assert (await talk.end({**job, "token": token})).status_code == 409
        assert (await talk.beat({**job, "token": token}))["lost"] == ["j1"]


async def test_a_job_that_nobody_knows(talk: Talk) -> None:
    """404 to node and user alike, with the same words."""
    found = [
        await talk.end({"id": "no", "token": 1}),
        await talk.release({"id": "no", "token": 1}),
        await talk.client.get("/jobs/no"),
        await talk.client.delete("/jobs/no"),
        await talk.client.post("/jobs/no/requeue"),
        await talk.client.get("/jobs/no/explain"),
    ]
    assert {(answer.status_code, answer.json()["code"]) for answer in found} == {(404, "not_found")}


async def test_a_result_of_another_job_is_refused(talk: Talk) -> None:
    """The document must be of the job whose end it is, and a result at all."""
    job = await talk.given()
    other = await talk.node("/jobs/j1/result", {"token": job["token"], "result": a_result("j2")})
    none = await talk.node("/jobs/j1/result", {"token": job["token"], "result": {"status": "fine"}})
    assert (other.status_code, none.status_code) == (422, 422)
    assert (await talk.job("j1"))["status"] == "leased"


async def test_heartbeats_renew_what_is_held_and_tell_what_is_lost(talk: Talk) -> None:
    """Each lease is renewed by its own token."""
    job = await talk.given()
    before = (await talk.job("j1"))["lease_until"]
    answer = await talk.beat(job, {"id": "j2", "token": 1})
    assert (answer["lost"], answer["cancel"]) == (["j2"], [])
    assert (await talk.beat({**job, "token": job["token"] + 1}))["lost"] == ["j1"]
    await wait_until(lambda: _renewed(talk, before))


async def _renewed(talk: Talk, before: str) -> bool:
    return bool((await talk.job("j1"))["lease_until"] > before)


async def test_a_job_that_waits_is_cancelled_at_once(talk: Talk) -> None:
    """It is over, nobody gets it, and a second time there is nothing to cancel."""
    await talk.submit(a_job("j1"))
    assert (await talk.client.delete("/jobs/j1")).status_code == 204
    row = await talk.job("j1")
    assert (row["status"], row["code"], row["result"]["status"]) == ("done", "cancelled", "cancelled")
    again = await talk.client.delete("/jobs/j1")
    assert (again.status_code, again.json()["code"]) == (409, "conflict")
    assert "generation" not in await talk.ask(loaded=(MODEL,))


async def test_the_holder_of_a_cancelled_job_hears_of_it(talk: Talk) -> None:
    """At its next heartbeat, and at once where its request for more work is held back."""
    job = await talk.given()
    running = [{"id": "j1", "token": job["token"]}]
    asking = asyncio.create_task(talk.ask(loaded=(MODEL,), running=running, wait=30), name="asking")
    await wait_until(lambda: talk.view.desk.polls)
    assert (await talk.client.delete("/jobs/j1")).status_code == 204
    assert (await asking)["cancel"] == ["j1"]
    assert (await talk.beat(job))["cancel"] == ["j1"]
    assert (await talk.job("j1"))["cancelling"] is True
    assert (await talk.end(job, "cancelled")).status_code == 204
    assert (await talk.job("j1"))["code"] == "cancelled"


async def test_a_failed_job_is_a_dead_letter_and_may_run_again(talk: Talk) -> None:
    """Requeued it is given again, told to be a redelivery though its counts begin anew."""
    job = await talk.given()
    error = {"code": "engine_oom", "message": "no", "retryable": False, "fault": "job"}
    await talk.end(job, "failed", error=error)
    row = await talk.job("j1")
    assert (row["status"], row["code"]) == ("dead", "engine_oom")
    assert (await talk.client.post("/jobs/j1/requeue")).status_code == 204
    assert (await talk.client.post("/jobs/j1/requeue")).status_code == 409
    again = (await talk.ask(loaded=(MODEL,)))["generation"]
    assert (again["deliveries"], again["redelivered"], again["attempts"]) == (1, True, [])


async def test_jobs_are_listed_by_their_status(talk: Talk) -> None:
    """In the order of their turn, without results, page by page."""
    await talk.submit(*(a_job(f"j{i}", priority=i) for i in range(4)))
    waiting = (await talk.client.get("/jobs", params={"status": "waiting", "limit": 3})).json()["jobs"]
    assert [one["id"] for one in waiting] == ["j3", "j2", "j1"]
    rest = (await talk.client.get("/jobs", params={"status": "waiting", "after": "j1"})).json()["jobs"]
    assert [one["id"] for one in rest] == ["j0"]
    assert "result" not in waiting[0]
    wrong = await talk.client.get("/jobs", params={"status": "nonsense"})
    assert (wrong.status_code, wrong.json()["code"]) == (422, "invalid_request")
