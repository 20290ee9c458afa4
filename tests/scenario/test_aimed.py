"""Callers from within: they wait for as long as it takes, and what they leave is stopped."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from datetime import timedelta

from tests.support.office import PATH, RULES, Office, document
from tests.support.virtual import virtual
from worker.live import Hop
from worker.web.inside import Answer, ask

IMPATIENT = dataclasses.replace(RULES, timeout=timedelta(seconds=5))


def asking(office: Office, left: asyncio.Event, key: str = "job-1") -> asyncio.Task[Answer]:
    """A request from within under way."""
    headers = {"content-type": "application/json", "idempotency-key": key}
    return asyncio.create_task(ask(office.app(), PATH, json.dumps(document()).encode(), headers, left), name="asking")


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
