"""Callers in a server's own language who wait too long, go away, or are at the wrong server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx

from tests.support.bench import PATIENCE_S, RunningWorker, running_worker
from tests.support.sims import in_background
from tests.support.waiting import wait_until
from worker.simulators import Knobs, Simulator

SMALL = {"prompt": "slow", "seed": 7, "steps": 4, "width": 64, "height": 64}
PLAIN: dict[str, Any] = {"WORKER_QUEUE": "none", "WORKER_WARMUP": "none", "WORKER_ENGINE": "a1111"}


def hanging() -> Knobs:
    knobs = Knobs()
    knobs.arm("hang", prompt="slow")
    return knobs


def released(worker: RunningWorker[Simulator]) -> bool:
    """Let go on what hangs by now."""
    worker.sim.release()
    return True


async def test_an_answer_that_would_come_too_late(tmp_path: Path) -> None:
    """504 with the id; the same request with the same key gets the images once they are there, and so does whoever
    asks for the job itself."""
    async with running_worker(tmp_path, "a1111", hanging(), WORKER_HTTP_TIMEOUT="0.2s", **PLAIN) as worker:

        async def ask() -> httpx.Response:
            headers = {"idempotency-key": "k1"}
            return await worker.client.post("/sdapi/v1/txt2img", json=SMALL, headers=headers, timeout=PATIENCE_S)

        late = await ask()
        assert (late.status_code, late.json()["code"]) == (504, "still_running")
        assert late.json()["id"] in late.json()["detail"]

        async def arrived() -> bool:
            return released(worker) and (await ask()).status_code == 200

        await wait_until(arrived, PATIENCE_S)
        (image,) = (await ask()).json()["images"]
        state = (await worker.client.get(f"/v1/jobs/{late.json()['id']}")).json()
        assert [one["base64"] for one in state["result"]["images"]] == [image]
    assert len(worker.sim.stats.generations) == 1


async def test_a_caller_who_hangs_up(tmp_path: Path) -> None:
    """His job is cancelled, as every synchronous one is, and the server is free for the next."""
    async with running_worker(tmp_path, "a1111", Knobs(step_seconds=0.02), **PLAIN) as worker:
        async with in_background(worker.client.post("/sdapi/v1/txt2img", json={**SMALL, "steps": 150})) as job:
            await wait_until(lambda: worker.sim.machine.state.sampling)
            job.cancel()
            await wait_until(lambda: not worker.sim.machine.state.sampling, PATIENCE_S)
        assert worker.sim.stats.interrupts > 0
        worker.sim.knobs.step_seconds = 0.001
        answer = await worker.client.post("/sdapi/v1/txt2img", json=SMALL, timeout=PATIENCE_S)
        assert answer.status_code == 200


async def test_the_server_turned_out_to_be_another(tmp_path: Path) -> None:
    """While nobody has said which it is, endpoints of all kinds are there; only its own do anything."""
    async with running_worker(tmp_path, "a1111", **{**PLAIN, "WORKER_ENGINE": "auto"}) as worker:
        assert (await worker.client.get("/sdapi/v1/samplers")).status_code == 200
        refused = await worker.client.get("/v1/engines/styles")
        assert (refused.status_code, refused.json()["code"]) == (404, "not_found")
        assert "a1111" in refused.json()["detail"]


async def test_a_bad_image_is_the_callers_fault(tmp_path: Path) -> None:
    """Though the servers answer 500: nobody else is kept from his turn for it."""
    async with running_worker(tmp_path, "a1111", **PLAIN) as worker:
        response = await worker.client.post("/sdapi/v1/png-info", json={"image": "aaaa"})
        assert (response.status_code, response.json()["code"]) == (422, "generation_rejected")
        assert (await worker.probe("ready"))[0] == 200
