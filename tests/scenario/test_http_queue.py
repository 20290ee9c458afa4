"""Jobs over HTTP that the configured queue takes, and what is told when it is away."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from tests.support.office import ASYNC, PATH, Office, SharedStorage, document, shared, until_over
from tests.support.virtual import VirtualClock, virtual
from worker.errors import QueueUnavailable
from worker.live import Hop
from worker.queues.memory import MemoryQueue


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
