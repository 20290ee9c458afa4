"""Jobs over HTTP, from the request to the end, in virtual time."""

from __future__ import annotations

import asyncio
import base64
import json
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from tests.support.office import ASYNC, HOOK, PATH, RULES, Office, asking, document, shared, until_over
from tests.support.virtual import virtual
from worker.engines.base import Reach
from worker.errors import GenerationRejected, OutputEmpty
from worker.live import Hop


@virtual
async def test_who_waits_gets_the_result_with_its_images() -> None:
    """Under an id of ours; the caller's own is echoed, and nothing is stored."""
    office = Office()
    async with office.open() as client:
        answer = await client.post(PATH, json=document(id="mine", metadata={"n": 1}))
    result = answer.json()
    assert answer.status_code == 200
    assert (result["status"], result["client_id"], result["metadata"]) == ("succeeded", "mine", {"n": 1})
    assert result["id"].startswith("http-")
    assert base64.b64decode(result["images"][0]["base64"]).startswith(b"\x89PNG")
    assert office.storage.objects == {}


@virtual
async def test_a_job_with_a_webhook_is_answered_at_once_and_told_of() -> None:
    """202 with where its state is; the webhook holds the images, since nothing else does, and so does the state."""
    office = Office()
    async with office.open() as client:
        office.engine.seconds = 10
        answer = await client.post(PATH, json=document(id="mine", webhook=HOOK))
        state = answer.json()
        assert (answer.status_code, state["status"], state["client_id"]) == (202, "waiting", "mine")
        assert answer.headers["location"] == f"{PATH}/{state['id']}"
        assert "preference-applied" not in answer.headers
        await office.until(lambda: any(job.progress == 0.5 for job in office.live))
        running = (await client.get(answer.headers["location"])).json()
        assert (running["status"], running["hop"], running["progress"]) == ("running", "generate", 0.5)
        assert running["eta_s"] == pytest.approx(5, abs=0.2)
        ended = await until_over(office, client, state["id"])
    assert ended["result"]["images"][0]["base64"]
    assert office.hooks.ids("succeeded") == [state["id"]]


@virtual
async def test_waiting_jobs_are_told_how_many_come_before_them() -> None:
    """Those that need the engine yet, and those that wait longer."""
    office = Office(hook=HOOK, window=1)
    async with office.open() as client:
        office.engine.seconds = 100
        ids = [(await client.post(PATH, json=document(), headers=ASYNC)).json()["id"] for _ in range(4)]
        await office.until(lambda: any(job.hop is Hop.GENERATE for job in office.live))
        states = [(await client.get(f"{PATH}/{one}")).json() for one in ids]
        assert [state["status"] for state in states] == ["running", "waiting", "waiting", "waiting"]
        assert [state.get("ahead") for state in states] == [None, 1, 2, 3]
        assert office.metrics.value("sd_worker_http_jobs_waiting") == 3
        for one in ids:
            await client.delete(f"{PATH}/{one}")
    assert office.metrics.value("sd_worker_http_jobs_waiting") == 0


@virtual
async def test_without_webhook_or_shared_store_nobody_is_left_without_an_end() -> None:
    """409 before anything is done; a webhook that hears no success is none, and the operator's own is one."""
    office = Office()
    async with office.open() as client:
        for body in (document(), document(webhook={"url": HOOK, "events": ["started"]})):
            answer = await client.post(PATH, json=body, headers=ASYNC)
            assert (answer.status_code, answer.json()["code"]) == (409, "no_shared_state")
    assert office.metrics.value("sd_worker_http_jobs_refused_total", code="no_shared_state") == 2
    async with Office(hook=HOOK).open() as client:
        answer = await client.post(PATH, json=document(), headers={"prefer": "wait=1, Respond-Async;x=1"})
        assert (answer.status_code, answer.headers["preference-applied"]) == (202, "respond-async")


@virtual
async def test_any_replica_tells_the_end_by_the_store() -> None:
    """A success and a failure of another worker; what nobody knows is unknown here."""
    mine, other = shared(), shared()
    other.storage.objects = mine.storage.objects
    mine.engine.trouble("bad", GenerationRejected("no such sampler"))
    async with mine.open() as client:
        good, bad = [
            (await client.post(PATH, json=document(prompt), headers=ASYNC)).json()["id"] for prompt in ("good", "bad")
        ]
        await until_over(mine, client, good)
        await until_over(mine, client, bad)
    async with other.open() as client:
        states = [(await client.get(f"{PATH}/{one}")).json() for one in (good, bad, "nobody")]
        events = await client.get(f"{PATH}/{good}/events")
        again = await client.delete(f"{PATH}/{good}")
    assert states[0]["result"]["images"][0]["key"].startswith(good)
    assert (states[1]["status"], states[1]["result"]["error"]["message"]) == ("failed", "no such sampler")
    assert states[2]["code"] == "unknown_here"
    assert events.text.startswith("id: 1\nevent: end\ndata: {")
    assert (again.status_code, again.json()["code"]) == (409, "job_over")


@virtual
async def test_cancelling_a_job_that_waits_and_one_that_runs() -> None:
    """At once, or at the next step; the owner is told, and later there is nothing left to cancel."""
    office = Office(window=1)
    office.engine.seconds = 100
    hook = {"url": HOOK, "events": ["cancelled", "succeeded"]}
    async with office.open() as client:
        running = (await client.post(PATH, json=document(webhook=hook))).json()["id"]
        await office.at(Hop.GENERATE, running)
        waiting = (await client.post(PATH, json=document(webhook=hook))).json()["id"]
        withdrawn = await client.delete(f"{PATH}/{waiting}")
        assert (withdrawn.status_code, withdrawn.json()["status"]) == (200, "cancelled")
        leaving = await client.delete(f"{PATH}/{running}")
        assert leaving.status_code == 202
        assert (await until_over(office, client, running))["status"] == "cancelled"
        assert (await client.delete(f"{PATH}/{running}")).status_code == 409
        assert (await client.delete(f"{PATH}/nobody")).status_code == 404
        caller = asking(client, document())
        await office.until(lambda: len(tuple(office.desk.tickets)) == 1)
        (ticket,) = office.desk.tickets
        await client.delete(f"{PATH}/{ticket.id}")
        assert ((await caller).status_code, (await caller).json()["code"]) == (409, "cancelled")
    assert sorted(office.hooks.ids("cancelled")) == sorted([running, waiting])
    assert office.engine.interrupted[0] == running


@virtual
async def test_a_job_that_outlasts_its_answer_goes_on() -> None:
    """504 with its id, by which its end is asked for; the answer to the same key is waited for again."""
    office = Office(rules=replace(RULES, timeout=timedelta(seconds=5)))
    async with office.open() as client:
        office.engine.seconds = 8
        late = await asking(client, document(), idempotency_key="k")
        assert (late.status_code, late.json()["code"]) == (504, "still_running")
        state = await until_over(office, client, late.json()["id"])
        assert state["result"]["images"][0]["base64"]
        assert (await asking(client, document(), idempotency_key="k")).status_code == 200
    assert len(office.engine.generated) == 1


@virtual
async def test_what_a_native_caller_missed_is_in_the_state() -> None:
    """Though the result itself does not hold it: he was to get it from us."""
    office = Office()
    async with office.open() as client:
        ticket = await office.desk.take(document(), waits=True, native=True)
        ended = await ticket.over()
        assert ended.result.images[0].base64 is None
        state = (await client.get(f"{PATH}/{ticket.id}")).json()
    assert base64.b64decode(state["result"]["images"][0]["base64"])[:4] == b"\x89PNG"


@virtual
async def test_a_document_may_point_at_the_real_one() -> None:
    """Fetched, checked and done like any other; its webhook makes it asynchronous, its caller's id is his."""
    office = Office()
    url = "https://x.example/job.json"
    async with office.open() as client:
        office.inputs.bodies[url] = json.dumps(document("far", metadata=7)).encode()
        answer = await client.post(PATH, json={"id": "mine", "job_url": url})
        assert (answer.status_code, answer.json()["metadata"], answer.json()["client_id"]) == (200, 7, "mine")
        office.inputs.bodies[url] = json.dumps(document(webhook=HOOK)).encode()
        assert (await client.post(PATH, json={"job_url": url})).status_code == 202
        office.inputs.bodies[url] = b'{"params": {"prompt": 1}}'
        wrong = await client.post(PATH, json={"job_url": url})
        assert wrong.json()["errors"][0]["field"] == "params.prompt"
        nowhere = await client.post(PATH, json={"job_url": 5})
        assert nowhere.json()["errors"] == [{"field": "job_url", "message": "must be a string"}]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"id": "../x", **document()}, "id"),
        ({"params": {"prompt": "x", "width": 10**6, "height": 10**6}}, "params.width"),
        (document(webhook="ftp://x/"), "webhook.url"),
        (document(webhook={"url": HOOK, "secret": "nobody's"}), "webhook.secret"),
        (document(webhook=HOOK, output={"upload_urls": ["ftp://x/"]}), "output.upload_urls.0"),
    ],
)
def test_the_wrong_field_is_named(body: dict[str, Any], field: str) -> None:
    """In the problem, at once, also for what only the worker itself can judge."""

    @virtual
    async def named() -> None:
        async with Office().open() as client:
            answer = await client.post(PATH, json=body)
        assert answer.status_code == 422
        assert [one["field"] for one in answer.json()["errors"]] == [field]

    named()


@virtual
async def test_a_job_held_here_has_the_operators_limits() -> None:
    """Its attempts are charged as those of a queue, not answered after the second."""
    office = Office(hook=HOOK)
    office.engine.trouble("x", *[OutputEmpty()] * 6)
    async with office.open() as client:
        job_id = (await client.post(PATH, json=document(), headers=ASYNC)).json()["id"]
        ended = await until_over(office, client, job_id)
    assert ended["result"]["error"]["code"] == "output_empty"
    assert len(ended["result"]["attempts"]) == 2
    assert office.engine.canaries == 1 + 3


@virtual
async def test_an_engine_that_stays_away_keeps_no_caller_for_ever() -> None:
    """A caller who waits is told so after a minute, and so is whoever comes; who does not wait goes on waiting."""
    office = Office(hook=HOOK)
    async with office.open() as client:
        office.engine.seconds = 10
        caller = asking(client, document())
        await office.until(lambda: any(job.hop is Hop.GENERATE for job in office.live))
        later = (await client.post(PATH, json=document("later"), headers=ASYNC)).json()["id"]
        office.engine.reach = Reach.PORT_CLOSED
        answer = await caller
        assert (answer.status_code, answer.json()["code"]) == (503, "not_ready")
        assert 60 < asyncio.get_running_loop().time() < 80
        refused = await client.post(PATH, json=document())
        assert (refused.status_code, refused.json()["code"]) == (503, "not_ready")
        assert [job.id for job in await office.desk.queue.jobs()] == [later]
        office.engine.reach = Reach.READY
        assert (await until_over(office, client, later))["status"] == "succeeded"


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (document(v=2), 422, "unsupported_document"),
        (document(deadline="2025-01-01T00:00:00Z"), 408, "expired"),
        ([], 422, "invalid_job"),
    ],
)
def test_a_status_says_whose_fault_it_is(body: Any, status: int, code: str) -> None:
    """Also where only a newer worker, or an earlier request, would have done."""

    @virtual
    async def answered() -> None:
        office = Office()
        async with office.open() as client:
            answer = await client.post(PATH, json=body)
        assert (answer.status_code, answer.json()["code"]) == (status, code)
        assert answer.headers["content-type"] == "application/problem+json"

    answered()
