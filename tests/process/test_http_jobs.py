"""`/v1/jobs` of the worker as it is put together: real queue file, real folder, real server, real receiver."""

from __future__ import annotations

import asyncio
import base64
from pathlib import Path
from typing import Any

from tests.support.bench import PATIENCE_S, RunningWorker, params, running_worker
from tests.support.receiver import ScriptedServer
from tests.support.waiting import wait_until
from worker.simulators import Knobs

PATH = "/v1/jobs"
ASYNC = {"prefer": "respond-async"}
KEY = {"x-api-key": "sesame"}


async def over(worker: RunningWorker[Any], job_id: str, headers: dict[str, str]) -> dict[str, Any]:
    """The state of a job once it is over."""
    found: dict[str, Any] = {}

    async def is_over() -> bool:
        found.update((await worker.client.get(f"{PATH}/{job_id}", headers=headers)).json())
        return found.get("status") in ("succeeded", "failed", "cancelled")

    await wait_until(is_over, PATIENCE_S)
    return found


async def test_with_a_queue_jobs_go_either_way(tmp_path: Path) -> None:
    """Asynchronous ones to the queue, to be found there and in the folder; synchronous ones past it."""
    async with running_worker(tmp_path, WORKER_API_KEY="sesame") as worker:
        body = {"id": "mine", "params": params()}
        answer = await worker.client.post(PATH, json=body, headers={**KEY, **ASYNC})
        assert (answer.status_code, answer.headers["location"]) == (202, f"{PATH}/mine")
        state = await over(worker, "mine", KEY)
        assert state["result"]["images"][0]["url"].startswith("file://")
        assert (await worker.state("mine")).status == "done"
        again = await worker.client.post(PATH, json=body, headers={**KEY, **ASYNC})
        assert again.json()["status"] == "succeeded"
        direct = await worker.client.post(PATH, json=body, headers=KEY)
        assert base64.b64decode(direct.json()["images"][0]["base64"])[:4] == b"\x89PNG"
        assert (await worker.client.get(f"{PATH}/mine")).status_code == 401
        events = await worker.client.get(f"{PATH}/mine/events", headers=KEY)
        assert events.text.startswith("id: 1\nevent: end\n")


async def test_images_go_to_where_the_job_says(tmp_path: Path) -> None:
    """Presigned URLs over HTTP as in queues: the result names them and holds nothing; a bad place names its field."""
    async with (
        ScriptedServer() as place,
        running_worker(tmp_path, WORKER_QUEUE="none", WORKER_URLS_ALLOW_PRIVATE="true") as worker,
    ):
        url = place.url("/0.png?signature=secret")
        answer = await worker.client.post(PATH, json={"params": params(), "output": {"upload_urls": [url]}})
        image = answer.json()["images"][0]
        assert (answer.status_code, image["url"]) == (200, place.url("/0.png"))
        assert "base64" not in image
        assert [(one.method, one.body[:4]) for one in place.requests] == [("PUT", b"\x89PNG")]
        few = {"params": params(batch_size=2), "output": {"upload_urls": [url]}}
        refused = await worker.client.post(PATH, json=few)
        assert refused.status_code == 422
        assert [one["field"] for one in refused.json()["errors"]] == ["output.upload_urls"]
        assert refused.json()["result"]["status"] == "failed"


async def test_a_drain_tells_callers_and_owners(tmp_path: Path) -> None:
    """The caller at once, by 503; the owner of the other job by webhook, before the worker is gone."""
    knobs = Knobs(step_seconds=1.0)
    async with running_worker(tmp_path, knobs=knobs, WORKER_QUEUE="none", WORKER_WARMUP="none") as worker:
        long = params(steps=100)
        promised = await worker.client.post(PATH, json={"params": long}, headers=ASYNC)
        caller = asyncio.create_task(worker.client.post(PATH, json={"params": long}), name="caller")
        job_id = promised.json()["id"]

        async def both_are_in() -> bool:
            return bool((await worker.status())["desk"]["waiting"] == 1)

        await wait_until(both_are_in, PATIENCE_S)
        worker.supervisor.stop()
        answer = await caller
        assert (answer.status_code, answer.json()["code"]) == (503, "draining")
        assert int(answer.headers["retry-after"]) > 0
        await wait_until(worker.process.done, PATIENCE_S)
        assert worker.told(job_id) == ["job.failed"]
        (told,) = [one["data"] for one in worker.receiver.documents if one["data"]["id"] == job_id]
        assert (told["error"]["code"], told["error"]["retryable"]) == ("draining", True)
