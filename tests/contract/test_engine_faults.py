"""Every server of the family at its worst: what it answers, what it leaves running, when it hangs."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from tests.support.engines import A1111, ALL, SDNEXT, bench, small
from tests.support.pictures import opened
from tests.support.waiting import wait_until
from worker import http
from worker.engines.sdapi.run import Pace
from worker.errors import (
    EngineCrashed,
    EngineFault,
    EngineOutOfMemory,
    EngineStalled,
    GenerationRejected,
    GpuFault,
    OutputEmpty,
    OutputMismatch,
    WorkerError,
    WrongModel,
)
from worker.simulators import Knobs

every = pytest.mark.parametrize("dialect", ALL)


FAULTS: list[tuple[Any, dict[str, Any], type[WorkerError]]] = [
    ("empty", {}, OutputEmpty),
    ("short_count", {}, OutputEmpty),
    ("wrong_size", {}, OutputMismatch),
    ("wrong_model", {}, WrongModel),
    ("wrong_seed", {}, OutputMismatch),
    ("not_an_image", {}, OutputMismatch),
    ("oom", {}, EngineOutOfMemory),
    ("error_500", {}, GpuFault),
    ("error_500", {"error": "TypeError", "text": "unhashable"}, OutputEmpty),
    ("error_500", {"error": "KeyError", "text": "'x'"}, GenerationRejected),
    ("error_500", {"text": "CUDA out of memory."}, EngineOutOfMemory),
    ("crash_mid_body", {}, EngineCrashed),
]


@every
async def test_a_fault_is_told_for_what_it_is(dialect: str) -> None:
    """Each way in which a server fails or lies becomes its own error, and the next job works."""
    async with bench(dialect) as b:
        for kind, fault, error in FAULTS:
            b.sim.knobs.arm(kind, **fault)
            with pytest.raises(error) as caught:
                await b.make(small(batch_size=2))
            assert type(caught.value) is error, kind
            assert (await b.make()).images


@every
@pytest.mark.parametrize("kind", ["exit", "restart"])
async def test_a_server_that_goes_away_is_told(dialect: str, kind: Any) -> None:
    """A connection that breaks in the middle of a generation is a crash."""
    async with bench(dialect) as b:
        b.sim.knobs.arm(kind)
        with pytest.raises(EngineCrashed):
            await b.make()


@pytest.mark.parametrize("dialect", ["a1111", "a1111-1.7"])
async def test_nan_gives_no_picture(dialect: str) -> None:
    """Automatic1111 answers an error where others send a black picture: there is nothing that could go out."""
    async with bench(dialect) as b:
        b.sim.knobs.arm("nan")
        with pytest.raises(OutputEmpty, match="NansException"):
            await b.make()


@every
async def test_a_preview_alone_is_no_picture(dialect: str) -> None:
    """The live preview as the only result has the wrong size."""
    async with bench(dialect) as b:
        b.sim.knobs.arm("preview")
        with pytest.raises(OutputMismatch, match="pixels instead of"):
            await b.make()


@pytest.mark.parametrize("dialect", ["sdnext", "sdnext-2023", "forge"])
async def test_a_black_picture_is_left_to_who_opens_it(dialect: str) -> None:
    """Servers that do not check for NaN send a black one: a picture as far as its header goes."""
    async with bench(dialect) as b:
        b.sim.knobs.arm("nan")
        image = opened((await b.make()).images[0].data)
        assert image.convert("L").getextrema() == (0, 0)


async def test_a_rate_limit_is_lifted() -> None:
    """SD.Next counts after the work; the limit is turned off once more, and the job done again."""
    async with bench("sdnext") as b:
        b.sim.options["server_rate_limit"] = 300
        b.sim.knobs.arm("rate_limited")
        assert (await b.make()).images
        assert b.sim.options["server_rate_limit"] == 0
        b.sim.knobs.arm("rate_limited", times=2)
        with pytest.raises(EngineFault) as caught:
            await b.make()
        assert type(caught.value) is EngineFault


@pytest.mark.parametrize("dialect", SDNEXT)
async def test_a_state_left_busy_by_an_exception_does_not_block(dialect: str) -> None:
    """SD.Next forgets to end its state after an exception and looks busy for ever."""
    async with bench(dialect, pace=Pace(poll_s=0.02, interrupt_s=0.02, quiet_s=30)) as b:
        b.sim.knobs.arm("error_500", error="TypeError", text="odd")
        with pytest.raises(OutputEmpty):
            await b.make()
        assert b.sim.machine.state.job_count != 0
        assert not (await b.engine.look()).busy
        async with asyncio.timeout(10):
            assert (await b.make()).images


@pytest.mark.parametrize("dialect", SDNEXT)
async def test_a_state_that_was_left_busy_before_we_came_is_seen_through(dialect: str) -> None:
    """The very same reading for too long is no generation."""
    async with bench(dialect, Knobs(), pace=Pace(poll_s=0.02, interrupt_s=0.02, quiet_s=0.2)) as b:
        b.sim.machine.state.begin("txt2img", 1, "stuck")
        assert (await b.make()).images


@every
async def test_another_ones_generation_is_interrupted_first(dialect: str) -> None:
    """A zombie of a client that went away is not waited for to its end."""
    async with bench(dialect, Knobs(step_seconds=0.02)) as b, http.client(loopback=True) as other:
        zombie = asyncio.create_task(other.post(f"{b.sim.url}/sdapi/v1/txt2img", json=small(steps=400)["request"]))
        await wait_until(b.busy)
        output = await b.make()
        assert output.images
        assert b.sim.stats.interrupts >= 1
        assert b.sim.stats.generations[0].interrupted
        await asyncio.wait([zombie])


@every
async def test_cancelling_interrupts_until_nothing_runs(dialect: str) -> None:
    """When cancelled it ends the work on the server before it returns: the next job need not wait."""
    async with bench(dialect, Knobs(step_seconds=0.02)) as b:
        running = asyncio.create_task(b.make(small(steps=150)))
        await wait_until(lambda: bool(b.reports) and b.reports[-1].sampling)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert b.sim.stats.in_flight == 0
        assert b.sim.stats.generations[0].finished is not None
        assert (await b.make()).images


@every
async def test_an_impatient_second_cancel_leaves_nothing_running(dialect: str) -> None:
    """Cancelling again while it interrupts changes nothing."""
    async with bench(dialect, Knobs(step_seconds=0.05)) as b:
        running = asyncio.create_task(b.make(small(steps=100)))
        await wait_until(lambda: bool(b.reports))
        running.cancel()
        await wait_until(lambda: b.sim.stats.interrupts > 0)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert b.sim.stats.in_flight == 0


@every
async def test_a_cancelled_server_that_does_not_react_is_stalled(dialect: str) -> None:
    """A generation that ignores interrupts is not left behind in silence."""
    async with bench(dialect, Knobs(), pace=Pace(0.02, 0.02, 0.1)) as b:
        b.sim.knobs.arm("hang")
        running = asyncio.create_task(b.make())
        await wait_until(lambda: bool(b.reports))
        running.cancel()
        with pytest.raises(EngineStalled, match="react to interrupts"):
            await running
        b.sim.release()


@every
async def test_no_progress_is_a_stall(dialect: str) -> None:
    """A generation that hangs at a step is given up."""
    quick = {"stall_timeout": timedelta(seconds=0.1)}
    async with bench(dialect, Knobs(), settings=quick, pace=Pace(0.02, 0.02, 0.1)) as b:
        b.sim.knobs.arm("hang")
        with pytest.raises(EngineStalled):
            await b.make()
        b.sim.release()


@every
async def test_a_load_that_takes_too_long_is_a_stall(dialect: str) -> None:
    """Nothing sampled within the time for loading: it is interrupted, and the server lives on."""
    async with bench(dialect, Knobs(), settings={"load_timeout": timedelta(seconds=0.1)}) as b:
        b.sim.knobs.arm("slow", seconds=0.7)
        with pytest.raises(EngineStalled, match="first step"):
            await b.make(small(steps=1))
        assert b.sim.stats.in_flight == 0


@every
async def test_one_generation_at_a_time(dialect: str) -> None:
    """Two at once queue here, not in the server."""
    async with bench(dialect) as b:
        works = [await b.admit(small(f"cat {n}")) for n in range(3)]
        outputs = await asyncio.gather(*(b.run(w) for w in works))
        assert all(o.images for o in outputs)
        assert b.sim.stats.max_in_flight == 1


@every
async def test_progress_that_cannot_be_read_does_not_block(dialect: str) -> None:
    """Where every poll fails, the server's own lock decides."""
    async with bench(dialect) as b:
        b.sim.knobs.arm("progress_500", times=None)
        assert (await b.make()).images


@pytest.mark.parametrize("dialect", SDNEXT)
async def test_a_picture_of_an_interrupted_job_is_refused(dialect: str) -> None:
    """Somebody else's interrupt gives a partial picture or none, and nothing in the answer says so."""
    async with bench(dialect, Knobs(step_seconds=0.02)) as b, http.client(loopback=True) as other:
        b.sim.options["keep_incomplete"] = True
        running = asyncio.create_task(b.make(small(steps=100)))
        await wait_until(lambda: bool(b.reports) and b.reports[-1].sampling)
        await other.post(f"{b.sim.url}/sdapi/v1/interrupt")
        with pytest.raises((OutputEmpty, OutputMismatch)):
            await running


@pytest.mark.parametrize("dialect", A1111)
async def test_a_partial_picture_is_refused(dialect: str) -> None:
    """Automatic1111 decodes what there is and answers 200; the state that stays behind tells."""
    async with bench(dialect, Knobs(step_seconds=0.02)) as b, http.client(loopback=True) as other:
        running = asyncio.create_task(b.make(small(steps=100)))
        await wait_until(lambda: bool(b.reports) and b.reports[-1].sampling)
        await other.post(f"{b.sim.url}/sdapi/v1/interrupt")
        with pytest.raises(OutputMismatch, match="interrupted"):
            await running
