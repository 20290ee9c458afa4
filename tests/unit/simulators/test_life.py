"""A server's life: the start in three stages, the fall, the restart, the socket."""

from __future__ import annotations

import asyncio
import math

import httpx
import pytest

from tests.support.sims import ALL, in_background, model_of, simulated
from tests.support.waiting import wait_until
from worker.simulators import Knobs
from worker.simulators.limits import RateLimiter

CUT = (httpx.NetworkError, httpx.RemoteProtocolError)


@pytest.mark.parametrize("dialect", ALL)
async def test_the_port_opens_first_then_the_routes(dialect: str) -> None:
    """Refused, then 404 from every route of the API, then answers."""
    knobs = Knobs(start_port_seconds=math.inf, start_routes_seconds=math.inf)
    async with simulated(dialect, knobs) as s:
        with pytest.raises(httpx.ConnectError):
            await s.get("options")
        knobs.start_port_seconds = 0
        await wait_until(lambda: s.sim.listening)
        late = await s.get("options")
        ping = await s.client.get("/internal/ping")
        assert (await s.client.post("/simulator/knobs", json={"start_routes_seconds": 0})).status_code == 200
        ready = await s.get("options")
    assert (late.status_code, late.json()) == (404, {"detail": "Not Found"})
    assert ready.status_code == 200
    assert ping.status_code == (200 if dialect in ("a1111", "a1111-1.7") else 404)


async def test_sdnext_answers_before_its_model_is_loaded() -> None:
    """200 with no image and an empty info; /checkpoint tells; one early job wipes the notice of the load."""
    knobs = Knobs(start_model_seconds=math.inf)
    async with simulated("sdnext", knobs) as s:
        loading, progress = (await s.get("status")).json(), (await s.get("progress")).json()
        early = await s.generate(override_settings={"sd_model_checkpoint": "sd_xl_base_1.0"})
        wiped = (await s.get("status")).json()
        unready = (await s.get("checkpoint")).json()
        listed = (await s.get("sd-models")).json()
        knobs.start_model_seconds = 0
        ready = (await s.get("checkpoint")).json()
        log = (await s.get("log")).json()
    assert (loading["status"], loading["task"]) == ("running", "Load model")
    assert (progress["state"]["job"], progress["state"]["job_count"]) == ("Load model", 1)
    assert (early.status_code, early.json()["images"], early.json()["info"]) == (200, [], "")
    assert wiped["status"] == "idle"
    assert unready == {"type": None, "class": None}
    assert len(listed) == 3
    assert ready["class"] == "StableDiffusionPipeline"
    assert any("Startup time" in line for line in log)


@pytest.mark.parametrize("dialect", ["sdnext-2023", "a1111", "a1111-1.7"])
async def test_a_job_waits_for_the_first_load_elsewhere(dialect: str) -> None:
    """The request blocks until the model is there."""
    knobs = Knobs(start_model_seconds=math.inf)
    async with simulated(dialect, knobs) as s, in_background(s.generate()) as request:
        await wait_until(lambda: s.sim.stats.in_flight == 1)
        assert s.sim.stats.loads == []
        knobs.start_model_seconds = 0
        assert model_of(await request) == "dreamshaper_8"


async def test_forge_loads_with_the_first_job() -> None:
    """Nothing is loaded before it, whatever the settings say."""
    async with simulated("forge") as s:
        await s.get("options")
        assert s.sim.stats.loads == []
        await s.generate()
        assert s.sim.stats.loads == ["dreamshaper_8"]


@pytest.mark.parametrize("dialect", ["sdnext", "a1111"])
async def test_a_restart_cuts_what_runs_and_keeps_the_settings(dialect: str) -> None:
    """Down for a while, back on the same port with the same settings and a new state."""
    async with simulated(dialect, Knobs(step_seconds=0.01)) as s:
        await s.post("options", {"samples_format": "webp"})
        async with in_background(s.generate(steps=5000)) as request:
            await s.began()
            s.sim.knobs.start_port_seconds = math.inf
            s.sim.restart()
            with pytest.raises(CUT):
                await request
        with pytest.raises(httpx.ConnectError):
            await s.get("options")
        s.sim.knobs.start_port_seconds = 0
        await wait_until(lambda: s.sim.listening)
        assert (await s.get("options")).json()["samples_format"] == "webp"
        assert (await s.get("progress")).json()["state"]["job_count"] == 0
        assert s.sim.stats.starts == 2
        assert s.sim.stats.in_flight == 0


async def test_a_restart_can_be_asked_for_over_http() -> None:
    """POST /simulator/restart, for tests in another process."""
    async with simulated("sdnext") as s:
        with pytest.raises(CUT):
            await s.client.post("/simulator/restart", json={"seconds": 0.05})
        await wait_until(lambda: s.sim.stats.starts == 2 and s.sim.listening)
        assert (await s.generate()).status_code == 200


async def test_a_fault_restarts_in_the_middle_of_a_generation() -> None:
    """The connection is cut, and the server comes back by itself."""
    async with simulated("sdnext") as s:
        s.sim.knobs.arm("restart", seconds=0.05)
        with pytest.raises(CUT):
            await s.generate()
        await wait_until(lambda: s.sim.listening)
        assert len((await s.generate()).json()["images"]) == 1


@pytest.mark.parametrize("fault", ["exit", "shutdown"])
async def test_a_server_that_exits_stays_away(fault: str) -> None:
    """In a test's own process the socket closes for good; `restart` brings it back as a supervisor would."""
    async with simulated("sdnext") as s:
        if fault == "exit":
            s.sim.knobs.arm("exit")
            with pytest.raises(CUT):
                await s.generate()
        else:
            async with in_background(s.post("shutdown")):
                await wait_until(lambda: not s.sim.listening)
        with pytest.raises(httpx.ConnectError):
            await s.generate()
        s.sim.restart()
        await wait_until(lambda: s.sim.listening)
        assert (await s.generate()).status_code == 200


async def test_salads_fork_does_not_shut_down() -> None:
    """500 in plain text, and it lives on; nor has it /docs, /status or /checkpoint."""
    async with simulated("sdnext-2023") as s:
        answer = await s.post("shutdown")
        absent = [(await s.client.get(path)).status_code for path in ("/docs", "/sdapi/v1/status")]
        assert (await s.generate()).status_code == 200
    assert (answer.status_code, answer.text) == (500, "Internal Server Error")
    assert absent == [404, 404]


async def test_only_ipv6_answers_unless_there_is_none() -> None:
    """Like the real servers on their IPv6 address: 127.0.0.1 is refused, or is all there is."""
    async with simulated("sdnext") as s:
        assert s.sim.url.startswith("http://[::1]:")
        with pytest.raises(httpx.ConnectError):
            await s.client.get(s.sim.url.replace("[::1]", "127.0.0.1"))
    async with simulated("sdnext", Knobs(no_ipv6=True)) as s:
        assert s.sim.url.startswith("http://127.0.0.1:")
        assert (await s.generate()).status_code == 200


async def test_an_address_in_use_is_an_error() -> None:
    """The port is reserved from the first moment on."""
    async with simulated("sdnext") as s:
        port = int(s.sim.url.rpartition(":")[2])
        with pytest.raises(OSError, match="in use"):
            async with simulated("sdnext", port=port):
                raise AssertionError("two servers on one port")


async def test_idle_connections_are_closed() -> None:
    """SD.Next closes after five seconds, here after the knob's time: the next request needs a new connection."""
    async with simulated("sdnext", Knobs(keep_alive_seconds=0)) as s:
        host, _, port = s.sim.url.removeprefix("http://").rpartition(":")
        reader, writer = await asyncio.open_connection(host.strip("[]"), int(port))
        writer.write(b"GET /sdapi/v1/memory HTTP/1.1\r\nHost: x\r\n\r\n")
        async with asyncio.timeout(5):
            answer = await reader.read()
        writer.close()
    assert answer.startswith(b"HTTP/1.1 200")
    assert s.sim.dialect.keep_alive_seconds == 5


@pytest.mark.parametrize("dialect", ALL)
async def test_small_routes_answer_in_each_dialects_way(dialect: str) -> None:
    """The lists, the flags, the pages, and what is missing where."""
    paths = ["samplers", "schedulers", "upscalers", "embeddings", "cmd-flags", "memory", "log", "version"]
    async with simulated(dialect) as s:
        codes = {path: (await s.get(path)).status_code for path in paths}
        page = (await s.client.get("/")).status_code
        embeddings = (await s.get("embeddings")).json()["loaded"]
        sampler = (await s.get("samplers")).json()[0]
    sdnext, modern = dialect.startswith("sdnext"), dialect in ("a1111", "forge")
    assert codes["schedulers"] == (200 if modern else 404)
    assert codes["cmd-flags"] == (500 if dialect == "forge" else 200)
    assert codes["log"] == (200 if sdnext else 404)
    assert codes["version"] == (200 if dialect == "sdnext" else 404)
    assert {codes["samplers"], codes["upscalers"], codes["memory"]} == {200}
    assert page == (404 if dialect == "forge" else 200)
    assert embeddings == ([] if dialect == "sdnext" else {})
    assert ("aliases" in sampler) == (dialect != "sdnext")


async def test_the_older_probes_find_their_status() -> None:
    """Salad's fork has the extension's route with memory in GB, and no route of the current server."""
    async with simulated("sdnext-2023") as s:
        s.sim.knobs.arm("oom")
        await s.generate()
        memory = (await s.get("system-info/status")).json()["memory"]
    assert memory["gpu"]["total"] == 24
    assert memory["events"]["oom"] == 1


async def test_the_log_can_be_cleared_and_written() -> None:
    """GET with clear empties it, which is why nobody should; POST takes a line."""
    async with simulated("sdnext") as s:
        first = (await s.get("log", params={"clear": "true"})).json()
        second = (await s.get("log")).json()
        written = await s.post("log", {"message": "x"})
        version = (await s.get("version")).json()
        docs = await s.client.get("/docs")
    assert (len(first), second) == (1, [])
    assert written.status_code == 204
    assert version["hash"] == "058a7f0c"
    assert docs.headers["content-type"].startswith("text/html")


async def test_a_restart_drops_the_queue_inside() -> None:
    """Who waited for the lock gets no answer either, and the lock is free afterwards."""
    async with (
        simulated("a1111", Knobs(step_seconds=0.01)) as s,
        in_background(s.generate(steps=5000)) as running,
        in_background(s.generate()) as waiting,
    ):
        await wait_until(lambda: s.sim.stats.in_flight == 2)
        s.sim.restart()
        for request in (running, waiting):
            with pytest.raises(CUT):
                await request
        await wait_until(lambda: s.sim.listening)
        assert (await s.generate()).status_code == 200


def test_the_limiter_forgets_after_a_minute() -> None:
    """A sliding window for each client and path."""
    now = 0.0
    limiter = RateLimiter(lambda: now)
    path = "/sdapi/v1/txt2img"
    assert [limiter.exceeded("a", path, 10) for _ in range(3)] == [False, False, True]
    assert not limiter.exceeded("b", path, 10)
    now = 61.0
    assert not limiter.exceeded("a", path, 10)
    assert not limiter.exceeded("a", path, 0)
