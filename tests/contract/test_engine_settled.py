"""Servers as they are found after a life of their own: interrupted jobs, stored settings, no model selected."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from tests.support.engines import ALL, bench
from tests.support.waiting import wait_until
from worker.engines.sdapi.run import Pace
from worker.simulators import Knobs


@pytest.mark.parametrize("dialect", ALL)
async def test_what_an_interrupted_job_leaves_behind_is_not_work(dialect: str) -> None:
    """The step and the flag of a job that was cut short stay in sight; nothing is interrupted or waited for."""
    async with (
        bench(dialect, Knobs(step_seconds=0.01), pace=Pace(poll_s=0.02, interrupt_s=0.02, quiet_s=30)) as b,
        httpx.AsyncClient(base_url=b.sim.url, trust_env=False, timeout=20) as other,
    ):
        body = {"prompt": "a cat", "steps": 4000, "width": 64, "height": 64}
        request = asyncio.create_task(other.post("/sdapi/v1/txt2img", json=body), name="another's")
        await wait_until(lambda: b.sim.machine.state.sampling_step > 2)
        await other.post("/sdapi/v1/interrupt")
        await request
        assert not await b.busy()
        await b.make()
        assert b.sim.stats.interrupts == 1
