"""Every fault does what its name says, so often and for such prompts as it was armed for."""

from __future__ import annotations

import asyncio
import signal
import sys
from typing import Any

import httpx
import pytest
from PIL import Image

from tests.support.comfy import Comfy, frame_parts, images_of, last_message, node, picture_graph, simulated, text_graph
from tests.support.waiting import wait_until
from worker.simulators.comfyui import Fault, Knobs

CUT = (httpx.NetworkError, httpx.RemoteProtocolError)


async def test_out_of_memory() -> None:
    """Torch's class and ComfyUI's tip in the last message; the next prompt is fine."""
    async with simulated() as c, c.socket() as ear:
        c.sim.knobs.arm("oom")
        prompt_id = await c.submit(text_graph(), client_id=ear.client_id)
        await ear.over(prompt_id)
        entry, heard = await c.entry(prompt_id), ear.types()
        sound = await c.run(text_graph())
    kind, data = last_message(entry)
    assert (kind, data["exception_type"], data["node_type"]) == (
        "execution_error",
        "torch.OutOfMemoryError",
        "KSampler",
    )
    assert data["exception_message"].startswith("CUDA out of memory")
    assert "TIPS:" in data["exception_message"]
    assert data["current_inputs"]["seed"] == [1]
    assert set(data["current_outputs"]) == set(text_graph())
    assert (entry["status"]["status_str"], entry["outputs"]) == ("error", {})
    assert heard[-3:] == ["execution_error", "status", "executing"]
    assert ear.of("execution_error")[0] == data
    assert sound["status"]["completed"]


async def test_too_large_a_batch_is_out_of_memory() -> None:
    """Without any fault, by the knob of the graphics memory."""
    async with simulated(Knobs(memory_pixels=64 * 64 * 2)) as c:
        large = await c.run(text_graph(batch=3))
        small = await c.run(text_graph(batch=2))
    assert last_message(large)[1]["exception_type"] == "torch.OutOfMemoryError"
    assert len(images_of(small)) == 2


async def test_a_cuda_fault_poisons_the_process() -> None:
    """Every later prompt that samples fails until a restart."""
    async with simulated() as c:
        c.sim.knobs.arm("cuda")
        failures = [last_message(await c.run(text_graph(seed=n)))[1]["exception_message"] for n in (1, 2)]
        plain = await c.run(picture_graph())
        c.sim.restart()
        await wait_until(lambda: c.sim.stats.starts == 2 and c.sim.listening)
        after = await c.run(text_graph())
    assert all(f.startswith("CUDA error: an illegal memory access") for f in failures)
    assert plain["status"]["completed"]
    assert after["status"]["completed"]


async def test_any_exception_at_any_node() -> None:
    """By class or by id; outputs made before stay in the entry."""
    graph = text_graph() | {"8b": node("PreviewImage", images=["8", 0])}
    async with simulated() as c:
        c.sim.knobs.arm("exception", error="ValueError", text="no good", node="SaveImage")
        first = last_message(await c.run(graph))[1]
        c.sim.knobs.arm("exception", node="6")
        second = last_message(await c.run(text_graph("other")))[1]
        c.sim.knobs.arm("exception")
        third = last_message(await c.run(picture_graph()))[1]
    assert (first["node_id"], first["exception_type"], first["exception_message"]) == ("9", "ValueError", "no good\n")
    assert (second["node_id"], second["exception_type"]) == ("6", "RuntimeError")
    assert third["node_id"] == "1"


async def test_times_and_prompts_of_faults() -> None:
    """A fault strikes graphs that have its words, as often as it says; disarming takes it back."""
    async with simulated() as c:
        c.sim.knobs.arm("exception", times=None, prompt="dog")
        ends = [(await c.run(text_graph(p)))["status"]["completed"] for p in ("a cat", "a dog", "two dogs")]
        c.sim.knobs.disarm("exception")
        last = (await c.run(text_graph("a dog")))["status"]["completed"]
    assert (ends, last) == ([True, False, False], True)


@pytest.mark.parametrize("kind", ["black", "flat"])
async def test_pictures_of_one_colour(kind: Any) -> None:
    """A valid file in which all pixels are the same."""
    async with simulated() as c:
        c.sim.knobs.arm(kind)
        colours = (await c.picture(text_graph())).getcolors(10)
    assert colours is not None
    assert len(colours) == 1


async def test_pictures_of_the_wrong_size() -> None:
    """Half of what was asked for."""
    async with simulated() as c:
        c.sim.knobs.arm("wrong_size")
        picture = await c.picture(text_graph())
    assert picture.size == (32, 32)


async def test_truncated_files() -> None:
    """The file ends in the middle."""
    async with simulated() as c:
        c.sim.knobs.arm("truncated_image")
        item = images_of(await c.run(text_graph()))[0]
        with (
            Image.open(c.sim.base_dir / "output" / item["filename"]) as image,
            pytest.raises(OSError, match="truncated"),
        ):
            image.load()


async def test_missing_files() -> None:
    """The history names a file that is not there."""
    async with simulated() as c:
        c.sim.knobs.arm("missing_file")
        entry = await c.run(text_graph())
        answer = await c.client.get("/view", params=images_of(entry)[0])
    assert entry["status"]["completed"]
    assert answer.status_code == 404


async def test_lost_history() -> None:
    """All messages come, the entry never does."""
    async with simulated() as c, c.socket() as ear:
        c.sim.knobs.arm("lost_history")
        prompt_id = await c.submit(text_graph(), client_id=ear.client_id)
        await ear.over(prompt_id)
        await c.run(picture_graph())
        entry = await c.get(f"/history/{prompt_id}")
    assert "execution_success" in ear.types()
    assert entry == {}


async def test_late_history() -> None:
    """The entry comes after the last message."""
    async with simulated() as c, c.socket() as ear:
        c.sim.knobs.arm("late_history", seconds=0.1)
        prompt_id = await c.submit(text_graph(), client_id=ear.client_id)
        await ear.over(prompt_id)
        early = await c.get(f"/history/{prompt_id}")
        entry = await c.entry(prompt_id)
    assert early == {}
    assert entry["status"]["completed"]


@pytest.mark.parametrize("kind", ["null_status", "stale_status_str", "success_without_outputs"])
async def test_entries_that_lie(kind: Any) -> None:
    """No status, a status against its messages, a success that shows nothing."""
    async with simulated() as c:
        c.sim.knobs.arm(kind)
        entry = await c.run(text_graph())
        files = c.sim.files("output")
    if kind == "null_status":
        assert entry["status"] is None
    elif kind == "stale_status_str":
        assert (entry["status"]["status_str"], last_message(entry)[0]) == ("error", "execution_success")
    else:
        assert (entry["outputs"], entry["status"]["completed"]) == ({}, True)
    assert files == ["ComfyUI_00001_.png"]


async def test_a_deaf_socket() -> None:
    """Open, and silent from the start of the prompt on."""
    async with simulated() as c, c.socket() as ear:
        c.sim.knobs.arm("deaf_socket")
        prompt_id = await c.submit(text_graph(), client_id=ear.client_id)
        await c.entry(prompt_id)
        await ear.connection.ping()
        assert ear.closed is None
    assert set(ear.types()) == {"status"}


async def test_a_dropped_socket() -> None:
    """Cut without a closing frame while the prompt goes on."""
    async with simulated() as c, c.socket() as ear:
        c.sim.knobs.arm("drop_socket")
        prompt_id = await c.submit(text_graph(), client_id=ear.client_id)
        entry = await c.entry(prompt_id)
        await wait_until(lambda: ear.closed)
    assert ear.closed == 1006
    assert "execution_start" in ear.types()
    assert entry["status"]["completed"]


async def test_big_frames() -> None:
    """More than 4 MiB each, and readable all the same."""
    async with simulated() as c, c.socket() as ear:
        c.sim.knobs.arm("big_frame")
        prompt_id = await c.submit(text_graph(steps=2), client_id=ear.client_id)
        await ear.over(prompt_id)
    assert [len(f) > 4 * 1024 * 1024 for f in ear.frames] == [True, True]
    assert frame_parts(ear.frames[0])[:2] == (1, 1)


async def test_a_worker_that_dies_at_work() -> None:
    """The prompt runs for ever after execution_start, others pile up, HTTP is fine."""
    async with simulated() as c, c.socket() as ear:
        c.sim.knobs.arm("dead_worker")
        prompt_id = await c.submit(text_graph(), client_id=ear.client_id)
        await wait_until(lambda: ear.of("execution_start") and c.sim.machine.dead)
        await c.submit(picture_graph())
        await c.post("/interrupt")
        queue = await c.get("/queue")
        stats = await c.client.get("/system_stats")
        history = await c.get("/history")
    assert ear.types()[-1] in ("execution_start", "status")
    assert [item[1] for item in queue["queue_running"]] == [prompt_id]
    assert (len(queue["queue_pending"]), stats.status_code, history) == (1, 200, {})


async def test_a_worker_that_dies_idle() -> None:
    """Nothing runs and all wait."""
    async with simulated() as c:
        c.sim.knobs.arm("dead_worker_idle")
        for n in range(2):
            await c.submit(picture_graph(n))
        await wait_until(lambda: c.sim.machine.dead)
        queue = await c.get("/queue")
    assert (len(queue["queue_running"]), len(queue["queue_pending"])) == (0, 2)


async def test_hang() -> None:
    """No step and no interrupt until it is released; the interrupt acts then."""
    async with simulated() as c:
        c.sim.release()
        c.sim.knobs.arm("hang")
        prompt_id = await c.submit(text_graph(steps=4))
        await wait_until(lambda: c.sim.machine.hangs)
        await c.post("/interrupt")
        stuck = await c.get(f"/history/{prompt_id}")
        c.sim.release()
        entry = await c.entry(prompt_id)
    assert stuck == {}
    assert last_message(entry)[0] == "execution_interrupted"


async def test_slow() -> None:
    """Its seconds are added before the first step, and the picture is sound."""
    async with simulated() as c:
        c.sim.knobs.arm("slow", seconds=0.1)
        prompt_id = await c.submit(text_graph())
        await wait_until(lambda: c.sim.stats.samplings)
        assert c.sim.stats.runs[0].steps == 0
        entry = await c.entry(prompt_id)
    assert entry["status"]["completed"]
    run = c.sim.stats.runs[0]
    assert run.finished is not None
    assert run.finished - run.started >= 0.09


async def test_somebody_else_interrupts() -> None:
    """The prompt ends as interrupted though nobody here asked for it."""
    async with simulated() as c:
        c.sim.knobs.arm("interrupted_by_other")
        entry = await c.run(text_graph())
    assert last_message(entry)[0] == "execution_interrupted"
    assert c.sim.stats.interrupts == 0


async def test_duplicate_events() -> None:
    """Every message about the prompt comes twice but the history is as always."""
    async with simulated() as c, c.socket() as ear:
        c.sim.knobs.arm("duplicate_events")
        prompt_id = await c.submit(text_graph(), client_id=ear.client_id)
        await wait_until(lambda: ear.of("executing")[-2:] == [{"node": None, "prompt_id": prompt_id}] * 2)
        entry = await c.entry(prompt_id)
    assert len(ear.of("execution_success")) == 2
    assert len(entry["status"]["messages"]) == 3


async def test_a_lost_answer() -> None:
    """The connection closes, and the prompt runs all the same."""
    async with simulated() as c:
        c.sim.knobs.arm("lost_answer")
        with pytest.raises(CUT):
            await c.submit(picture_graph(), prompt_id="mine")
        entry = await c.entry("mine")
    assert entry["status"]["completed"]


async def test_node_errors_on_200() -> None:
    """The answer names errors that the run knows nothing of."""
    async with simulated() as c:
        c.sim.knobs.arm("node_errors_on_200")
        answer = await c.post("/prompt", {"prompt": picture_graph()})
        entry = await c.entry(answer.json()["prompt_id"])
    assert answer.status_code == 200
    assert answer.json()["node_errors"]["999"]["errors"]
    assert entry["status"]["completed"]


async def test_a_prompt_that_somebody_deletes() -> None:
    """It is taken, and leaves no trace but a changed queue."""
    async with simulated() as c, c.socket() as ear:
        c.sim.knobs.arm("delete_pending")
        prompt_id = await c.submit(picture_graph(), client_id=ear.client_id)
        await c.run(picture_graph(2))
        history = await c.get(f"/history/{prompt_id}")
    assert history == {}
    assert "execution_start" not in ear.types()
    assert len(c.sim.stats.runs) == 1


async def test_exit() -> None:
    """Connections are cut and refused from then on; a child process would end in `on_exit`."""
    async with simulated() as c, c.socket() as ear:
        c.sim.knobs.arm("exit")
        await c.submit(text_graph(), client_id=ear.client_id)
        await wait_until(lambda: ear.closed)
        with pytest.raises(httpx.ConnectError):
            await c.get("/prompt")
    assert ear.closed == 1006
    assert not c.sim.listening


async def test_on_exit() -> None:
    """What the fault calls in place of closing the socket."""
    async with simulated() as c:
        gone = asyncio.Event()
        c.sim.on_exit = gone.set
        c.sim.knobs.arm("exit")
        await c.submit(text_graph())
        await gone.wait()
        assert c.sim.listening


async def test_restart() -> None:
    """Away in the middle of the work; back on the same port without queue, history and cache."""
    async with simulated() as c:
        await c.run(text_graph())
        c.sim.knobs.arm("restart", seconds=0.05)
        await c.submit(text_graph(seed=2))
        await wait_until(lambda: not c.sim.listening)
        with pytest.raises(httpx.ConnectError):
            await c.get("/prompt")
        await wait_until(lambda: c.sim.listening)
        history = await c.get("/history")
        depth = await c.get("/prompt")
        await c.run(text_graph())
    assert (history, depth) == ({}, {"exec_info": {"queue_remaining": 0}})
    assert len(c.sim.stats.loads) == 2
    assert c.sim.stats.starts == 2


async def test_a_start_that_takes_time() -> None:
    """The port is refused until the timer is over."""
    async with simulated(Knobs(start_seconds=0.1)) as c:
        with pytest.raises(httpx.ConnectError):
            await c.get("/prompt")
        await wait_until(lambda: c.sim.listening)
        assert (await c.get("/prompt"))["exec_info"] == {"queue_remaining": 0}


async def test_a_leak() -> None:
    """Memory of the process that each load takes for good."""
    from pathlib import Path

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    async with simulated() as c:
        await c.run(text_graph())
        before = resident()
        c.sim.knobs.leak_bytes_per_load = 64 << 20
        await c.run(text_graph(checkpoint="sd_xl_base_1.0.safetensors"))
        assert resident() - before > 48 << 20


async def control(c: Comfy, path: str, body: Any = None) -> httpx.Response:
    """POST to one of the simulator's own routes."""
    return await c.post(f"/simulator/{path}", body)


async def test_steering_over_http() -> None:
    """Knobs, faults, models, statistics, release and restart for tests in other processes."""
    async with simulated() as c:
        turned = await control(c, "knobs", {"step_seconds": 0.002, "arm": {"kind": "hang"}})
        wrong = [await control(c, "knobs", b) for b in ({"nope": 1}, {"arm": {"kind": "nope"}}, [])]
        await c.submit(text_graph(steps=4))
        await wait_until(lambda: c.sim.machine.hangs)
        busy = await c.get("/simulator/stats")
        await control(c, "release")
        await wait_until(lambda: c.sim.stats.runs[0].ended)
        body = {"add": ["new.safetensors"], "remove": ["dreamshaper_8.safetensors"]}
        models = await control(c, "models", body)
        real = await control(c, "models", {"folder": "vae", "add": ["v.safetensors"], "architecture": "vae"})
        bad = [await control(c, "models", b) for b in ({"nope": 1}, {"folder": "nope", "add": ["x"]})]
        files = (await c.get("/simulator/stats"))["files"]
        knobs = await c.get("/simulator/knobs")
        with pytest.raises(CUT):
            await control(c, "restart", {"seconds": 0.01})
        await wait_until(lambda: c.sim.stats.starts == 2 and c.sim.listening)
        with pytest.raises(CUT):
            await c.client.post("/simulator/restart")
    assert turned.json()["step_seconds"] == knobs["step_seconds"] == 0.002
    assert [w.status_code for w in wrong] == [400, 400, 400]
    assert (busy["hangs"], busy["worker_dead"], busy["starts"]) == (True, False, 1)
    assert models.json() == {"files": ["new.safetensors", "sd_xl_base_1.0.safetensors"]}
    assert real.json() == {"files": ["v.safetensors"]}
    assert [b.status_code for b in bad] == [400, 400]
    assert files["output"] == ["ComfyUI_00001_.png"]


async def test_faults_as_objects() -> None:
    """A fault can be armed by hand and read back as JSON."""
    knobs = Knobs(faults=[Fault("oom", times=2)])
    async with simulated(knobs) as c:
        await c.run(text_graph())
        left = (await c.get("/simulator/knobs"))["faults"]
    assert (left[0]["kind"], left[0]["times"]) == ("oom", 1)


async def test_as_a_process() -> None:
    """It says where it listens, dies of the fault `exit` with 1, and of SIGTERM with 0."""
    command = [sys.executable, "-m", "worker.simulators", "comfyui", "--port", "0", "--step-seconds", "0"]
    for ending in ("exit", "term"):
        process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        assert process.stdout is not None
        words = (await process.stdout.readline()).decode().split()
        async with httpx.AsyncClient(base_url=words[-1], trust_env=False, verify=False) as client:
            if ending == "exit":
                await client.post("/simulator/knobs", json={"arm": {"kind": "exit"}})
                await client.post("/prompt", json={"prompt": text_graph()})
            else:
                process.send_signal(signal.SIGTERM)
            code = await process.wait()
        assert words[0] == "comfyui"
        assert code == (1 if ending == "exit" else 0)
