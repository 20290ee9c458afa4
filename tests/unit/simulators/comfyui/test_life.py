"""How the simulated ComfyUI starts, dies, comes back, leaks and is steered."""

from __future__ import annotations

import asyncio
import signal
import sys
from typing import Any

import httpx
import pytest

from tests.support.comfy import Comfy, simulated, text_graph
from tests.support.waiting import wait_until
from worker.simulators.comfyui import Fault, Knobs

CUT = (httpx.NetworkError, httpx.RemoteProtocolError)


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
    mistakes: list[Any] = [{"nope": 1}, {"arm": {"kind": "nope"}}, []]
    unknown: list[dict[str, Any]] = [{"nope": 1}, {"folder": "nope", "add": ["x"]}]
    async with simulated() as c:
        turned = await control(c, "knobs", {"step_seconds": 0.002, "arm": {"kind": "hang"}})
        wrong = [await control(c, "knobs", body) for body in mistakes]
        await c.submit(text_graph(steps=4))
        await wait_until(lambda: c.sim.machine.hangs)
        busy = await c.get("/simulator/stats")
        await control(c, "release")
        await wait_until(lambda: c.sim.stats.runs[0].ended)
        body = {"add": ["new.safetensors"], "remove": ["dreamshaper_8.safetensors"]}
        models = await control(c, "models", body)
        real = await control(c, "models", {"folder": "vae", "add": ["v.safetensors"], "architecture": "vae"})
        bad = [await control(c, "models", body) for body in unknown]
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
