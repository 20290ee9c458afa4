"""The API of Automatic1111, Forge and SD.Next at the worker: their clients see the server, and gain the pipeline."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
import webuiapi  # type: ignore[import-untyped]

from tests.support.bench import PATIENCE_S, RunningWorker, running_worker
from tests.support.pictures import picture
from tests.support.sims import TITLES, base64_png, in_background
from tests.support.waiting import wait_until
from worker.simulators import Knobs, Simulator

Worker = RunningWorker[Simulator]
ALLOW: dict[str, Any] = {"WORKER_ENGINE_OPTIONS": "allow"}
pytestmark = pytest.mark.asyncio(loop_scope="module")
ALL = ("a1111", "a1111-1.7", "forge", "sdnext", "sdnext-2023")
SMALL = {"prompt": "a cat", "seed": 7, "steps": 2, "width": 64, "height": 64}
SECRET = "hf_canary"
DRAWN = {"subseed", "all_subseeds", "job_timestamp"}
"""What a server draws anew for each request."""

LISTS = (
    *("sd-models", "samplers", "schedulers", "loras", "upscalers", "sd-vae", "sd-modules", "memory", "status"),
    *("latent-upscale-modes", "prompt-styles", "scripts", "script-info", "extensions", "embeddings", "version"),
    *("hypernetworks", "face-restorers", "realesrgan-models", "checkpoint", "system-info/status"),
)
SAID_BY_US = {
    *("do_not_save_samples", "do_not_save_grid", "return_grid", "keep_incomplete"),
    *("override_settings", "override_settings_restore_afterwards", "alwayson_scripts"),
}
"""What we say for the caller, and the server echoes."""


@asynccontextmanager
async def gateway(
    root: Path, dialect: str = "a1111", knobs: Knobs | None = None, **changes: Any
) -> AsyncIterator[Worker]:
    variables = {"WORKER_QUEUE": "none", "WORKER_WARMUP": "none", "WORKER_ENGINE": dialect.partition("-")[0], **changes}
    if variables["WORKER_ENGINE"] == "forge":
        variables["WORKER_ENGINE"] = "a1111"
    async with running_worker(root, dialect, knobs, quiet_s=10, **variables) as worker:
        worker.client.timeout = httpx.Timeout(PATIENCE_S)
        yield worker


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=ALL)
async def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Worker]:
    """Each dialect; global settings may be changed, so that each test sets the model that it relies on."""
    async with gateway(tmp_path_factory.mktemp("gateway"), request.param, **ALLOW) as worker:
        yield worker


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def plain(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Worker]:
    """Automatic1111, as a worker is usually configured."""
    async with gateway(tmp_path_factory.mktemp("gateway")) as worker:
        yield worker


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def sdnext(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Worker]:
    """The current SD.Next, with changes allowed."""
    async with gateway(tmp_path_factory.mktemp("gateway"), "sdnext", **ALLOW) as worker:
        yield worker


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def a1111(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Worker]:
    """Automatic1111, with changes allowed."""
    async with gateway(tmp_path_factory.mktemp("gateway"), **ALLOW) as worker:
        yield worker


async def post(worker: Worker, path: str, document: Any = None, **options: Any) -> httpx.Response:
    return await worker.client.post(f"/sdapi/v1/{path}", json=document, **options)


async def get(worker: Worker, path: str, **options: Any) -> httpx.Response:
    return await worker.client.get(f"/sdapi/v1/{path}", **options)


async def made(worker: Worker, path: str = "txt2img", **fields: Any) -> dict[str, Any]:
    response = await post(worker, path, {**SMALL, **fields})
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


def model_of(document: dict[str, Any]) -> str:
    return str(json.loads(document["info"])["infotexts"][0].partition(" Model: ")[2].split(",")[0])


async def test_answers_are_the_servers(server: Worker) -> None:
    """Images, echo and info key by key, where only what we say for the caller differs, and lists as they are.

    What the server has not is not found, and neither is anything else of it.
    """
    worker = server
    async with httpx.AsyncClient(base_url=worker.sim.url, trust_env=False, timeout=PATIENCE_S) as client:
        await _same_images(worker, client)
        for name in LISTS:
            theirs, ours = await client.get(f"/sdapi/v1/{name}"), await get(worker, name)
            assert ours.status_code == theirs.status_code, name
            if theirs.is_success and name != "status":
                assert ours.json() == theirs.json(), name
            elif not theirs.is_success:
                assert (ours.json()["code"], ours.json()["detail"]) == ("not_found", "Not Found")
        for path in ("/internal/ping", "/file=/etc/passwd", "/sdapi/v1/file", "/sdapi/v1/nosuch", "/v1/engines/styles"):
            assert (await worker.client.get(path)).status_code == 404, path


async def _same_images(worker: Worker, client: httpx.AsyncClient) -> None:
    for path, fields in (
        ("txt2img", {"batch_size": 2}),
        ("img2img", {"init_images": [f"data:image/png;base64,{base64_png()}"], "denoising_strength": 0.5}),
    ):
        theirs = (await client.post(f"/sdapi/v1/{path}", json={**SMALL, **fields})).json()
        ours = await made(worker, path, **fields)
        assert list(ours) == list(theirs) == ["images", "parameters", "info"]
        assert ours["images"] == theirs["images"]
        assert differing(theirs["parameters"], ours["parameters"]) <= SAID_BY_US
        assert differing(json.loads(theirs["info"]), json.loads(ours["info"])) <= DRAWN
        assert isinstance(ours["info"], str)


def differing(theirs: dict[str, Any], ours: dict[str, Any]) -> set[str]:
    """The keys whose values differ; there are the same keys in the same order."""
    assert list(theirs) == list(ours)
    return {key for key in theirs if theirs[key] != ours[key]}


async def test_credentials_stay_with_the_worker(tmp_path: Path) -> None:
    """The server is asked with the worker's own; what its settings and flags hold is blanked."""
    login: dict[str, Any] = {"WORKER_ENGINE_USERNAME": "u", "WORKER_ENGINE_PASSWORD": SECRET}
    async with gateway(tmp_path, auth=f"u:{SECRET}", **login) as worker:
        worker.sim.options["huggingface_token"] = SECRET
        for name in ("options", "cmd-flags"):
            response = await get(worker, name)
            assert response.status_code == 200
            assert SECRET not in response.text
        assert (await get(worker, "options")).json()["huggingface_token"] == ""
        assert (await get(worker, "cmd-flags")).json()["api_auth"] == ""


async def test_the_log_may_be_cleared_where_changes_are_allowed(sdnext: Worker, plain: Worker) -> None:
    """It may hold credentials and prompts, so that reading it is for the operator to allow as well."""
    assert (await get(plain, "log", params={"clear": "true"})).status_code == 403
    sdnext.sim.machine.log.append("a line")
    assert "a line" in (await get(sdnext, "log", params={"lines": "100"})).json()
    assert "a line" in (await get(sdnext, "log", params={"clear": "true"})).json()
    assert "a line" not in sdnext.sim.machine.log


async def test_progress_never_spoils_a_picture(sdnext: Worker) -> None:
    """SD.Next draws a preview for whoever asks, and gives it as the result when the job fails: its status tells all."""
    sdnext.sim.knobs.arm("hang", prompt="slow")
    before = sdnext.sim.stats.requests["GET /sdapi/v1/progress"]
    async with in_background(post(sdnext, "txt2img", {**SMALL, "steps": 4, "prompt": "slow"})) as job:
        await wait_until(lambda: sdnext.sim.machine.state.sampling and sdnext.sim.machine.state.sampling_step >= 3)
        told = (await get(sdnext, "progress")).json()
        await wait_until(lambda: released(sdnext) and job.done())
        assert (await job).status_code == 200
    assert (told["state"]["sampling_step"], told["state"]["sampling_steps"], told["state"]["job_count"]) == (3, 4, 1)
    assert 0 < told["progress"] < 1
    assert told["current_image"] is None
    assert sdnext.sim.stats.requests["GET /sdapi/v1/progress"] == before


def released(worker: Worker) -> bool:
    """Let go on what hangs by now."""
    worker.sim.release()
    return True


async def test_older_servers_are_not_asked_for_a_preview(tmp_path: Path) -> None:
    """SD.Next of 2023 has nothing but its progress, and swallows its errors as well; Automatic1111 does not."""
    asked: list[str] = []
    async with gateway(tmp_path, "sdnext-2023") as worker:
        route = worker.sim._api._routes["/sdapi/v1/progress"]  # type: ignore[union-attr]
        progress, guarded = route["GET"]

        async def noted(request: Any) -> Any:
            asked.append(str(request.url.query))
            return await progress(request)

        route["GET"] = (noted, guarded)
        assert (await get(worker, "progress")).json()["current_image"] is None
        await get(worker, "progress", params={"skip_current_image": "false", "other": "1"})
    assert set(asked) == {"skip_current_image=true"}


async def test_our_fields_stand_beside_the_servers(plain: Worker) -> None:
    """The images are stored as well, in the format asked for; without images the answer is still the server's."""
    output = {"storage": "directory", "format": "webp", "prefix": "mine"}
    document = await made(plain, output=output, metadata={"a": 1}, checkpoint=TITLES["a1111"])
    (image,) = document["images"]
    data = base64.b64decode(image)
    assert data[8:12] == b"WEBP"
    assert [d for name, d in plain.files().items() if name.endswith(".webp")] == [data]
    assert model_of(document) == "sd_xl_base_1.0"
    assert (await made(plain, send_images=False))["images"] == []


async def test_an_idempotency_key_joins(plain: Worker) -> None:
    """A client that lost the connection gets the very same answer without a second generation."""
    before = len(plain.sim.stats.generations)
    answers = [await post(plain, "txt2img", SMALL, headers={"Idempotency-Key": "k1"}) for _ in range(2)]
    other = await post(plain, "txt2img", {**SMALL, "seed": 8}, headers={"Idempotency-Key": "k1"})
    assert answers[0].content == answers[1].content
    assert len(plain.sim.stats.generations) == before + 1
    assert (other.status_code, other.json()["code"]) == (409, "id_conflict")


async def test_a_webhook_makes_it_asynchronous(tmp_path: Path) -> None:
    """202 with the id; the images come with the webhook."""
    async with gateway(tmp_path, WORKER_URLS_ALLOW_PRIVATE="true") as worker:
        response = await post(worker, "txt2img", {**SMALL, "webhook": worker.receiver.url("/mine")})
        assert response.status_code == 202
        job_id = response.json()["id"]
        await wait_until(lambda: worker.told(job_id) == ["job.succeeded"], PATIENCE_S)
        (told,) = [one["data"] for one in worker.receiver.documents if one["data"]["id"] == job_id]
        assert base64.b64decode(told["images"][0]["base64"]).startswith(b"\x89PNG")
        refused = await post(worker, "extra-single-image", {"image": base64_png(), "webhook": "ftp://x"})
        assert (refused.status_code, refused.json()["errors"][0]["field"]) == (422, "webhook.url")


MISTAKES: tuple[tuple[str, Any, str], ...] = (
    ("txt2img", {"prompt": "x", "cfg_scal": 3}, "cfg_scal"),
    ("txt2img", {"prompt": "x", "sampler_name": "nope"}, "sampler_name"),
    ("txt2img", {"prompt": "x", "output": {"format": "gif"}}, "output.format"),
    ("img2img", {"prompt": "x"}, "init_images"),
    ("img2img", {"prompt": "x", "init_images": ["not base64!"]}, "init_images.0"),
    ("extra-single-image", {}, "image"),
    ("png-info", {"image": "http://169.254.169.254/"}, "image"),
)
REFUSED = (
    *("options", "unload-checkpoint", "reload-checkpoint", "checkpoint", "lock-checkpoint", "interrupt", "skip"),
    *("shutdown", "restart", "server-kill", "server-stop", "server-restart", "log"),
)


async def test_what_is_wrong_or_not_allowed(plain: Worker) -> None:
    """Mistakes are named in the words of the request, with the ``detail`` that its clients read; bodies that are none
    are problems of the caller's; and of what is refused nothing reaches the server."""
    before = dict(plain.sim.stats.requests)
    for path, document, field in MISTAKES:
        response = await post(plain, path, document)
        told = response.json()
        assert (response.status_code, response.headers["content-type"]) == (422, "application/problem+json")
        assert [error["field"] for error in told["errors"]] == [field]
        assert field in told["detail"]
    for path in ("/sdapi/v1/txt2img", "/sdapi/v1/extra-single-image", "/sdapi/v1/png-info", "/controlnet/detect"):
        for content in (b"", b"nonsense", b"[]", b'"text"', b"\xff\xfe"):
            assert (await plain.client.post(path, content=content)).status_code == 422, (path, content)
    for name in REFUSED:
        response = await post(plain, name, {"sd_model_checkpoint": "x"})
        assert (response.status_code, response.json()["code"]) == (403, "engine_options_refused"), name
    after = plain.sim.stats.requests
    assert {path for path in after if path.startswith("POST") and after[path] != before.get(path, 0)} == set()


async def test_a_changed_model_is_the_model(server: Worker) -> None:
    """Jobs that name none use it, those that do use theirs, and a failed one leaves the server with it."""
    name, sim = TITLES[server.sim.dialect.name], server.sim
    kind: Any = "empty" if sim.dialect.sdnext else "error_500"
    fault = sim.knobs.arm(kind, prompt="broken", times=None, text="it broke")
    other = {"sd_model_checkpoint": "dreamshaper_8"}
    assert (await post(server, "options", {"sd_model_checkpoint": name})).status_code == 200
    assert model_of(await made(server)) == "sd_xl_base_1.0"
    assert model_of(await made(server, override_settings=other)) == "dreamshaper_8"
    assert (await post(server, "options", {"sd_model_checkpoint": name})).status_code == 200
    broken = {**SMALL, "prompt": "broken", "override_settings": other}
    assert (await post(server, "txt2img", broken)).status_code == 422
    await server.ready()
    assert model_of(await made(server)) == "sd_xl_base_1.0"
    sim.knobs.faults.remove(fault)


async def test_changes_that_would_break_the_server_are_refused(server: Worker) -> None:
    """A model that is not there would unload the present one; what answers rest on is the operator's."""
    present = model_of(await made(server))
    for document, field in (
        ({"sd_model_checkpoint": "nope"}, "sd_model_checkpoint"),
        ({"samples_format": "jpg"}, "samples_format"),
        ({"nosuch": 1}, "nosuch"),
    ):
        response = await post(server, "options", document)
        assert response.status_code == 422
        assert response.json()["detail"].startswith(f"{field}: ")
    if server.sim.dialect.current:
        response = await post(server, "checkpoint", params={"sd_model_checkpoint": "nope"})
        assert (response.status_code, response.json()["code"]) == (422, "model_not_found")
    assert model_of(await made(server)) == present


async def test_new_files_are_found_after_a_refresh(server: Worker) -> None:
    """Which is free for all, and jobs may name them at once."""
    server.sim.disk.add("new_one.safetensors")
    assert (await post(server, "refresh-checkpoints")).is_success
    assert "new_one" in (await get(server, "sd-models")).text
    assert model_of(await made(server, override_settings={"sd_model_checkpoint": "new_one"})) == "new_one"


async def test_a_changed_setting_lasts(a1111: Worker) -> None:
    """A job that overrides it gives it back; so do clients that send all that they have read."""
    options = (await get(a1111, "options")).json()
    response = await post(a1111, "options", {**options, "CLIP_stop_at_last_layers": 2})
    assert (response.status_code, response.json()) == (200, None)
    assert json.loads((await made(a1111))["info"])["clip_skip"] == 2
    own = await made(a1111, override_settings={"CLIP_stop_at_last_layers": 3})
    assert json.loads(own["info"])["clip_skip"] == 3
    assert json.loads((await made(a1111))["info"])["clip_skip"] == 2


async def test_a_model_may_be_chosen_and_unloaded(sdnext: Worker) -> None:
    """By SD.Next's own way, in a turn; the next job loads what was let go."""
    chosen = await post(sdnext, "checkpoint", params={"sd_model_checkpoint": "sd_xl_base_1.0.safetensors"})
    assert chosen.json() == {"ok": True}
    assert model_of(await made(sdnext)) == "sd_xl_base_1.0"
    assert (await post(sdnext, "unload-checkpoint")).status_code == 204
    assert (await get(sdnext, "checkpoint")).json()["class"] is None
    assert model_of(await made(sdnext)) == "sd_xl_base_1.0"
    assert (await post(sdnext, "reload-checkpoint", params={"force": "true"})).status_code == 204


@pytest.mark.parametrize("name", ["interrupt", "skip"])
async def test_an_interrupt_cancels_the_http_job(a1111: Worker, name: str) -> None:
    """Where allowed: its caller is told so, instead of being given half a picture, and the next job is whole."""
    a1111.sim.knobs.step_seconds = 0.02
    async with in_background(post(a1111, "txt2img", {**SMALL, "steps": 150})) as job:
        await wait_until(lambda: a1111.sim.machine.state.sampling)
        stopped = await post(a1111, name)
        assert (stopped.status_code, stopped.json()) == (200, {} if name == "interrupt" else None)
        answer = await job
    a1111.sim.knobs.step_seconds = 0.001
    assert (answer.status_code, answer.json()["code"]) == (409, "cancelled")
    assert len((await made(a1111))["images"]) == 1


async def test_an_interrupt_spares_the_queues_jobs(tmp_path: Path) -> None:
    """They are not the callers'."""
    both = {"WORKER_QUEUE": "sqlite", "WORKER_HTTP_JOBS": "on", **ALLOW}
    knobs = Knobs()
    knobs.arm("hang", prompt="slow")
    async with gateway(tmp_path, "sdnext", knobs, **both) as worker:
        await worker.submit("q1", params={"prompt": "slow", "width": 64, "height": 64, "steps": 4})
        await wait_until(lambda: worker.sim.machine.state.sampling_step >= 3)
        assert (await post(worker, "interrupt")).status_code == 204
        await wait_until(lambda: released(worker) and worker.told("q1"), PATIENCE_S)
        assert (await worker.ended("q1")).code is None
        assert worker.sim.stats.interrupts == 0


async def test_tools_take_their_turn(plain: Worker) -> None:
    """A job waits until the server is done with them."""
    stats = plain.sim.stats
    before = stats.requests["POST /sdapi/v1/txt2img"]
    async with AsyncExitStack() as busy:
        await busy.enter_async_context(plain.sim.machine.lock)
        async with in_background(post(plain, "interrogate", {"image": base64_png(), "model": "clip"})) as tool:
            await wait_until(lambda: stats.requests["POST /sdapi/v1/interrogate"])
            async with in_background(post(plain, "txt2img", SMALL)) as job:
                await wait_until(lambda: _waits(plain))
                assert stats.requests["POST /sdapi/v1/txt2img"] == before
                await busy.aclose()
                assert (await tool).json() == {"caption": "a picture of 64 by 64 pixels"}
                assert (await job).status_code == 200


async def _waits(worker: Worker) -> bool:
    return [job["hop"] for job in (await worker.status())["jobs"]] == ["waiting"]


async def test_webuiapi_on_sdnext(sdnext: Worker) -> None:
    """The client sends every field of Automatic1111, null where it does not care; here that server would refuse it."""
    found = await asyncio.to_thread(_as_a_client, sdnext.client.base_url.port or 0)
    assert found == {"txt2img": (64, 64), "img2img": (64, 64), "single": (128, 128), "batch": [(128, 128)] * 2}


def _as_a_client(port: int) -> dict[str, Any]:
    client = webuiapi.WebUIApi(host="[::1]", port=port)
    image = picture(64, 64)
    small = {"prompt": "x", "steps": 2, "width": 64, "height": 64}
    return {
        "txt2img": client.txt2img(**small).image.size,
        "img2img": client.img2img(images=[image], **small).image.size,
        "single": client.extra_single_image(image, upscaler_1="Lanczos").image.size,
        "batch": [one.size for one in client.extra_batch_images([image] * 2, upscaler_1="Lanczos").images],
    }
