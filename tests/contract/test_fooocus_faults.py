"""What goes wrong with Fooocus-API, and what it is told as: the API itself hides all of it."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from tests.support.fooocus import ALL, NEW, OLD, QUICK, bench, small
from tests.support.waiting import wait_until
from worker.engines.base import Files
from worker.engines.fooocus.run import Pace
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
from worker.simulators.fooocus import Knobs
from worker.simulators.fooocus.knobs import FaultKind

every = pytest.mark.parametrize("version", ALL)
SHORT = {"load_timeout": timedelta(seconds=0.5)}


def armed(kind: FaultKind, **fault: Any) -> Knobs:
    """Knobs with one fault."""
    knobs = Knobs()
    knobs.arm(kind, **fault)
    return knobs


@every
@pytest.mark.parametrize(
    ("kind", "text", "error", "said"),
    [
        ("oom", "", EngineOutOfMemory, "CUDA out of memory"),
        ("cuda", "", GpuFault, "illegal memory access"),
        ("error", "invalid literal for int() with base 10: 'x'", GenerationRejected, "invalid literal"),
        ("error", "Error while deserializing header", OutputEmpty, "deserializing header"),
        ("user_cancel_by_other", "", OutputEmpty, "stopped by somebody else"),
        ("empty", "", OutputEmpty, "0 pictures instead of 1"),
        ("short_count", "", OutputEmpty, "0 pictures instead of 1"),
        ("wrong_size", "", OutputMismatch, "32x32 pixels instead of 64x64"),
        ("not_an_image", "", OutputMismatch, "is no PNG"),
        ("wrong_model", "", WrongModel, "juggernautXL_v8Rundiffusion"),
        ("error_500", "", GenerationRejected, "the server answered 500"),
    ],
)
async def test_causes(version: str, kind: FaultKind, text: str, error: type[WorkerError], said: str) -> None:
    """Each end of a job that made no good picture has its cause, read from the server's log."""
    async with bench(version, armed(kind, text=text)) as b:
        with pytest.raises(error, match=said):
            await b.make(small(base_model_name="sd_xl_base_1.0.safetensors"))
        if kind != "cuda":
            assert len((await b.make()).images) == 1


@every
@pytest.mark.parametrize("kind", ["oom", "cuda", "error"])
async def test_without_its_log_the_canary_has_to_tell(version: str, kind: FaultKind) -> None:
    """A server that something else started: ERROR is all there is."""
    async with bench(version, armed(kind), deaf=True) as b:
        with pytest.raises(OutputEmpty, match="log cannot be read"):
            await b.make()


@every
async def test_memory_is_told_by_size_too(version: str) -> None:
    """More pixels than fit: the same error as from a fault."""
    async with bench(version, Knobs(memory_pixels=4000)) as b:
        with pytest.raises(EngineOutOfMemory):
            await b.make(small(aspect_ratios_selection="128*128"))


@every
@pytest.mark.parametrize("kind", ["truncated_image", "black", "flat"])
async def test_what_only_pixels_show_goes_out(version: str, kind: FaultKind) -> None:
    """Later hops decode the pictures; their headers are right."""
    async with bench(version, armed(kind)) as b:
        assert len((await b.make()).images) == 1


@every
async def test_a_cancelled_job_is_stopped_before_its_task_ends(version: str) -> None:
    """Nothing runs afterwards, and the next job is whole."""
    async with bench(version, Knobs(step_seconds=0.01)) as b:
        running = asyncio.create_task(b.make(small(steps=100)))
        await wait_until(b.sampling)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert b.sim.machine.queue == []
        assert b.sim.stats.interrupts >= 1
        assert len((await b.make()).images) == 1


@every
async def test_a_job_cancelled_while_it_is_submitted_is_found_and_stopped(version: str) -> None:
    """Its id is not known yet: it is the only new one."""
    async with bench(version, Knobs(step_seconds=0.01, load_seconds=0.05)) as b:
        running = asyncio.create_task(b.make(small(steps=100)))
        await wait_until(lambda: b.sim.machine.queue)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert b.sim.machine.queue == []


@every
async def test_a_stop_that_came_too_late_costs_the_next_job_nothing(version: str) -> None:
    """The flag stays up until a step falls over it: that job is submitted once more."""
    async with bench(version, Knobs(step_seconds=0.01)) as b:
        running = asyncio.create_task(b.make(small(steps=100)))
        await wait_until(b.sampling)
        running.cancel()
        await asyncio.wait([running])
        b.sim.machine.interrupt = True
        before = b.submitted
        assert len((await b.make()).images) == 1
        assert b.submitted - before == 2


@every
async def test_a_stop_of_somebody_else_is_not_ours(version: str) -> None:
    """Nobody here has stopped anything: the job is not silently tried again."""
    async with bench(version) as b:
        b.sim.machine.interrupt = True
        with pytest.raises(OutputEmpty, match="somebody else"):
            await b.make()
        assert b.submitted == 1


@every
async def test_others_jobs_are_stopped_first(version: str) -> None:
    """One after the other, since waiting ones cannot be taken out of the queue."""
    async with bench(version, Knobs(step_seconds=0.01)) as b:
        for prompt in ("first", "second"):
            body = {**small(prompt, steps=200)["request"], "async_process": True}
            assert (await b.engine._server.submit("/v1/generation/text-to-image", body)).ok
        await wait_until(b.sampling)
        assert len((await b.make()).images) == 1
        assert [g.interrupted for g in b.sim.stats.generations[:2]] == [True, True]


@every
async def test_others_that_cannot_be_stopped_are_a_stall(version: str) -> None:
    """Within the time to load, or the server is given to its restart."""
    async with bench(version, armed("hang"), settings=SHORT) as b:
        body = {**small("first")["request"], "async_process": True}
        await b.engine._server.submit("/v1/generation/text-to-image", body)
        await wait_until(lambda: any(job.progress > 40 for job in b.sim.machine.queue))
        with pytest.raises(EngineStalled, match="in spite of stops"):
            await b.make()
        b.sim.release()


@every
async def test_a_server_deaf_to_stops_is_a_stall(version: str) -> None:
    """The cancelled job does not end: whoever waits for it must know."""
    pace = Pace(poll_s=0.01, stop_s=0.01, quiet_s=0.1, settle_s=0.2, dead_s=9)
    async with bench(version, armed("hang"), pace=pace) as b:
        running = asyncio.create_task(b.make(small(steps=4)))
        await wait_until(lambda: any(job.progress > 50 for job in b.sim.machine.queue))
        running.cancel()
        with pytest.raises(EngineStalled, match="did not react to stops"):
            await running
        b.sim.release()


@every
async def test_a_generation_that_hangs_is_a_stall(version: str) -> None:
    """No progress once sampling began."""
    stall = {"stall_timeout": timedelta(seconds=0.2)}
    pace = Pace(poll_s=0.01, stop_s=0.01, quiet_s=0.1, settle_s=0.2, dead_s=9)
    async with bench(version, armed("hang"), settings=stall, pace=pace) as b:
        with pytest.raises(EngineStalled):
            await b.make(small(steps=4))
        b.sim.release()


@every
async def test_a_slow_start_is_none(version: str) -> None:
    """Loading may take as long as it is allowed to, and is told apart from sampling."""
    knobs = armed("slow", seconds=0.3)
    knobs.step_seconds = 0.03
    async with bench(version, knobs) as b:
        assert (await b.make(small(steps=20))).load_s >= 0.2


@every
async def test_a_server_that_still_loads_its_default_model_is_not_dead(version: str) -> None:
    """Its first job waits far longer than a dead thread is given."""
    async with bench(version, Knobs(start_model_seconds=0.8)) as b:
        assert QUICK.dead_s < 0.5
        assert len((await b.make()).images) == 1


@every
@pytest.mark.parametrize("deaf", [False, True])
async def test_a_dead_thread_is_found_quickly(version: str, deaf: bool) -> None:
    """By the line that Python prints; else by the next job that nobody takes, once the server has shown to work."""
    async with bench(version, deaf=deaf) as b:
        await b.make()
        b.sim.knobs.arm("dead_worker")
        with pytest.raises(EngineStalled, match="thread"):
            await b.make()
        assert (await b.engine.look()).busy


@every
async def test_a_dead_thread_is_found_before_a_submission(version: str) -> None:
    """Jobs that already wait are not taken either."""
    async with bench(version, deaf=True) as b:
        await b.make()
        b.sim.knobs.arm("dead_worker")
        body = {**small("first")["request"], "async_process": True}
        await b.engine._server.submit("/v1/generation/text-to-image", body)
        with pytest.raises(EngineStalled, match="nothing has worked"):
            await b.make()


@every
async def test_a_failed_job_of_a_persistent_server_kills_its_thread(version: str) -> None:
    """A known fault of the servers with a database: the job itself ends as ERROR, the next one is never taken."""
    knobs = Knobs(persistent=True)
    async with bench(version, knobs) as b:
        await b.make()
        b.sim.machine.broken = "model file is corrupt"
        with pytest.raises(OutputEmpty):
            await b.make()
        await wait_until(lambda: b.sim.machine.dead)
        with pytest.raises(EngineStalled, match="thread"):
            await b.make()


@every
async def test_a_full_queue_is_waited_for(version: str) -> None:
    """And is the server's fault when it stays full."""
    async with bench(version, armed("queue_full", times=3)) as b:
        assert len((await b.make()).images) == 1
    async with bench(version, armed("queue_full", times=None), settings=SHORT) as b:
        with pytest.raises(EngineFault, match="queue is full"):
            await b.make()


@every
async def test_a_lost_answer_finds_its_job_again(version: str) -> None:
    """The picture is made once."""
    async with bench(version, armed("lost_answer")) as b:
        assert len((await b.make()).images) == 1
        assert b.submitted == 1


@every
async def test_a_lost_request_is_sent_again(version: str) -> None:
    """Nothing was queued; twice in a row is the server's fault."""
    async with bench(version, armed("lost_request")) as b:
        assert len((await b.make()).images) == 1
        assert b.submitted == 2
    async with bench(version, armed("lost_request", times=2)) as b:
        with pytest.raises(EngineCrashed):
            await b.make()


@every
async def test_a_job_that_the_server_forgot(version: str) -> None:
    """It was started anew meanwhile."""
    async with bench(version, armed("vanish")) as b:
        with pytest.raises(EngineCrashed, match="no longer knows the job"):
            await b.make()


@every
@pytest.mark.parametrize("kind", ["exit", "crash", "restart"])
async def test_a_server_that_goes_down_in_the_middle(version: str, kind: FaultKind) -> None:
    """Gone for good or back at once: the job is lost, and after a restart the next one is made."""
    async with bench(version, armed(kind)) as b:
        with pytest.raises(EngineCrashed):
            await b.make(small(steps=20))
        if kind == "restart":
            await wait_until(lambda: b.sim.listening)
            assert len((await b.make()).images) == 1


@every
async def test_a_few_polls_without_an_answer_are_borne(version: str) -> None:
    """A plain 500 of a poll is no end of the job; too many are."""
    async with bench(version, armed("query_500", times=2)) as b:
        assert len((await b.make()).images) == 1
    async with bench(version, armed("query_500", times=None)) as b:
        with pytest.raises(EngineCrashed):
            await b.make()


@every
async def test_a_picture_without_metadata_is_unproven(version: str) -> None:
    """The request may turn it off: then nothing says which model made it."""
    async with bench(version) as b:
        output = await b.make(small(save_meta=False))
        assert (output.engine.proof, output.warnings) == ("none", ("model_unproven",))


async def test_other_metadata_schemes_prove_as_well() -> None:
    """The plain text of Automatic1111's kind on 0.5."""
    async with bench(NEW) as b:
        assert (await b.make(small(meta_scheme="a1111"))).engine.proof == "name"
    async with bench(OLD) as b:
        assert (await b.make(small(meta_scheme="a111"))).engine.proof == "name"


async def test_an_input_that_was_not_provided_is_our_own_fault() -> None:
    """A URL without its bytes must never reach the server."""
    async with bench(NEW) as b:
        body = small(image_prompts=[{"cn_img": "https://example.com/a.png"}])
        work = await b.admit({**body, "endpoint": "text-to-image-with-ip"})
        with pytest.raises(WorkerError, match="was not provided"):
            await b.run(work, Files())
