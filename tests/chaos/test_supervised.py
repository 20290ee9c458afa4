"""The worker that owns its server, at length: killed servers, hanging ones, leaking ones, and impossible jobs."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from tests.chaos.conftest import Figures
from tests.support.supervised import STEPS, Kind, Supervised, kill_at_work, supervised

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(600)]

KILLS = 10


def line(what: str, around: Supervised, began: float, *more: str) -> str:
    return ", ".join((f"{what}: {len(around.wanted)} jobs", *more, f"{time.monotonic() - began:.0f} s"))


@pytest.mark.parametrize("kind", ["sdnext", "comfyui"])
async def test_a_server_killed_ten_times_at_work(kind: Kind, tmp_path: Path, figures: Figures) -> None:
    """Every job ends in success, each restart is counted once, no process is left, and the node is not given up."""
    began = time.monotonic()
    async with supervised(kind, tmp_path, step_seconds=0.03) as around, around.worker() as life:
        await around.submit_many(15, steps=STEPS)
        killed = await kill_at_work(life, random.Random(10), KILLS, within_s=0.7)
        await life.jobs_ended(seconds=120)
        assert set(killed.values()) == {1}
        assert await life.restarts() == {"engine_lost": KILLS}
        assert life.events("node_given_up") == []
        await life.drained()
        ledger = await around.ledger()
    assert ledger.breaches() == []
    lost = [one for state in ledger.states for one in state.attempts if one.code == "engine_lost"]
    assert [one.charged for one in lost] == [False] * KILLS
    figures(line(f"{kind} killed at work", around, began, f"{KILLS} kills", f"{len(lost)} attempts lost"))


@pytest.mark.parametrize("kind", ["sdnext", "comfyui", "fooocus"])
async def test_a_server_that_hangs(kind: Kind, tmp_path: Path, figures: Figures) -> None:
    """At the worker's own pace: no progress, deaf to interrupts, restarted, and the job done all the same."""
    began = time.monotonic()
    async with supervised(kind, tmp_path) as around, around.worker(WORKER_STALL_TIMEOUT="2s") as life:
        await life.ready()
        await around.turn(arm={"kind": "hang", "prompt": "stuck"})
        await around.submit("stuck")
        await around.submit_many(2)
        await life.jobs_ended(seconds=120)
        assert await around.codes("stuck") == [("engine_stalled", False), ("succeeded", False)]
        assert await life.restarts() == {"engine_stalled": 1}
        await life.drained()
        assert (await around.ledger()).breaches() == []
    figures(line(f"{kind} hangs", around, began))


@pytest.mark.parametrize(("fault", "code"), [("oom", "engine_oom"), ("exit", "delivery_limit")])
async def test_one_users_impossible_jobs(fault: str, code: str, tmp_path: Path, figures: Figures) -> None:
    """Ten jobs that always break the server, among ten others that all succeed; the node stays."""
    began = time.monotonic()
    async with supervised("sdnext", tmp_path, faults=[{"kind": fault, "times": None, "prompt": "bad"}]) as around:
        limits = {"WORKER_QUEUE_MAX_ATTEMPTS": "1", "WORKER_QUEUE_MAX_DELIVERIES": "1"}
        async with around.worker(WORKER_ENGINE_RESTARTS="2/10m", **limits) as life:
            for number in range(10):
                await around.submit(f"bad-{number}", code=code)
                await around.submit(f"good-{number}")
            await life.jobs_ended(seconds=180)
            assert await life.restarts() == {"engine_oom" if fault == "oom" else "engine_lost": 10}
            assert life.events("warm_up_failed") == []
            await life.drained()
        states = {state.id: state for state in (await around.ledger()).states}
    assert {state.code for job, state in states.items() if job.startswith("bad")} == {code}
    assert {state.status for job, state in states.items() if job.startswith("good")} == {"done"}
    figures(line(f"impossible jobs, {fault}", around, began, "10 restarts"))


async def test_a_server_that_leaks_for_long(tmp_path: Path, figures: Figures) -> None:
    """At the worker's own pace: restarted between jobs again and again, never above what it may hold."""
    began, most, interrupts = time.monotonic(), 0, 0
    leaky = {"cache": "none", "leak_bytes_per_load": 40 << 20}
    async with supervised("comfyui", tmp_path, step_seconds=0.25, **leaky) as around:
        async with around.worker(WORKER_ENGINE_MEMORY_MAX="300MB") as life:
            await around.submit_many(20)

            async def over() -> bool:
                nonlocal most, interrupts
                most = max(most, life.memory())
                interrupts = max(interrupts, (await around.stats()).get("interrupts", 0))
                return len(around.receiver.ended()) == len(around.wanted)

            await life.until(over, seconds=180)
            restarts = await life.restarts()
            await life.drained()
        ledger = await around.ledger()
    assert restarts.keys() == {"engine_memory"}
    assert restarts["engine_memory"] >= 3
    assert (most <= 300_000_000, interrupts) == (True, 0)
    assert ledger.breaches() == []
    assert {len(state.attempts) for state in ledger.states} == {1}
    figures(line("leaking", around, began, f"{restarts['engine_memory']} restarts", f"{most / 1e6:.0f} MB at most"))
