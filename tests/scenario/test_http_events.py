"""Server-sent events: what becomes of a job, as it happens."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from tests.support.office import ASYNC, HOOK, PATH, Office, document
from tests.support.virtual import elapse, virtual
from worker.api import sse
from worker.desk import inquiry
from worker.errors import QueueUnavailable
from worker.live import Hop


class Listener:
    """Reads events, with the time at which each came."""

    def __init__(self, office: Office, job_id: str) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.times: list[float] = []
        self.comments = 0
        self.ids: list[int] = []
        self.task = asyncio.create_task(self._listen(office, job_id), name="listener")

    async def _listen(self, office: Office, job_id: str) -> None:
        states = office.inquiry.follow(job_id, await office.inquiry.state(job_id))
        async for frame in sse.events(states):
            if frame == sse.COMMENT:
                self.comments += 1
                continue
            fields = dict(line.split(": ", 1) for line in frame.decode().strip().split("\n"))
            self.ids.append(int(fields["id"]))
            self.events.append((fields["event"], json.loads(fields["data"])))
            self.times.append(asyncio.get_running_loop().time())


@virtual
async def test_a_job_of_the_desk_is_followed_from_its_wait_to_its_end() -> None:
    """States as the job goes on, progress in between, few a second, and last the end without any image."""
    office = Office(window=1)
    async with office.open() as client:
        office.engine.seconds = 8
        first = (await client.post(PATH, json=document("a", webhook=HOOK))).json()["id"]
        await office.at(Hop.GENERATE, first)
        job_id = (await client.post(PATH, json=document("b", webhook=HOOK))).json()["id"]
        listener = Listener(office, job_id)
        await listener.task
    kinds = [kind for kind, _ in listener.events]
    assert kinds[0] == "state"
    assert listener.events[0][1]["status"] == "waiting"
    assert kinds[-1] == "end"
    assert listener.events[-1][1]["status"] == "succeeded"
    assert "base64" not in json.dumps(listener.events)
    generating = [state["progress"] for _, state in listener.events if state.get("progress") is not None]
    assert generating == [0.25, 0.5, 0.75, 1.0][: len(generating)]
    assert len(generating) >= 3
    assert listener.ids == list(range(1, len(kinds) + 1))
    gaps = [later - earlier for earlier, later in zip(listener.times, listener.times[1:], strict=False)]
    assert min(gaps) >= inquiry.PACE_S * 0.99


@virtual
async def test_silence_is_broken_by_a_comment() -> None:
    """Every fifteen seconds, so that nothing on the way takes the connection for dead."""
    office = Office()
    async with office.open() as client:
        office.engine.seconds = 400
        job_id = (await client.post(PATH, json=document(webhook=HOOK))).json()["id"]
        listener = Listener(office, job_id)
        await office.until(lambda: any(job.progress for job in office.live))
        assert listener.comments == 6
        await client.delete(f"{PATH}/{job_id}")
        await listener.task
    assert listener.events[-1][1]["status"] == "cancelled"


@virtual
async def test_a_job_of_the_queue_is_followed_wherever_it_is() -> None:
    """Looked for every now and then while it waits there, and as it goes on while it is held here."""
    office = Office(passes_on=True, window=1)
    async with office.open() as client:
        office.engine.seconds = 10
        await client.post(PATH, json=document(id="a"), headers={"prefer": "respond-async"})
        await office.at(Hop.GENERATE, "a")
        await client.post(PATH, json=document(id="b"), headers={"prefer": "respond-async"})
        listener = Listener(office, "b")
        await listener.task
    seen = [(kind, state["status"]) for kind, state in listener.events]
    assert seen[0] == ("state", "waiting")
    assert ("progress", "running") in seen
    assert seen[-1] == ("end", "succeeded")


@virtual
async def test_events_end_when_the_worker_gives_the_job_back() -> None:
    """A job of the queue that the drain returns is nobody's here any more."""
    office = Office(passes_on=True, drain_s=5)
    async with office.open() as client:
        office.engine.seconds = 1000
        await client.post(PATH, json=document(id="a"), headers={"prefer": "respond-async"})
        await office.at(Hop.GENERATE, "a")
        listener = Listener(office, "a")
        await elapse(1)
        office.supervisor.stop()
        await listener.task
    assert all(kind != "end" for kind, _ in listener.events)


@virtual
async def test_events_end_when_nobody_knows_the_job_any_more() -> None:
    """Forgotten by its queue while it was followed."""
    office = Office(passes_on=True, window=1)
    async with office.open() as client:
        office.engine.seconds = 100
        await client.post(PATH, json=document(id="a"), headers={"prefer": "respond-async"})
        await office.at(Hop.GENERATE, "a")
        await client.post(PATH, json=document(id="b"), headers={"prefer": "respond-async"})
        listener = Listener(office, "b")
        await elapse(1)
        del office.queue._jobs.open["b"]
        await listener.task
        await client.delete(f"{PATH}/a")
    assert [state["status"] for _, state in listener.events] == ["waiting"]


@virtual
async def test_events_outlast_a_queue_that_is_away_for_a_while() -> None:
    """Who follows a job hears nothing meanwhile, and then how it went on."""
    office = Office(passes_on=True, window=1)
    async with office.open() as client:
        office.engine.seconds = 30
        await client.post(PATH, json=document(id="a"), headers=ASYNC)
        await office.at(Hop.GENERATE, "a")
        await client.post(PATH, json=document(id="b"), headers=ASYNC)
        listener = Listener(office, "b")
        await elapse(1)
        known, office.queue.state = office.queue.state, _away  # type: ignore[method-assign]
        await elapse(20)
        office.queue.state = known  # type: ignore[method-assign]
        await listener.task
    assert [state["status"] for kind, state in listener.events if kind != "progress"][-1] == "succeeded"
    assert listener.comments >= 1


async def _away(job_id: str) -> None:
    raise QueueUnavailable("nobody is there")
