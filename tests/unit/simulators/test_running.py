"""What is seen of a running generation, and what stops it."""

from __future__ import annotations

import asyncio
import itertools
from functools import partial
from typing import Any

import pytest

from tests.support.sims import A1111, ALL, SDNEXT, Sim, in_background, info, picture, simulated
from tests.support.waiting import wait_until
from worker.simulators import Knobs

STEPS: dict[str, Any] = {"steps": 4000}


def long_knobs() -> Knobs:
    """Steps slow enough to be watched."""
    return Knobs(step_seconds=0.01)


@pytest.mark.parametrize("dialect", ALL)
async def test_progress_tells_of_the_running_job_and_of_none_when_idle(dialect: str) -> None:
    """Zero and no job when idle; the step, a fraction and an estimate while it runs."""
    async with simulated(dialect, long_knobs()) as s:
        idle = (await s.get("progress")).json()
        async with in_background(s.generate(**STEPS)):
            await s.began()
            await wait_until(lambda: s.sim.machine.state.sampling_step > 2)
            busy = (await s.get("progress")).json()
            bare = (await s.get("progress", params={"skip_current_image": "true"})).json()
    assert (idle["progress"], idle["state"]["job_count"], idle["current_image"]) == (0, 0, None)
    assert busy["progress"] > 0
    assert busy["eta_relative"] > 0
    assert (busy["state"]["job_count"], busy["state"]["sampling_steps"]) == (1, 4000)
    assert ("id" in busy) == (dialect == "sdnext")
    assert ("stopping_generation" in busy["state"]) == (dialect in A1111)
    assert busy["current_image"]
    assert bare["current_image"] is None


@pytest.mark.parametrize("dialect", A1111)
async def test_progress_stands_at_one_hundredth_while_a_model_loads(dialect: str) -> None:
    """job_count is -1 until the model is there."""
    async with simulated(dialect, Knobs(load_seconds=30)) as s:
        override = {"sd_model_checkpoint": "sd_xl_base_1.0.safetensors"}
        async with in_background(s.generate(override_settings=override)):
            await wait_until(lambda: s.sim.machine.state.job_count == -1)
            progress = (await s.get("progress")).json()
    assert (progress["progress"], progress["state"]["job_count"]) == (0.01, -1)


async def test_status_of_sdnext() -> None:
    """idle, running with the step, and interrupted after an interrupt or an error."""
    async with simulated("sdnext", long_knobs()) as s:
        idle = (await s.get("status")).json()
        async with in_background(s.generate(**STEPS)) as request:
            await s.began()
            busy = (await s.get("status")).json()
            await s.post("interrupt")
            await request
        after = (await s.get("status")).json()
    assert (idle["status"], idle["jobs"]) == ("idle", 0)
    assert (busy["status"], busy["task"], busy["steps"]) == ("running", "Inference", 4000)
    assert (after["status"], after["jobs"]) == ("interrupted", 0)


@pytest.mark.parametrize("dialect", ALL)
async def test_interrupt_ends_the_job_with_what_the_dialect_returns(dialect: str) -> None:
    """200 each time: unfinished pictures from Automatic1111, none from SD.Next unless a poll has made a preview."""
    async with simulated(dialect, long_knobs()) as s:
        async with in_background(s.generate(batch_size=2, n_iter=2, **STEPS)) as request:
            await s.began()
            answer = await s.post("interrupt")
            response = await request
        assert s.sim.stats.generations[0].interrupted
        assert s.sim.stats.interrupts == 1
        await s.generate()
        assert not s.sim.stats.generations[1].interrupted
    assert (answer.status_code, answer.text) == ((204, "") if dialect == "sdnext" else (200, "{}"))
    assert response.status_code == 200
    assert len(response.json()["images"]) == (0 if dialect in SDNEXT else 2)
    assert info(response)["prompt"] == "a cat"


@pytest.mark.parametrize(
    ("dialect", "keep", "polls", "images"),
    [("sdnext", True, True, 1), ("sdnext", False, True, 0), ("sdnext", True, False, 0), ("sdnext-2023", True, True, 0)],
)
async def test_a_polled_preview_becomes_the_result(dialect: str, keep: bool, polls: bool, images: int) -> None:
    """Only on the current SD.Next, only after a poll of the progress, only with keep_incomplete."""
    async with simulated(dialect, long_knobs()) as s:
        await s.post("options", {"keep_incomplete": keep})
        async with in_background(s.generate(**STEPS)) as request:
            await s.began()
            if polls:
                await s.get("progress", params={"skip_current_image": "true"})
            await s.post("interrupt")
            response = await request
    assert len(response.json()["images"]) == images


@pytest.mark.parametrize("dialect", ALL)
async def test_an_interrupt_that_comes_before_the_job_is_lost(dialect: str) -> None:
    """The flag is cleared when a job begins."""
    async with simulated(dialect) as s:
        await s.post("interrupt")
        response = await s.generate()
    assert len(response.json()["images"]) == 1


@pytest.mark.parametrize(("dialect", "lost"), [("sdnext", True), ("a1111", False)])
async def test_an_interrupt_during_a_load_is_lost_on_sdnext(dialect: str, lost: bool) -> None:
    """SD.Next clears the flag with each part of a job, Automatic1111 remembers it."""
    title = "sd_xl_base_1.0" if dialect == "sdnext" else "sd_xl_base_1.0.safetensors"
    async with simulated(dialect, Knobs(load_seconds=0.5)) as s:
        override = {"sd_model_checkpoint": title}
        stays = s.generate(override_settings=override, override_settings_restore_afterwards=False)
        async with in_background(stays) as request:
            await wait_until(lambda: s.sim.machine.state.total >= (2 if lost else 1))
            await s.post("interrupt")
            await request
        assert s.sim.stats.generations[0].interrupted != lost


@pytest.mark.parametrize("dialect", ALL)
async def test_skip_drops_the_picture_at_hand(dialect: str) -> None:
    """SD.Next returns nothing; Automatic1111 goes on with the next round and returns the unfinished one too."""
    async with simulated(dialect, Knobs(step_seconds=0.002)) as s:
        async with in_background(s.generate(n_iter=2, steps=200)) as request:
            await s.began()
            answer = await s.post("skip")
            response = await request
        assert not s.sim.stats.generations[0].interrupted
    assert (answer.status_code, answer.text) == ((204, "") if dialect == "sdnext" else (200, "null"))
    assert len(response.json()["images"]) == (0 if dialect in SDNEXT else 2)


async def queued(s: Sim, count: int) -> list[str]:
    """The prompts in the order in which they ran: "first", and so many that queued behind it one after the other."""
    async with in_background(s.generate("first", **STEPS)) as first:
        await s.began()
        later = []
        for n in range(count):
            later.append(asyncio.create_task(s.generate(str(n)), name=f"later {n}"))
            await wait_until(partial(holds, s, n + 2))
        await s.post("interrupt")
        await asyncio.gather(first, *later)
    return [run.prompt for run in s.sim.stats.generations]


def holds(s: Sim, count: int) -> bool:
    """Whether so many requests are inside the server."""
    return s.sim.stats.in_flight == count


@pytest.mark.parametrize("dialect", ALL)
async def test_one_generation_at_a_time_and_who_is_next(dialect: str) -> None:
    """Requests queue inside: in order on Automatic1111, by chance on SD.Next and Forge."""
    async with simulated(dialect, Knobs(step_seconds=0.01, random_seed=3)) as s:
        order = await queued(s, 8)
        runs = s.sim.stats.generations
        assert all(a.finished is not None and a.finished <= b.started for a, b in itertools.pairwise(runs))
        assert s.sim.stats.max_in_flight == 9
    came = ["first", *map(str, range(8))]
    assert sorted(order) == sorted(came)
    assert (order == came) == (dialect in ("a1111", "a1111-1.7"))


@pytest.mark.parametrize("dialect", ["sdnext", "a1111"])
async def test_a_client_that_hangs_up_does_not_stop_the_work(dialect: str) -> None:
    """The job goes on and holds the lock; only an interrupt stops it."""
    async with simulated(dialect, long_knobs()) as s:
        async with in_background(s.generate(**STEPS)):
            await s.began()
        reached = s.sim.machine.state.sampling_step
        await wait_until(lambda: s.sim.machine.state.sampling_step > reached + 5)
        assert s.sim.stats.generations[0].finished is None
        await s.post("interrupt")
        await wait_until(lambda: s.sim.stats.generations[0].finished is not None)
        assert s.sim.stats.generations[0].interrupted


@pytest.mark.parametrize("dialect", ALL)
async def test_after_an_exception_sdnext_looks_busy(dialect: str) -> None:
    """job_count stays up until the next job; Automatic1111 puts it down."""
    async with simulated(dialect) as s:
        s.sim.knobs.arm("error_500", text="boom")
        failed = await s.generate()
        stuck = (await s.get("progress")).json()["state"]["job_count"]
        await s.generate()
        after = (await s.get("progress")).json()["state"]["job_count"]
    assert failed.status_code == 500
    assert (stuck > 0) == (dialect in SDNEXT)
    assert after == 0


async def test_a_selection_without_lock_ruins_the_pipeline() -> None:
    """POST /checkpoint during a generation: no pictures from then on, until a real switch."""
    async with simulated("sdnext", long_knobs()) as s:
        async with in_background(s.generate(steps=30)) as request:
            await s.began()
            assert (await s.post("checkpoint", params={"sd_model_checkpoint": "sd_xl_base_1.0"})).json() == {
                "ok": False
            }
            await request
        ruined = await s.generate()
        await s.post("options", {"sd_model_checkpoint": "sd_xl_base_1.0"})
        sound = await s.generate()
    assert (ruined.status_code, ruined.json()["images"]) == (200, [])
    assert len(sound.json()["images"]) == 1


async def test_all_answers_wait_when_the_thread_pool_is_full() -> None:
    """More requests in flight than threads, and even a status poll hangs."""
    async with simulated("sdnext", Knobs(step_seconds=0.01, threads=2)) as s, in_background(s.generate(steps=20)):
        await s.began()
        async with in_background(s.generate(**STEPS)) as two:
            await wait_until(partial(holds, s, 2))
            await s.get("status")
            assert [g.finished is not None for g in s.sim.stats.generations][:1] == [True]
            await s.began(2)
            await s.post("interrupt")
            await two


async def test_unfinished_pictures_are_blurred() -> None:
    """What comes back after an interrupt is not the picture that was asked for."""
    async with simulated("a1111", long_knobs()) as s:
        whole = picture(await s.generate())
        async with in_background(s.generate(**STEPS)) as request:
            await s.began()
            await s.post("interrupt")
            partial = picture(await request)
    assert whole.size == partial.size
    assert whole.tobytes() != partial.tobytes()


async def test_statistics_tell_the_duty_of_the_gpu() -> None:
    """Busy seconds over the time from the first start to the last end."""
    async with simulated("sdnext", Knobs(step_seconds=0.01, overhead_seconds=0.05)) as s:
        assert s.sim.stats.duty is None
        await s.generate(steps=5)
        await s.generate(steps=5)
        document = (await s.client.get("/simulator/stats")).json()
    runs = document["generations"]
    assert document["busy_seconds"] == pytest.approx(sum(r["finished"] - r["started"] for r in runs))
    assert document["busy_seconds"] >= 0.2
    assert 0 < document["duty"] <= 1
    assert document["requests"]["POST /sdapi/v1/txt2img"] == 2
