"""Callers from within: they wait for as long as it takes, and what they leave is stopped."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from datetime import timedelta
from typing import Any

from tests.support.office import HOOK, PATH, RULES, Office, document
from tests.support.virtual import virtual
from worker.live import Hop
from worker.web.inside import Answer, ask

IMPATIENT = dataclasses.replace(RULES, timeout=timedelta(seconds=5))


def asking(office: Office, left: asyncio.Event, key: str = "job-1", **fields: Any) -> asyncio.Task[Answer]:
    """A request from within under way."""
    headers = {"content-type": "application/json", "idempotency-key": key}
    body = json.dumps(document(**fields)).encode()
    return asyncio.create_task(ask(office.app(), PATH, body, headers, left), name="asking")


async def generating(office: Office) -> None:
    await office.until(lambda: any(job.hop is Hop.GENERATE for job in office.tools.live))


@virtual
async def test_a_caller_from_within_is_patient() -> None:
    """He is answered with the end, where others are told that it takes too long."""
    office = Office(rules=IMPATIENT)
    async with office.open() as client:
        office.engine.seconds = 20
        answer = await asking(office, asyncio.Event())
        assert (answer.status, json.loads(answer.body)["status"]) == (200, "succeeded")
        assert (await client.post(PATH, json=document("b"))).status_code == 504


@virtual
async def test_what_a_caller_from_within_leaves_is_cancelled() -> None:
    """As when a connection breaks: the next job need not wait for it."""
    office = Office()
    async with office.open():
        office.engine.seconds = 200
        left = asyncio.Event()
        asked = asking(office, left)
        await generating(office)
        left.set()
        await asked
        while tuple(office.tools.live):
            await office.tools.live.changed()
        assert [one.outcome for one in office.tools.live.recent] == ["cancelled"]


@virtual
async def test_a_job_that_comes_again_joins_the_first() -> None:
    """Under the same key: the queue may hand it over twice, it is done once."""
    office = Office()
    async with office.open():
        office.engine.seconds = 5
        answers = await asyncio.gather(*(asking(office, asyncio.Event()) for _ in range(2)))
        assert {answer.status for answer in answers} == {200}
        assert len(office.tools.live.recent) == 1


@virtual
async def test_a_drain_gives_it_back() -> None:
    """503 for what does not fit, so that it is done elsewhere."""
    office = Office()
    async with office.open():
        office.engine.seconds = 500
        asked = asking(office, asyncio.Event())
        await generating(office)
        office.drain.begin(asyncio.get_running_loop().time() + 1)
        answer = await asked
        assert (answer.status, json.loads(answer.body)["code"]) == (503, "draining")


@virtual
async def test_a_webhook_is_told_before_the_queue() -> None:
    """A queue forgets the job with the answer: that waits for the end and for the webhook, where others hear 202."""
    office = Office()
    async with office.open() as client:
        office.engine.seconds, office.hooks.seconds = 20, 30
        asked = asking(office, asyncio.Event(), webhook=HOOK)
        await office.until(lambda: bool(office.hooks.tries))
        assert not asked.done()
        answer = await asked
        assert (answer.status, json.loads(answer.body)["status"]) == (200, "succeeded")
        [(_, told)] = office.hooks.taken
        assert (told["type"], told["data"]["id"]) == ("job.succeeded", json.loads(answer.body)["id"])
        assert (await client.post(PATH, json=document("b", webhook=HOOK))).status_code == 202


@virtual
async def test_a_webhook_that_is_away_holds_the_queue_up_no_longer_than_its_budget() -> None:
    """Then the job is over, as on every queue where no result stands."""
    office = Office()
    async with office.open():
        office.hooks.down_for_ever()
        began = asyncio.get_running_loop().time()
        answer = await asking(office, asyncio.Event(), webhook=HOOK)
        assert answer.status == 200
        assert office.hooks.tries.total() > 1
        assert 30 < asyncio.get_running_loop().time() - began < 90


@virtual
async def test_who_leaves_while_the_webhook_is_tried_waits_no_more() -> None:
    """The queue has given the job to another: nobody is told by us."""
    office = Office()
    async with office.open():
        office.hooks.seconds = 500
        left = asyncio.Event()
        asked = asking(office, left, webhook=HOOK)
        await office.until(lambda: bool(office.hooks.tries))
        left.set()
        await asyncio.wait_for(asked, 1)


@virtual
async def test_a_job_handed_over_again_has_the_webhook_id_of_the_first() -> None:
    """Whichever node does it."""
    told = []
    for _ in range(2):
        office = Office()
        async with office.open():
            await asking(office, asyncio.Event(), webhook=HOOK)
            told += [number for number, _ in office.hooks.taken]
    assert len(set(told)) == 1
