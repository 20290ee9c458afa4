"""The simulated Fooocus-API answers as the real one does, its silences included."""

from __future__ import annotations

import asyncio
import base64
import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from tests.support.fooocus import ALL, DEFAULT, NEW, OLD, SECOND, image
from tests.support.made import safetensors
from tests.support.pictures import picture
from tests.support.waiting import wait_until
from worker.simulators.fooocus import Fooocus, Knobs, running

every = pytest.mark.parametrize("version", ALL)
TEXT = "/v1/generation/text-to-image"


@asynccontextmanager
async def served(
    version: str, knobs: Knobs | None = None, **options: Any
) -> AsyncIterator[tuple[Fooocus, httpx.AsyncClient]]:
    """A running simulator and a client that ignores proxies."""
    async with (
        running(version, knobs, **options) as sim,
        httpx.AsyncClient(base_url=sim.url, trust_env=False, verify=False, timeout=20) as client,
    ):
        yield sim, client


def body(prompt: str = "a cat", **fields: Any) -> dict[str, Any]:
    """A small request that is answered with its result."""
    small = {"prompt": prompt, "aspect_ratios_selection": "64*64", "image_seed": 1}
    return {**small, **fields, "advanced_params": {"overwrite_step": 2, **fields.get("advanced_params", {})}}


def shown(data: bytes) -> Image.Image:
    """A picture of an answer."""
    return Image.open(io.BytesIO(data))


@every
async def test_routes_that_tell_of_the_server(version: str) -> None:
    """Ping, lists, the queue, the description, and 404 as FastAPI says it."""
    async with served(version) as (sim, client):
        assert (await client.get("/ping")).json() == "pong"
        assert "/docs" in (await client.get("/")).text
        assert DEFAULT in (await client.get("/v1/engines/all-models")).json()["model_filenames"]
        assert "Fooocus V2" in (await client.get("/v1/engines/styles")).json()
        queue = {"running_size": 0, "finished_size": 0, "last_job_id": None}
        assert (await client.get("/v1/generation/job-queue")).json() == queue
        paths = (await client.get("/openapi.json")).json()["paths"]
        assert ("/v2/generation/image-enhance" in paths) is (version == NEW)
        answer = await client.get("/v1/engines/clean_vram")
        assert (answer.status_code, answer.json()) == (
            (200, {"message": "ok"}) if version == NEW else (404, {"detail": "Not Found"})
        )
        assert sim.stats.requests["GET /ping"] == 1


@every
async def test_a_synchronous_request_waits_for_its_results(version: str) -> None:
    """A list of base64 without metadata and of URLs; the file has the metadata."""
    async with served(version) as (_, client):
        [result] = (await client.post(TEXT, json=body(require_base64=True))).json()
        assert (result["seed"], result["finish_reason"]) == ("1", "SUCCESS")
        head, _, text = result["base64"].rpartition(",")
        assert head == ("data:image/png;base64" if version == NEW else "")
        assert "parameters" not in shown(base64.b64decode(text)).info
        file = await client.get("/files/" + result["url"].rpartition("/files/")[2])
        assert "base_model" in shown(file.content).info["parameters"]
        assert (await client.get("/files/2026-01-01/none.png")).status_code == 404


@every
async def test_a_picture_itself_where_that_is_accepted(version: str) -> None:
    """By the header or the query; a failure is then told by the status."""
    knobs = Knobs()
    async with served(version, knobs) as (_, client):
        assert shown((await client.post(f"{TEXT}?accept=image/png", json=body())).content).size == (64, 64)
        knobs.arm("oom")
        failed = await client.post(TEXT, json=body(), headers={"accept": "image/png"})
        assert failed.status_code == 500


@every
async def test_unknown_names_become_defaults(version: str) -> None:
    """With a line in the log as the only sign."""
    names: dict[str, Any] = {
        "base_model_name": "x",
        "refiner_model_name": "x",
        "style_selections": ["x", "Fooocus Sharp"],
    }
    advanced = {"sampler_name": "x", "scheduler_name": "x", "inpaint_engine": "x", "refiner_swap_method": "x"}
    loras = [{"enabled": False, "model_name": "detail.safetensors"}, {"enabled": True, "model_name": "x"}]
    async with served(version) as (sim, client):
        await client.post(TEXT, json=body(**names, advanced_params=advanced, loras=loras))
        made = sim.machine.history[0].body
        assert (made.base_model_name, made.refiner_model_name, made.style_selections) == (
            DEFAULT,
            "None",
            ["Fooocus Sharp"],
        )
        assert (made.advanced_params.sampler_name, made.advanced_params.scheduler_name) == (
            "dpmpp_2m_sde_gpu",
            "karras",
        )
        assert [lora.model_name for lora in made.loras] == (
            ["detail.safetensors", "None"] if version == OLD else ["None"]
        )
        assert len([line for line in sim.journal.lines if "Wrong" in line]) == 7


@every
async def test_a_job_goes_through_its_stages(version: str) -> None:
    """0.5 never says RUNNING; the history lists it, and its times only there."""
    async with served(version, Knobs(step_seconds=0.01)) as (sim, client):
        first = (await client.post(TEXT, json=body(async_process=True, advanced_params={"overwrite_step": 50}))).json()
        second = (await client.post(TEXT, json=body(async_process=True))).json()
        assert (first["job_stage"], first["job_type"], first["job_result"]) == ("WAITING", "Text to Image", None)
        await wait_until(lambda: sim.machine.queue[0].progress > 15)
        found = (await client.get("/v1/generation/query-job", params={"job_id": first["job_id"]})).json()
        assert found["job_stage"] == ("RUNNING" if version == OLD else "WAITING")
        assert found["job_status"].startswith("Step ")
        listed = (await client.get("/v1/generation/job-history")).json()
        assert [j["job_id"] for j in listed["queue"]] == [first["job_id"], second["job_id"]]
        assert ("start_mills" in listed["queue"][0]) is (version == NEW)
        unknown = await client.get("/v1/generation/query-job", params={"job_id": "x"})
        assert (unknown.status_code, unknown.json()["job_type"]) == (404, "Not Found")


@every
async def test_a_stop_hits_what_samples_next(version: str) -> None:
    """An error on 0.4, a success without pictures on 0.5; sent while nothing runs it waits for a victim."""
    async with served(version) as (sim, client):
        assert (await client.post("/v1/generation/stop")).json() == {"msg": "success"}
        job = (await client.post(TEXT, json=body(async_process=True))).json()["job_id"]
        await wait_until(lambda: sim.machine.history)
        found = (await client.get("/v1/generation/query-job", params={"job_id": job})).json()
        assert (found["job_stage"], found["job_result"]) == (("ERROR", None) if version == OLD else ("SUCCESS", []))
        assert any("User stopped" in line for line in sim.journal.lines)


@every
async def test_a_queue_has_an_end(version: str) -> None:
    """Answered with 200, in the way of each mode."""
    async with served(version, Knobs(queue_size=0)) as (_, client):
        [sync] = (await client.post(TEXT, json=body())).json()
        assert sync["finish_reason"] == "QUEUE_IS_FULL"
        later = (await client.post(TEXT, json=body(async_process=True))).json()
        assert (later["job_id"], later["job_stage"]) == ("", "ERROR")


@every
async def test_what_is_out_of_range_is_422(version: str) -> None:
    """With the place of the mistake."""
    async with served(version) as (_, client):
        answer = await client.post(TEXT, json=body(image_number=33))
        assert answer.status_code == 422
        assert answer.json()["detail"][0]["loc"] == ["body", "image_number"]


@every
async def test_the_key_guards_all_but_files_and_description(version: str) -> None:
    """403 without it."""
    async with served(version, api_key="k") as (_, client):
        assert (await client.get("/ping")).status_code == 403
        assert (await client.get("/openapi.json")).status_code == 200
        assert (await client.get("/ping", headers={"X-API-KEY": "k"})).json() == "pong"


@every
async def test_what_changes_a_picture_and_what_does_not(version: str) -> None:
    """The same request the same pixels; another LoRA, model or input another picture."""
    async with served(version) as (_, client):

        async def pixels(path: str = TEXT, **fields: Any) -> bytes:
            answer = await client.post(f"{path}?accept=image/png", json=body(**fields))
            return shown(answer.content).tobytes()

        first = await pixels()
        assert await pixels(save_extension="webp", webhook_url="http://x") != b""
        assert await pixels(advanced_params={"disable_preview": True}) == first
        lora = [{"enabled": True, "model_name": "detail.safetensors", "weight": 1}]
        others = [await pixels(image_seed=2), await pixels(base_model_name=SECOND), await pixels(loras=lora)]
        for seed in (1, 2):
            given = image(picture(64, 64, seed=seed))
            vary = {"input_image": given, "advanced_params": {"overwrite_vary_strength": 1.0}}
            others.append(await pixels("/v2/generation/image-upscale-vary", uov_method="Vary (Subtle)", **vary))
        assert len({first, *others}) == 6


@every
async def test_history_may_be_short(version: str, tmp_path: Path) -> None:
    """What falls out of it loses its files."""
    async with served(version, Knobs(queue_history=1), outputs=tmp_path) as (sim, client):
        for _ in range(3):
            await client.post(TEXT, json=body())
        assert len(sim.machine.history) == 1
        assert len(await asyncio.to_thread(lambda: list(tmp_path.rglob("*.png")))) == 1


async def test_0_5_deletes_and_fails() -> None:
    """The files go before the missing database is noticed; with one it says so."""
    knobs = Knobs()
    async with served(NEW, knobs) as (sim, client):
        for persistent, status in ((False, 500), (True, 200)):
            knobs.persistent = persistent
            await client.post(TEXT, json=body())
            job = sim.machine.history[0].id
            answer = await client.get("/v1/generation/job-history", params={"job_id": job, "delete": "true"})
            assert (answer.status_code, sim.machine.history) == (status, [])


async def test_0_5_knows_a_typo_that_kills_it() -> None:
    """A metadata scheme that is none is no error of the job but the end of the thread."""
    async with served(NEW) as (sim, client):
        await client.post(TEXT, json=body(async_process=True, meta_scheme="a111"))
        await wait_until(lambda: sim.machine.dead)
        assert any("task_schedule_loop" in line for line in sim.journal.lines)


async def test_preprocessors_may_be_shown_at_a_price() -> None:
    """0.4 fails, 0.5 begins anew for ever."""
    request = body(async_process=True, advanced_params={"debugging_cn_preprocessor": True})
    async with served(OLD) as (sim, client):
        await client.post(TEXT, json=request)
        await wait_until(lambda: sim.machine.history)
        assert sim.machine.history[0].failed
    async with served(NEW) as (sim, client):
        await client.post(TEXT, json=request)
        await wait_until(lambda: sim.stats.generations)
        assert len(sim.machine.queue) == 1


@every
async def test_the_simulator_is_steered_over_http(version: str) -> None:
    """Knobs, models, log, statistics, release and restart, for tests in other processes."""
    async with served(version) as (sim, client):
        turned = await client.post("/simulator/knobs", json={"arm": {"kind": "black"}, "printing": False})
        assert turned.json()["faults"][0]["kind"] == "black"
        assert sim.journal.silent
        assert (await client.get("/simulator/knobs")).json()["printing"] is False
        assert (await client.post("/simulator/knobs", json={"x": 1})).status_code == 400
        added = await client.post("/simulator/models", json={"add": ["n.safetensors"], "remove": [DEFAULT]})
        assert "n.safetensors" in added.json()["files"]
        assert DEFAULT not in sim.catalogue.models
        assert (await client.post("/simulator/models", json={"x": 1})).status_code == 400
        assert (await client.post("/simulator/release")).json() is None
        assert isinstance((await client.get("/simulator/log")).json(), list)
        assert (await client.get("/simulator/stats")).json()["starts"] == 1
        with pytest.raises(httpx.TransportError):
            await client.post("/simulator/restart")
        await wait_until(lambda: sim.listening and sim.stats.starts == 2)


async def test_real_folders_are_listed_too(tmp_path: Path) -> None:
    """Read anew at each request; on a server without IPv6 under the other address."""
    (tmp_path / "loras" / "sub").mkdir(parents=True)
    (tmp_path / "loras" / "sub" / "a.safetensors").touch()
    (tmp_path / "loras" / "notes.txt").touch()
    async with served(OLD, Knobs(no_ipv6=True), models_dir=tmp_path, loras=()) as (sim, client):
        assert sim.url.startswith("http://127.0.0.1:")
        assert (await client.get("/v1/engines/all-models")).json()["lora_filenames"] == ["sub/a.safetensors"]


async def test_who_hosts_it_is_told_of_its_end() -> None:
    """The fault `exit` calls the hook instead of closing the port; lines go to whoever listens."""
    ended, lines = asyncio.Event(), list[str]()
    knobs = Knobs()
    knobs.arm("crash")
    async with served(OLD, knobs, on_line=lines.append) as (sim, client):
        sim.on_exit = ended.set
        await client.post(TEXT, json=body(async_process=True))
        await asyncio.wait_for(ended.wait(), 5)
        assert "terminate called after throwing an instance of 'c10::Error'" in lines


@every
async def test_a_file_that_is_cut_off_is_moved_away(version: str, tmp_path: Path) -> None:
    """The job fails for a reason that only the log tells; a LoRA that is gone is left out."""
    for name in ("checkpoints/a.safetensors", "checkpoints/half.safetensors", "loras/ink.safetensors"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(safetensors())
    half = tmp_path / "checkpoints" / "half.safetensors"
    half.write_bytes(safetensors()[:-1])
    async with served(version, models=(), loras=(), models_dir=tmp_path) as (sim, client):
        answer = (await client.post(TEXT, json=body(base_model_name=half.name))).json()
        assert not [item for item in answer if item["finish_reason"] == "SUCCESS"]
        await wait_until(lambda: any("corrupted" in line for line in sim.journal.lines))
        assert (await client.get("/v1/engines/all-models")).json()["model_filenames"] == ["a.safetensors"]
        assert half.with_name("half.safetensors.corrupted").exists()
        sim.machine.unloadable = lambda kind, name: (
            sim.catalogue.fault(kind, f"gone-{name}") if kind == "loras" else None
        )
        lora = {"enabled": True, "model_name": "ink.safetensors", "weight": 1.0}
        made = (await client.post(TEXT, json=body(base_model_name="a.safetensors", loras=[lora]))).json()
        assert [item["finish_reason"] for item in made] == ["SUCCESS"]
        assert "Lora file not found: ink.safetensors" in sim.journal.lines
        sim.machine.unloadable = lambda kind, name: "No such file or directory"
        sim.machine.loaded = None
        gone = (await client.post(TEXT, json=body(base_model_name="a.safetensors"))).json()
        assert not [item for item in gone if item["finish_reason"] == "SUCCESS"]
