"""`/v1/jobs` on real sockets: callers who go away, and events as they come."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any

import httpx
import pytest

from tests.support.office import HOOK, RULES, Office, document
from tests.support.serving import Service, serving
from tests.support.waiting import wait_until
from worker import http
from worker.desk import inquiry
from worker.live import Hop
from worker.status import Phase

PATH = "/v1/jobs"


@asynccontextmanager
async def listening(office: Office) -> AsyncIterator[Service]:
    """At work in real time, READY, behind a real socket."""
    office.engine.seconds = 0.01
    async with office.running(), serving(office.app(), "::1") as service:
        await office.status.reached(Phase.READY)
        office.engine.seconds = 100
        yield service
    await office.hooks.aclose()


def client(service: Service) -> httpx.AsyncClient:
    return http.client(loopback=True, base_url=service.url())


@asynccontextmanager
async def asking(service: Service, body: dict[str, Any], **headers: str) -> AsyncIterator[asyncio.Task[httpx.Response]]:
    """A request on a connection of its own, which is closed at the end of the block at the latest."""
    async with client(service) as caller:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        task = asyncio.create_task(caller.post(PATH, json=body, headers=named), name="caller")
        try:
            yield task
        finally:
            task.cancel()
            await asyncio.wait({task})


def answering() -> list[str]:
    """The requests that the service is at work on."""
    return [task.get_name() for task in asyncio.all_tasks() if "run_asgi" in repr(task.get_coro())]


def generating(office: Office) -> bool:
    return any(job.hop is Hop.GENERATE for job in office.live)


@pytest.mark.parametrize("cancels", [True, False])
async def test_a_caller_who_goes_away_takes_his_job_along(cancels: bool) -> None:
    """The engine is interrupted and free for the next, unless the operator wants every job done."""
    office = Office(rules=replace(RULES, cancel_on_disconnect=cancels), drain_s=0)
    async with listening(office) as service:
        async with asking(service, document()):
            await wait_until(lambda: generating(office))
            (ticket,) = office.desk.tickets
        if cancels:
            ended = await ticket.over()
            assert ended.result.status == "cancelled"
            assert office.engine.interrupted == [ticket.id]
            return
        await wait_until(lambda: ticket.waiters == 0)
        assert ticket.ended is None
        assert await office.desk.cancel(ticket.id)
        await ticket.over()


async def test_a_job_for_which_somebody_else_waits_goes_on() -> None:
    """Two callers with one key: the first to go leaves the job to the other; so does one to whom it was promised."""
    office = Office(hook=HOOK, drain_s=0)
    async with listening(office) as service:
        async with asking(service, document(), idempotency_key="k"):
            await wait_until(lambda: generating(office))
            (ticket,) = office.desk.tickets
            async with asking(service, document(), idempotency_key="k"):
                await wait_until(lambda: ticket.waiters == 2)
            await wait_until(lambda: ticket.waiters == 1)
            assert ticket.ended is None
            async with client(service) as other:
                named = {"idempotency-key": "k", "prefer": "respond-async"}
                promised = await other.post(PATH, json=document(), headers=named)
                assert (promised.status_code, promised.json()["id"]) == (202, ticket.id)
        await wait_until(lambda: ticket.waiters == 0)
        assert ticket.ended is None
        assert await office.desk.cancel(ticket.id)
        await ticket.over()


async def test_a_job_that_goes_on_after_504_is_nobodys_to_take_along() -> None:
    """Whoever was told that it goes on may ask for it later, however short another waits for it with the same key."""
    office = Office(rules=replace(RULES, timeout=timedelta(seconds=0.2)), drain_s=0)
    async with listening(office) as service:
        async with asking(service, document(), idempotency_key="k") as late:
            assert (await late).status_code == 504
        (ticket,) = office.desk.tickets
        async with asking(service, document(), idempotency_key="k"):
            await wait_until(lambda: ticket.waiters == 1)
        await wait_until(lambda: ticket.waiters == 0)
        assert ticket.ended is None
        assert await office.desk.cancel(ticket.id)
        await ticket.over()


async def test_events_come_as_things_happen_and_leave_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each as soon as it is there, comments in between, whatever the client says that it saw; who hangs up is
    forgotten."""
    monkeypatch.setattr(inquiry, "SILENCE_S", 0.3)
    office = Office(drain_s=0)
    async with listening(office) as service, client(service) as caller:
        job_id = (await caller.post(PATH, json=document(webhook=HOOK))).json()["id"]
        await wait_until(lambda: generating(office))
        seen: list[str] = []
        async with caller.stream("GET", f"{PATH}/{job_id}/events", headers={"last-event-id": "no number"}) as stream:
            assert stream.headers["content-type"].startswith("text/event-stream")
            assert stream.headers["cache-control"] == "no-store"
            async for line in stream.aiter_lines():
                seen.append(line)
                if line.startswith(":"):
                    break
            assert len(answering()) == 1
        assert seen[:2] == ["id: 1", "event: state"]
        assert json.loads(seen[2].removeprefix("data: "))["status"] == "running"
        await wait_until(lambda: not answering())
        async with caller.stream("GET", f"{PATH}/{job_id}/events") as stream:
            lines = stream.aiter_lines()
            assert await anext(lines) == "id: 1"
            await caller.delete(f"{PATH}/{job_id}")
            rest = [line async for line in lines]
        assert "event: end" in rest
        assert json.loads(rest[-2].removeprefix("data: "))["status"] == "cancelled"


async def test_paths_that_are_no_id_lead_nowhere() -> None:
    """Neither out of the store nor to another route."""
    office = Office(drain_s=0)
    async with listening(office) as service, client(service) as caller:
        for name in ("..%2f..%2fetc", "%2e%2e", "a%00b", "-a", "a" * 129, "a%0a", "%ff"):
            answer = await caller.get(f"{PATH}/{name}")
            assert answer.status_code in (404, 405, 422), name
            assert answer.headers["content-type"] == "application/problem+json"
