"""Jobs over HTTP, from the request to the end, in virtual time."""

from __future__ import annotations

import asyncio
import base64
import json
from dataclasses import replace
from datetime import timedelta
from typing import Any

import httpx
import pytest

from tests.support.office import HOOK, RULES, Office, SharedStorage, document, shared
from tests.support.virtual import VirtualClock, elapse, virtual
from worker.engines.base import Reach
from worker.errors import EngineStalled, GenerationRejected, OutputEmpty, QueueUnavailable
from worker.live import Hop
from worker.queues.memory import MemoryQueue
from worker.status import Phase

ASYNC = {"prefer": "respond-async"}
PATH = "/v1/jobs"


async def until_over(office: Office, client: httpx.AsyncClient, job_id: str) -> dict[str, Any]:
    """The state of a job once it is over."""
    while True:
        state: dict[str, Any] = (await client.get(f"{PATH}/{job_id}")).json()
        if "status" in state and state["status"] not in ("waiting", "running"):
            return state
        await elapse(0.5)


def asking(client: httpx.AsyncClient, body: dict[str, Any], **headers: str) -> asyncio.Task[httpx.Response]:
    """A request under way."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return asyncio.create_task(client.post(PATH, json=body, headers=named), name="caller")


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
        for one in ids:
            await client.delete(f"{PATH}/{one}")


@virtual
async def test_without_webhook_or_shared_store_nobody_is_left_without_an_end() -> None:
    """409 before anything is done; a webhook that hears no success is none, and the operator's own is one."""
    async with Office().open() as client:
        for body in (document(), document(webhook={"url": HOOK, "events": ["started"]})):
            answer = await client.post(PATH, json=body, headers=ASYNC)
            assert (answer.status_code, answer.json()["code"]) == (409, "no_shared_state")
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
async def test_the_same_key_joins_the_job_and_replays_its_end() -> None:
    """One generation for any number of calls, while it runs and after; another document is a conflict."""
    office = Office()
    async with office.open() as client:
        first, second = [asking(client, document(), idempotency_key="k") for _ in range(2)]
        answers = [await first, await second, await asking(client, document(), idempotency_key="k")]
        other = await asking(client, document("other"), idempotency_key="k")
        alone = await asking(client, document(), idempotency_key="l")
    ids = [answer.json()["id"] for answer in answers]
    assert office.engine.generated == [ids[0], alone.json()["id"]]
    assert len(set(ids)) == 1
    assert (other.status_code, other.json()["code"]) == (409, "id_conflict")


@virtual
async def test_a_failure_of_the_jobs_own_is_replayed() -> None:
    """As long as nothing at all was changed: another timeout is another try."""
    office = Office()
    office.engine.trouble("bad", GenerationRejected("no such sampler"))
    async with office.open() as client:
        failed = await asking(client, document("bad"), idempotency_key="b")
        replayed = await asking(client, document("bad"), idempotency_key="b")
        changed = await asking(client, document("bad", timeout=60), idempotency_key="b")
    assert [one.status_code for one in (failed, replayed, changed)] == [422, 422, 200]


@virtual
async def test_a_failure_that_may_pass_is_not_replayed() -> None:
    """The node's fault now, and a success under the same id when it is asked again."""
    office = Office()
    async with office.open() as client:
        office.engine.trouble("x", EngineStalled(), EngineStalled())
        first = await asking(client, document(), idempotency_key="k")
        assert (first.status_code, first.json()["code"]) == (503, "delivery_limit")
        assert first.headers["retry-after"]
        await office.status.reached(Phase.READY)
        second = await asking(client, document(), idempotency_key="k")
    assert second.status_code == 200
    assert second.json()["id"] == first.json()["result"]["id"]


@virtual
async def test_a_job_that_was_cancelled_with_its_caller_is_done_when_asked_again() -> None:
    """Who lost the connection and calls again wants the picture; a job that was promised to nobody waiting stays
    cancelled."""
    office = Office(hook=HOOK)
    async with office.open() as client:
        office.engine.seconds = 100
        caller = asking(client, document(), idempotency_key="k")
        await office.until(lambda: len(tuple(office.desk.tickets)) == 1)
        (ticket,) = office.desk.tickets
        await client.delete(f"{PATH}/{ticket.id}")
        assert (await caller).status_code == 409
        office.engine.seconds = 1
        assert (await asking(client, document(), idempotency_key="k")).status_code == 200
        promised = await asking(client, document("y"), idempotency_key="l", prefer="respond-async")
        await client.delete(f"{PATH}/{promised.json()['id']}")
        await until_over(office, client, promised.json()["id"])
        again = await asking(client, document("y"), idempotency_key="l", prefer="respond-async")
    assert again.json()["status"] == "cancelled"


@virtual
async def test_another_replica_finds_the_success_by_its_mark() -> None:
    """Ids come from API key and Idempotency-Key alone, so no picture is made twice; nor is one given out wrong."""
    mine, other = shared(), shared()
    other.storage.objects = mine.storage.objects
    async with mine.open() as client:
        first = await asking(client, document(), idempotency_key="k")
    async with other.open() as client:
        second = await asking(client, document(), idempotency_key="k")
        wrong = await asking(client, document("other"), idempotency_key="k2")
        third = await asking(client, document("another"), idempotency_key="k")
    assert first.json()["images"][0]["key"] == second.json()["images"][0]["key"]
    assert len(other.engine.generated) == 1
    assert wrong.status_code == 200
    assert (third.status_code, third.json()["code"]) == (409, "id_conflict")


@virtual
async def test_a_job_whose_end_was_dropped_is_done_again() -> None:
    """Memory is bounded; never a wrong answer."""
    office = Office()
    async with office.open() as client:
        first = await asking(client, document(), idempotency_key="k")
        office.desk.tickets.drop(first.json()["id"])
        second = await asking(client, document(), idempotency_key="k")
    assert len(office.engine.generated) == 2
    assert first.json()["images"][0]["sha256"] == second.json()["images"][0]["sha256"]


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
async def test_asynchronous_jobs_go_to_the_queue_under_the_callers_id() -> None:
    """Idempotent there; whoever asks is told what the queue knows, and a waiting one is withdrawn from it."""
    office = Office(passes_on=True)
    async with office.open() as client:
        office.engine.seconds = 20
        first = await client.post(PATH, json=document(id="mine", priority=5), headers=ASYNC)
        assert (first.status_code, first.json()) == (202, {"id": "mine", "client_id": "mine", "status": "waiting"})
        await office.at(Hop.GENERATE, "mine")
        again = await client.post(PATH, json=document(id="mine", priority=5), headers=ASYNC)
        assert again.json()["status"] == "running"
        other = await client.post(PATH, json=document("other", id="mine"), headers=ASYNC)
        assert (other.status_code, other.json()["code"]) == (409, "id_conflict")
        assert (await client.get(f"{PATH}/mine")).json()["hop"] == "generate"
        keyed = [
            (await client.post(PATH, json=document(), headers={**ASYNC, "idempotency-key": "k"})).json()["id"]
            for _ in range(2)
        ]
        assert keyed[0] == keyed[1]
        pointer = await client.post(PATH, json={"id": "far", "job_url": "https://x.example/job.json"}, headers=ASYNC)
        assert pointer.json()["id"] == "far"
        assert (await client.delete(f"{PATH}/far")).json()["status"] == "cancelled"
        assert (await client.delete(f"{PATH}/mine")).status_code == 202
        assert (await until_over(office, client, "mine"))["status"] == "cancelled"
        await client.delete(f"{PATH}/{keyed[0]}")
    assert len(tuple(office.desk.tickets)) == 0


class AwayQueue(MemoryQueue):
    """Answers nobody, or not in time."""

    slow = False

    async def _away(self) -> None:
        if self.slow:
            await asyncio.Event().wait()
        raise QueueUnavailable("nobody is there")

    async def submit(self, *args: Any, **more: Any) -> bool:
        await self._away()
        return False

    async def state(self, job_id: str) -> None:
        await self._away()

    async def cancel(self, job_id: str) -> bool:
        await self._away()
        return False


@pytest.mark.parametrize("slow", [False, True])
def test_a_queue_that_is_away_is_told_as_such(slow: bool) -> None:
    """503 within seconds for everything that it alone knows; the store is asked for the rest."""

    @virtual
    async def told() -> None:
        storage, away = SharedStorage(), AwayQueue(VirtualClock())
        away.slow = slow
        office = shared(storage, producer=away)
        storage.objects["old/result.json"] = json.dumps(await _old()).encode()
        async with office.open() as client:
            answers = [
                await client.post(PATH, json=document(), headers=ASYNC),
                await client.get(f"{PATH}/a"),
                await client.delete(f"{PATH}/a"),
                await client.get(f"{PATH}/a/events"),
            ]
            assert [(one.status_code, one.json()["code"]) for one in answers] == [(503, "queue_unavailable")] * 4
            assert all(one.headers["retry-after"] for one in answers)
            assert (await client.get(f"{PATH}/old")).json()["status"] == "succeeded"

    told()


async def _old() -> dict[str, Any]:
    """The document of a job that another worker did."""
    at = "2026-01-01T00:00:00Z"
    worker = {"id": "w2", "version": "0"}
    return {"id": "old", "status": "succeeded", "worker": worker, "created_at": at, "finished_at": at}


@virtual
async def test_a_store_that_is_away_is_told_as_such() -> None:
    """Nobody is told that a job is unknown only because nobody could look."""
    office = shared()
    async with office.open() as client:
        office.storage.down = QueueUnavailable("down")
        answer = await client.get(f"{PATH}/a")
        office.storage.down = None
    assert answer.status_code == 503


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
