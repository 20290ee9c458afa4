"""What a drain means for those whose jobs came over HTTP."""

from __future__ import annotations

import asyncio

from tests.support.office import HOOK, PATH, Office, document, shared
from tests.support.virtual import elapse, virtual
from worker.errors import WebhookFailed
from worker.live import Hop
from worker.webhooks import Message


@virtual
async def test_a_caller_whose_job_cannot_finish_is_told_at_once() -> None:
    """503 `draining` for the one that waits and the one that takes too long, the picture for the one that fits."""
    office = Office(window=1, drain_s=20)
    async with office.open() as client:
        office.engine.seconds = 10
        fits = asyncio.create_task(client.post(PATH, json=document("a")), name="fits")
        await office.until(lambda: any(job.progress == 0.5 for job in office.live))
        waits = asyncio.create_task(client.post(PATH, json=document("b")), name="waits")
        await office.until(lambda: len(tuple(office.desk.tickets)) == 2)
        began = asyncio.get_running_loop().time()
        office.supervisor.stop()
        answer = await waits
        assert (answer.status_code, answer.json()["code"]) == (503, "draining")
        assert answer.headers["retry-after"]
        assert answer.json()["result"]["error"]["retryable"]
        assert asyncio.get_running_loop().time() - began < 1
        late = await client.post(PATH, json=document("c"))
        assert (late.status_code, late.json()["code"]) == (503, "draining")
        assert (await fits).status_code == 200


@virtual
async def test_a_generation_that_does_not_fit_is_given_up_at_once() -> None:
    """Its caller has all the more time to ask elsewhere."""
    office = Office(drain_s=20)
    async with office.open() as client:
        office.engine.seconds = 1000
        caller = asyncio.create_task(client.post(PATH, json=document()), name="caller")
        await office.until(lambda: any(job.progress == 0.5 for job in office.live))
        began = asyncio.get_running_loop().time()
        office.supervisor.stop()
        assert (await caller).json()["code"] == "draining"
        assert asyncio.get_running_loop().time() - began < 1


@virtual
async def test_owners_of_jobs_that_the_drain_drops_are_told() -> None:
    """A webhook `failed` that may be tried again, a document in the store, and the state, all within the drain."""
    office = shared(window=1, drain_s=20, hook=None)
    async with office.open() as client:
        office.engine.seconds = 1000
        running, waiting = [
            (await client.post(PATH, json=document(webhook=HOOK, metadata=n))).json()["id"] for n in range(2)
        ]
        await office.at(Hop.GENERATE, running)
        office.supervisor.stop()
        await office.until(lambda: len(office.hooks.ids("failed")) == 2, 21)
    assert sorted(office.hooks.ids("failed")) == sorted([running, waiting])
    told = [body["data"] for _, body in office.hooks.taken]
    assert {(one["error"]["code"], one["error"]["retryable"]) for one in told} == {("draining", True)}
    assert sorted(one["metadata"] for one in told) == [0, 1]
    assert sorted(office.storage.objects) == sorted([f"{running}/failure-2.json", f"{waiting}/failure-1.json"])
    assert (await office.inquiry.state(waiting)).status == "failed"


@virtual
async def test_an_owner_who_does_not_answer_holds_nothing_up() -> None:
    """The drain ends in its time, the message unsaid."""
    office = Office(window=1, drain_s=20)
    office.hooks.down_for_ever()
    async with office.open() as client:
        office.engine.seconds = 1000
        await client.post(PATH, json=document(webhook=HOOK))
        await office.until(lambda: bool(office.live))
        began = asyncio.get_running_loop().time()
    assert 20 < asyncio.get_running_loop().time() - began < 26
    assert office.hooks.taken == []


@virtual
async def test_a_success_that_stands_is_never_followed_by_a_failure() -> None:
    """Its webhook is still owed when the drain comes: nobody hears that it failed."""
    office = shared(drain_s=5)

    def down(message: Message) -> WebhookFailed:
        return WebhookFailed("down")

    office.hooks.answer = down
    async with office.open() as client:
        job_id = (await client.post(PATH, json=document(webhook=HOOK))).json()["id"]
        await office.until(lambda: bool(office.hooks.tries))
        assert (await client.get(f"{PATH}/{job_id}")).json()["status"] == "succeeded"
        await elapse(120)
        office.supervisor.stop()
    assert office.hooks.tries
    assert not any(message.startswith("failed") for message in office.hooks.tries)
    assert list(office.storage.results()) == [job_id]


@virtual
async def test_a_cut_off_drain_leaves_no_caller_without_an_answer() -> None:
    """A job that outlives the drain's deadline and grace ends for its caller all the same."""
    office = Office(drain_s=1)
    async with office.open() as client:
        office.engine.seconds = 2
        await client.post(PATH, json=document())
        ticket = await office.desk.take(document("b"), waits=True)
        service = asyncio.create_task(office.desk.run(), name="second-service")
        await elapse(0.1)
        service.cancel()
        await asyncio.wait({service})
        ended = await ticket.over()
    assert ended.result.error is not None
    assert ended.result.error.code == "draining"
