"""ComfyUI at its worst: what it loses, hides, repeats and leaves running, and what the driver makes of it."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from tests.support.comfy_engine import QUICK, bench, graph, plain, small, workflow
from tests.support.engines import job_of, settings_for
from tests.support.pictures import opened
from tests.support.waiting import wait_until
from worker.engines.base import Files
from worker.engines.comfyui.engine import ComfyEngine
from worker.errors import (
    EngineCrashed,
    EngineOutOfMemory,
    EngineStalled,
    GenerationRejected,
    GpuFault,
    OutputEmpty,
    OutputMismatch,
    WorkerError,
)
from worker.job import Limits
from worker.simulators.comfyui import Knobs

every_version = pytest.mark.parametrize("version", ["0.3.64", "newest"])

FATAL: list[tuple[Any, dict[str, Any], type[WorkerError]]] = [
    ("oom", {}, EngineOutOfMemory),
    ("exception", {"error": "ValueError", "text": "bad"}, GenerationRejected),
    ("exception", {"error": "SafetensorError", "text": "header"}, OutputEmpty),
    ("node_errors_on_200", {}, GenerationRejected),
    ("delete_pending", {}, EngineCrashed),
    ("lost_history", {}, EngineCrashed),
    ("interrupted_by_other", {}, OutputMismatch),
    ("success_without_outputs", {}, OutputEmpty),
]
"""What ends an attempt, and as what; the server works on."""

HARMLESS: list[tuple[Any, dict[str, Any]]] = [
    ("lost_answer", {}),
    ("deaf_socket", {}),
    ("drop_socket", {}),
    ("big_frame", {}),
    ("duplicate_events", {}),
    ("late_history", {"seconds": 0.1}),
    ("null_status", {}),
    ("stale_status_str", {}),
    ("missing_file", {}),
    ("slow", {"seconds": 0.2}),
]
"""What a job survives within one turn."""


@every_version
async def test_a_fault_is_told_for_what_it_is(version: str) -> None:
    """Each way in which a prompt fails becomes its own error, nothing is left of it, and the next job works."""
    async with bench(Knobs(version=version)) as b:
        for seed, (kind, fault, error) in enumerate(FATAL):
            b.sim.knobs.arm(kind, **fault)
            with pytest.raises(error) as caught:
                await b.make(workflow(seed=seed))
            assert type(caught.value) is error, kind
            assert b.left == [], kind
            assert len((await b.make(workflow(seed=seed))).images) == 1, kind
        assert set(b.sim.stats.prompts) <= set(b.sim.stats.history_deletes)


@pytest.mark.parametrize(
    ("version", "way"), [("0.3.64", "preview"), ("0.3.64", "files"), ("0.3.64", "websocket"), ("newest", "auto")]
)
async def test_a_fault_of_the_wire_changes_nothing(version: str, way: str) -> None:
    """Deaf, dropped, late, repeated or oversized: the history tells the end, and the picture comes."""
    async with bench(Knobs(version=version, step_seconds=0.01), settings={"comfyui_output": way}) as b:
        for seed, (kind, fault) in enumerate(HARMLESS):
            b.sim.knobs.arm(kind, **fault)
            output = await b.make(workflow(seed=seed, batch=2))
            assert [opened(image.data).size for image in output.images] == [(64, 64)] * 2, kind
            assert b.left == [], kind
            assert not await b.busy(), kind


@every_version
async def test_a_submit_whose_answer_was_lost_runs_once(version: str) -> None:
    """It is looked for by its own id before anything is sent again."""
    async with bench(Knobs(version=version)) as b:
        b.sim.knobs.arm("lost_answer")
        await b.make()
        assert len(b.sim.stats.prompts) == 1


async def test_a_submit_that_never_arrived_is_sent_again() -> None:
    """Not found on two looks: once more, under the same id."""
    async with bench() as b:
        work = await b.admit()
        calls = 0
        submit = b.engine._server.submit

        async def lossy(body: Any, *, timeout: timedelta) -> Any:
            nonlocal calls
            calls += 1
            if calls == 1:
                raise EngineCrashed("the connection broke")
            return await submit(body, timeout=timeout)

        b.engine._server.submit = lossy  # type: ignore[method-assign]
        assert len((await b.run(work)).images) == 1
        assert calls == 2
        assert len(b.sim.stats.prompts) == 1


async def test_gpu_faults_are_the_servers() -> None:
    """A CUDA fault poisons every later prompt."""
    async with bench() as b:
        b.sim.knobs.arm("cuda")
        for _ in range(2):
            with pytest.raises(GpuFault):
                await b.make()


@pytest.mark.parametrize("kind", ["exit", "restart"])
async def test_a_server_that_goes_away_is_told(kind: Any) -> None:
    """Whether it comes back or not: its queue and history are gone."""
    async with bench(Knobs(step_seconds=0.01)) as b:
        b.sim.knobs.arm(kind, seconds=0.05)
        with pytest.raises(EngineCrashed):
            await b.make(workflow(steps=10))


async def test_a_dead_worker_thread_is_found_while_the_prompt_waits() -> None:
    """Nothing runs although ours waits: told at once, not after the time of a load."""
    async with bench() as b:
        b.sim.knobs.arm("dead_worker_idle")
        with pytest.raises(EngineStalled, match="nothing runs"):
            await b.make()
        assert b.left == []


async def test_a_worker_thread_that_dies_with_the_prompt_is_found() -> None:
    """It runs for ever without a word after its start; what looks ready is not."""
    async with bench() as b:
        b.sim.knobs.arm("dead_worker")
        with pytest.raises(EngineStalled):
            await b.make()
        assert (await b.engine.look()).busy


async def test_a_prompt_that_hangs_is_a_stall() -> None:
    """No step within the time that steps take here; it is deaf to interrupts too."""
    settings = {"stall_timeout": timedelta(seconds=0.3)}
    async with bench(settings=settings) as b:
        b.sim.knobs.arm("hang")
        with pytest.raises(EngineStalled):
            await b.make(workflow(steps=10))
        b.sim.release()


async def test_a_load_that_never_ends_is_a_stall() -> None:
    """Before the first step only the time of a load counts."""
    async with bench(Knobs(load_seconds=0.8), settings={"load_timeout": timedelta(seconds=0.2)}) as b:
        with pytest.raises(EngineStalled, match="no first step"):
            await b.make()


async def test_a_model_read_between_two_samplers_has_the_time_of_a_load() -> None:
    """A long read after the first steps is no stall."""
    made = graph(steps=2)
    second = {node: {**made[node], "inputs": dict(made[node]["inputs"])} for node in ("3", "4")}
    second["4"]["inputs"]["ckpt_name"] = "second.safetensors"
    second["3"]["inputs"] |= {"latent_image": ["3", 0], "model": ["14", 0], "seed": 8}
    made |= {"13": second["3"], "14": second["4"]}
    made["8"]["inputs"]["samples"] = ["13", 0]
    settings = {"stall_timeout": timedelta(seconds=0.2)}
    async with bench(Knobs(load_seconds=0.6), settings=settings) as b:
        output = await b.make(workflow(made))
        assert len(output.images) == 1
        assert output.engine.model is None


@every_version
@pytest.mark.parametrize("at", ["load", "steps"])
async def test_a_cancelled_job_stops_the_server(version: str, at: str) -> None:
    """Interrupted by its id until the queue no longer has it; nothing of it is left."""
    knobs = Knobs(version=version, step_seconds=0.02, load_seconds=0.3 if at == "load" else 0.01)
    async with bench(knobs) as b:
        running = await b.started(small(steps=150))
        if at == "load":
            await wait_until(b.busy)
        else:
            await wait_until(lambda: any(report.sampling for report in b.reports))
        running.cancel()
        await asyncio.wait([running])
        assert running.cancelled()
        assert not await b.busy()
        assert b.sim.stats.runs[-1].ended == "interrupted"
        assert b.left == []
        assert (await b.make()).images


@every_version
async def test_a_job_cancelled_at_any_moment_leaves_nothing_running(version: str) -> None:
    """Before, during and after the submit."""
    async with bench(Knobs(version=version, step_seconds=0.01)) as b:
        work = await b.admit(small(steps=50))
        for turns in (0, 1, 3, 8, 20, 60):
            running = asyncio.create_task(b.run(work))
            for _ in range(turns):
                await asyncio.sleep(0)
            running.cancel()
            await asyncio.wait([running])
            assert not await b.busy()
            assert b.left == []


async def test_an_interrupt_that_it_ignores_is_a_stall() -> None:
    """A cancelled job whose server does not react within its pace is the server's fault."""
    async with bench(Knobs(step_seconds=0.02)) as b:
        b.sim.knobs.arm("hang")
        running = await b.started(small(steps=50))
        await wait_until(lambda: b.sim.machine.hangs)
        running.cancel()
        await asyncio.wait([running])
        assert isinstance(running.exception(), EngineStalled)
        b.sim.release()


async def test_what_another_left_is_stopped_first() -> None:
    """Prompts that wait are deleted, the one that runs is interrupted."""
    async with bench(Knobs(step_seconds=0.02)) as b:
        for seed in (1, 2, 3):
            answer = await b.engine._client.post("/prompt", {"prompt": graph(steps=500, seed=seed)})
            assert answer.ok
        output = await b.make()
        assert len(output.images) == 1
        assert [run.ended for run in b.sim.stats.runs] == ["interrupted", "success"]


async def test_a_server_that_cannot_be_cleared_is_stalled() -> None:
    """What another left does not react: after the time of a load it counts as stuck."""
    async with bench(Knobs(), settings={"load_timeout": timedelta(seconds=0.3)}) as b:
        b.sim.knobs.arm("hang")
        assert (await b.engine._client.post("/prompt", {"prompt": graph(steps=5)})).ok
        await wait_until(lambda: b.sim.machine.hangs)
        with pytest.raises(EngineStalled, match="did not react"):
            await b.make()
        b.sim.release()


async def test_only_our_own_prompt_is_interrupted() -> None:
    """By its id, since the plain form stops whatever runs by then."""
    async with bench(Knobs(step_seconds=0.02)) as b:
        told: list[Any] = []
        post = b.engine._client.post

        async def noted(path: str, body: Any = None, **options: Any) -> Any:
            told.append((path, body))
            return await post(path, body, **options)

        b.engine._client.post = noted  # type: ignore[method-assign]
        running = await b.started(small(steps=150))
        await wait_until(lambda: any(report.sampling for report in b.reports))
        running.cancel()
        await asyncio.wait([running])
        (prompt_id,) = b.sim.stats.prompts
        assert ("/queue", {"delete": [prompt_id]}) in told
        assert {body["prompt_id"] for path, body in told if path == "/interrupt"} == {prompt_id}


async def test_progress_is_coalesced() -> None:
    """However many steps a tick has, it has one report."""
    async with bench(pace=replace(QUICK, tick_s=1000.0)) as b:
        await b.make(small(steps=100))
        assert len(b.reports) <= 1


async def test_where_ipv6_refuses_ipv4_is_tried() -> None:
    """A server that listens on 127.0.0.1 alone is found by the default URL, by its socket too."""
    async with bench(prepare=False, host="127.0.0.1") as b:
        engine = ComfyEngine(settings_for(b.sim.url.replace("127.0.0.1", "[::1]"), kind="comfyui"), Limits(), QUICK)
        output = await engine.generate(await engine.admit(job_of(small())), Files(), b.reports.append)
        assert output.images
        assert b.sim.stats.sockets_opened == 1
        await engine.aclose()


async def test_one_job_at_a_time() -> None:
    """Two at once are run one after the other."""
    async with bench(Knobs(step_seconds=0.01)) as b:
        work = await b.admit()
        outputs = await asyncio.gather(b.run(work), b.run(work))
        assert all(output.images for output in outputs)
        first, second = b.sim.stats.runs
        assert first.finished is not None
        assert first.finished <= second.started


async def test_a_missing_file_is_made_again_and_then_told() -> None:
    """The cache is emptied and the graph run once more; a second miss is an empty answer."""
    async with bench(settings={"comfyui_output": "files"}) as b:
        b.sim.knobs.arm("missing_file")
        assert (await b.make(workflow())).images
        assert b.sim.stats.frees == [{"unload_models": False, "free_memory": True}]
        b.sim.knobs.arm("missing_file", times=2)
        with pytest.raises(OutputEmpty, match="no such file"):
            await b.make(workflow())


async def test_a_socket_lost_with_its_pictures_costs_one_run_with_previews() -> None:
    """Frames that were sent meanwhile are gone for ever."""
    async with bench(Knobs(step_seconds=0.01), settings={"comfyui_output": "websocket"}) as b:
        b.sim.knobs.arm("drop_socket")
        assert len((await b.make(workflow(batch=2))).images) == 2
        assert len(b.sim.stats.prompts) == 2


async def test_a_socket_that_cannot_be_opened_is_done_without() -> None:
    """The history alone is enough."""
    async with bench() as b:
        server = b.engine._server
        real = type(server).url
        try:
            type(server).url = property(lambda self: "http://[::1]:9")  # type: ignore[assignment,method-assign]
            assert (await b.make()).images
        finally:
            type(server).url = real  # type: ignore[method-assign]
        assert b.sim.stats.sockets_opened == 0


async def test_each_connection_has_a_name_of_its_own() -> None:
    """A name that is used twice makes the second socket deaf."""
    async with bench() as b:
        await b.make()
        await b.make()
        names = [run.client_id for run in b.sim.stats.runs]
        assert None not in names
        assert len(set(names)) == 2
        await wait_until(lambda: b.sim.stats.sockets == 0)


async def test_an_id_that_the_server_does_not_take_is_left_to_it() -> None:
    """Where a version refuses our prompt id, its own is used."""
    async with bench(Knobs(version="newest")) as b:
        b.engine._next_id = lambda key: "NOT-CANONICAL"  # type: ignore[method-assign]
        assert (await b.make()).images
        assert b.sim.stats.prompts[0] != "NOT-CANONICAL"


async def test_an_identical_prompt_is_saved_anew() -> None:
    """The sampler's result may come from the cache, the file never does."""
    for way in ("files", "preview"):
        async with bench(settings={"comfyui_output": way}) as b:
            for _ in range(3):
                assert len((await b.make(workflow())).images) == 1
            assert len(b.sim.stats.samplings) == 1
            assert b.sim.stats.frees == []


async def test_a_prefix_that_leaves_the_folder_is_cleaned() -> None:
    """It would fail at run time only."""
    async with bench(settings={"comfyui_output": "files"}) as b:
        assert (await b.make(workflow(filename_prefix="../../%date%/evil"))).images
        assert b.left == []


async def test_deletions_that_fail_only_warn() -> None:
    """The job has succeeded all the same."""
    async with bench() as b:

        async def fails(prompt_id: str) -> None:
            raise EngineCrashed("not now")

        b.engine._server.forget = fails  # type: ignore[method-assign]
        assert (await b.make(workflow(plain()))).images
