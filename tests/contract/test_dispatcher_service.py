"""The dispatcher as a process among others: webhooks, frozen workers, its end, several of it on one database."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from tests.support.dispatching import MODEL, a_job, dispatching
from tests.support.receiver import Receiver
from tests.support.waiting import wait_until


async def test_webhooks_of_jobs_that_end_here(tmp_path: Path) -> None:
    """Withdrawn and expired jobs are told to the job's own receiver, signed, under the ids that a worker would use."""
    secret = "whsec_" + "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
    async with Receiver(secret=secret) as receiver, dispatching(tmp_path, WEBHOOK_SECRET=secret) as talk:
        hook = {"url": receiver.url("/hook"), "events": ["cancelled", "failed"]}
        await talk.submit(
            a_job("late", webhook=hook, deadline="2020-01-01T00:00:00Z"),
            a_job("gone", webhook=hook),
            a_job("quiet", webhook={**hook, "events": ["succeeded"]}),
        )
        await talk.client.delete("/jobs/gone")
        await talk.client.delete("/jobs/quiet")
        await wait_until(lambda: len(receiver.taken) == 2)
        told = {document["data"]["id"]: document for document in receiver.documents}
        assert {one: document["type"] for one, document in told.items()} == {
            "late": "job.failed",
            "gone": "job.cancelled",
        }
        assert told["late"]["data"]["error"]["code"] == "expired"
        assert not receiver.refused


async def test_a_frozen_worker_that_wakes_up_changes_nothing(tmp_path: Path) -> None:
    """Its lease ran out and another did the job: what it brings is refused, and the result that stands stays."""
    async with dispatching(tmp_path, LEASE="1s", NODE_TIMEOUT="1s") as talk:
        frozen = await talk.given()
        other: dict[str, Any] = {}

        async def taken_over() -> bool:
            other.update((await talk.ask(id="n2", loaded=(MODEL,))).get("generation") or {})
            return bool(other)

        await wait_until(taken_over)
        assert other["token"] > frozen["token"]
        assert (await talk.end(other, metadata={"by": "n2"})).status_code == 204
        assert (await talk.end(frozen, metadata={"by": "n1"})).status_code == 409
        assert (await talk.release(frozen)).status_code == 409
        assert (await talk.beat(frozen))["lost"] == ["j1"]
        row = await talk.job("j1")
        assert (row["status"], row["result"]["metadata"]) == ("done", {"by": "n2"})
        assert [attempt["code"] for attempt in other["attempts"]] == [None]


async def test_stopping_answers_held_requests_at_once(tmp_path: Path) -> None:
    """They get nothing, to ask again elsewhere; readiness says why."""
    async with dispatching(tmp_path) as talk:
        asking = asyncio.create_task(talk.ask(wait=50), name="asking")
        await wait_until(lambda: talk.view.desk.polls)
        talk.view.upkeep.health.stopping = True
        talk.view.desk.stop()
        answer = await asking
        assert "generation" not in answer
        assert answer["retry_after"] > 0
        ready = await talk.client.get("/ready")
        assert (ready.status_code, ready.json()["reasons"]) == (503, ["stopping"])
        assert "generation" not in await talk.ask(wait=50)


async def test_two_processes_on_one_database_share_everything(tmp_path: Path) -> None:
    """What is submitted to one is given by the other, which knows the nodes of the first too."""
    async with dispatching(tmp_path) as one:
        url = one.view.settings.serve.database_url.get_secret_value()
        async with dispatching(url) as two:
            asking = asyncio.create_task(two.ask(loaded=(MODEL,), wait=30), name="asking")
            await wait_until(lambda: two.view.desk.polls)
            await one.submit(a_job("j1"))
            job = (await asking)["generation"]
            await wait_until(lambda: "n1" in one.view.fleet)
            assert one.view.fleet.warm("checkpoint/dreamshaper_8") == 1
            assert (await one.end(job)).status_code == 204
            assert (await two.job("j1"))["status"] == "done"
