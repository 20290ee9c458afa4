"""The API of Fooocus-API at the worker: its clients see the server, and gain the pipeline."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from tests.support.bench import PATIENCE_S, RunningWorker, running_worker
from tests.support.fooocus import image, small
from tests.support.pictures import opened, picture
from tests.support.sims import in_background
from tests.support.waiting import wait_until
from worker.simulators.fooocus import Fooocus

Worker = RunningWorker[Fooocus]
pytestmark = pytest.mark.asyncio(loop_scope="module")
TEXT, QUERY, STOP = (f"/v1/generation/{name}" for name in ("text-to-image", "query-job", "stop"))
ALLOW: dict[str, Any] = {"WORKER_ENGINE_OPTIONS": "allow"}


@asynccontextmanager
async def gateway(root: Path, dialect: str = "fooocus", **changes: Any) -> AsyncIterator[Worker]:
    variables = {"WORKER_QUEUE": "none", "WORKER_WARMUP": "none", "WORKER_ENGINE": "fooocus", **changes}
    async with running_worker(root, dialect, quiet_s=10, **variables) as worker:
        worker.client.timeout = httpx.Timeout(PATIENCE_S)
        yield worker


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["fooocus-0.4.1.1", "fooocus"])
async def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Worker]:
    """Each version, as a worker is usually configured."""
    async with gateway(tmp_path_factory.mktemp("gateway"), request.param) as worker:
        yield worker


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def allowing(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Worker]:
    """The current version, with changes and webhooks of this machine allowed."""
    root = tmp_path_factory.mktemp("gateway")
    async with gateway(root, WORKER_URLS_ALLOW_PRIVATE="true", **ALLOW) as worker:
        yield worker


def request(**fields: Any) -> dict[str, Any]:
    found: dict[str, Any] = small(**fields)["request"]
    return found


async def post(worker: Worker, document: Any, path: str = TEXT, **options: Any) -> httpx.Response:
    return await worker.client.post(path, json=document, **options)


def data_of(worker: Worker, text: str) -> bytes:
    """The picture in a result; the current version puts a data-URI before it."""
    if worker.sim.machine.series == "0.5":
        assert text.startswith("data:image/")
        text = text.partition(",")[2]
    return base64.b64decode(text, validate=True)


async def test_pictures_are_answered_as_the_server_does(server: Worker) -> None:
    """A list with an object a picture, seeds as text; what is nowhere to be fetched is given as base64."""
    for fields in ({}, {"require_base64": True}):
        response = await post(server, request(image_number=2, **fields))
        assert response.status_code == 200
        found = response.json()
        assert [list(one) for one in found] == [["base64", "url", "seed", "finish_reason"]] * 2
        assert [(one["url"], one["seed"], one["finish_reason"]) for one in found] == [
            (None, "7", "SUCCESS"),
            (None, "8", "SUCCESS"),
        ]
        assert [opened(data_of(server, one["base64"])).size for one in found] == [(64, 64)] * 2


@pytest.mark.parametrize("options", [{"headers": {"accept": "image/png"}}, {"params": {"accept": "image/png"}}])
async def test_the_picture_itself(server: Worker, options: dict[str, Any]) -> None:
    """To whoever accepts nothing else: the first, and one alone is made."""
    made = len(server.sim.stats.generations)
    response = await post(server, request(image_number=3, save_extension="webp"), **options)
    assert (response.status_code, response.headers["content-type"]) == (200, "image/png")
    assert opened(response.content).size == (64, 64)
    assert len(server.sim.stats.generations) == made + 1


async def test_other_endpoints_take_images(server: Worker) -> None:
    """The second versions, as JSON; those that take forms are not served."""
    document = request(input_image=image(picture(64, 64)), uov_method="Vary (Subtle)")
    response = await post(server, document, "/v2/generation/image-upscale-vary")
    assert response.status_code == 200, response.text
    assert len(response.json()) == 1
    assert (await post(server, document, "/v1/generation/image-upscale-vary")).status_code == 404


async def test_a_job_that_nobody_waits_for(server: Worker) -> None:
    """Its document is the server's at each stage, under an id of ours; the pictures are in it at the end."""
    fault = server.sim.knobs.arm("hang", prompt="slow")
    begun = (await post(server, request(prompt="slow", steps=4, async_process=True, require_base64=True))).json()
    assert begun["job_id"].startswith("http-")
    assert (begun["job_type"], begun["job_stage"], begun["job_result"]) == ("Text to Image", "WAITING", None)
    told: list[dict[str, Any]] = []

    async def at(stage: str, least: int) -> bool:
        params = {"job_id": begun["job_id"], "require_step_preview": "true"}
        response = await server.client.get(QUERY, params=params)
        assert response.status_code == 200
        told.append(response.json())
        assert list(told[-1]) == list(begun)
        return bool(told[-1]["job_stage"] == stage and told[-1]["job_progress"] >= least)

    await wait_until(lambda: at("RUNNING", 15), PATIENCE_S)
    assert told[-1]["job_result"] is None
    await wait_until(lambda: released(server) and at("SUCCESS", 100), PATIENCE_S)
    (result,) = told[-1].get("job_result", ())
    assert opened(data_of(server, result["base64"])).size == (64, 64)
    assert fault.times == 0
    queue = (await server.client.get("/v1/generation/job-queue")).json()
    assert (queue["running_size"], queue["last_job_id"]) == (0, begun["job_id"])
    assert queue["finished_size"] > 0


def released(worker: Worker) -> bool:
    """Let go on what hangs by now."""
    worker.sim.release()
    return True


async def test_a_job_that_is_unknown(server: Worker) -> None:
    """404, with the document that the server has for it; a job of another endpoint is none of its."""
    other = await server.client.post("/v1/jobs", json={"params": {"prompt": "x", "width": 64, "height": 64}})
    for job_id in ("nosuch", other.json()["id"]):
        response = await server.client.get(QUERY, params={"job_id": job_id})
        assert response.status_code == 404
        assert (response.json()["job_type"], response.json()["job_stage"]) == ("Not Found", "ERROR")
    assert (await server.client.get(QUERY)).status_code == 422


async def test_a_job_that_failed(server: Worker) -> None:
    """Where the server hides why, it is told here: waited for as a problem, asked for as the job's status."""
    wrong = request(prompt="x", base_model_name="nosuch.safetensors")
    response = await post(server, wrong)
    assert (response.status_code, response.json()["code"]) == (422, "model_not_found")
    begun = (await post(server, {**wrong, "async_process": True})).json()

    async def over() -> bool:
        told = (await server.client.get(QUERY, params={"job_id": begun["job_id"]})).json()
        return told["job_stage"] == "ERROR" and "nosuch.safetensors" in told["job_status"]

    await wait_until(over, PATIENCE_S)


async def test_mistakes_are_named(server: Worker) -> None:
    """In the words of the request."""
    for fields, field in (
        ({"promt": "x"}, "promt"),
        ({"output": {"format": "gif"}}, "output.format"),
        ({"async_process": True, "output": 3}, "output"),
        ({"style_selections": ["nosuch"]}, "style_selections.0"),
    ):
        response = await post(server, {**request(), **fields})
        assert response.status_code == 422
        assert [error["field"] for error in response.json()["errors"]] == [field]
    for content in (b"", b"nonsense", b"[]"):
        assert (await server.client.post(TEXT, content=content)).status_code == 422


async def test_lists_are_the_servers(server: Worker) -> None:
    """And nothing else of it is to be had."""
    async with httpx.AsyncClient(base_url=server.sim.url, trust_env=False) as client:
        for path in ("/ping", "/v1/engines/all-models", "/v1/engines/styles"):
            assert (await server.client.get(path)).json() == (await client.get(path)).json()
    for path in ("/files/2026-01-01/x.png", "/v1/generation/job-history", "/sdapi/v1/options"):
        assert (await server.client.get(path)).status_code == 404
    for response in (await server.client.post(STOP), await server.client.get("/v1/engines/clean_vram")):
        assert (response.status_code, response.json()["code"]) == (403, "engine_options_refused")
    assert server.sim.stats.interrupts == 0


async def test_a_stop_cancels_the_http_job(allowing: Worker) -> None:
    """Where allowed: its caller is told so, and the server's own queue goes on with the next."""
    allowing.sim.knobs.step_seconds = 0.02
    async with in_background(post(allowing, request(steps=150))) as job:
        await wait_until(lambda: any(one.progress >= 15 for one in allowing.sim.machine.queue))
        response = await allowing.client.post(STOP)
        assert (response.status_code, response.json()) == (200, {"msg": "success"})
        answer = await job
    allowing.sim.knobs.step_seconds = 0.001
    assert (answer.status_code, answer.json()["code"]) == (409, "cancelled")
    assert (await post(allowing, request())).status_code == 200


async def test_models_may_be_unloaded(allowing: Worker) -> None:
    """Where allowed, by the current version's own way: a GET that changes the server takes its turn."""
    assert (await post(allowing, request())).status_code == 200
    assert allowing.sim.machine.loaded is not None
    assert (await allowing.client.get("/v1/engines/clean_vram")).json() == {"message": "ok"}
    assert allowing.sim.machine.loaded is None


@pytest.mark.parametrize("waits", [True, False])
async def test_its_webhook_is_ours(allowing: Worker, waits: bool) -> None:
    """The server is never told of it; who waits gets his pictures all the same, and who does not asks for them."""
    before = len(allowing.receiver.documents)
    document = request(webhook_url=allowing.receiver.url("/mine"), async_process=not waits)
    answer = (await post(allowing, document)).json()
    await wait_until(lambda: len(allowing.receiver.documents) > before, PATIENCE_S)
    told = allowing.receiver.documents[-1]
    assert told["type"] == "job.succeeded"
    if not waits:
        assert told["data"]["id"] == answer["job_id"]
        answer = (await allowing.client.get(QUERY, params={"job_id": answer["job_id"]})).json()["job_result"]
    data = data_of(allowing, answer[0]["base64"])
    assert base64.b64decode(told["data"]["images"][0]["base64"]) == data


async def test_pictures_that_are_stored(allowing: Worker) -> None:
    """In the place and the format that the request names."""
    document = request(save_extension="webp", output={"storage": "directory", "prefix": "mine"})
    (found,) = (await post(allowing, document)).json()
    stored = [data for name, data in allowing.files().items() if name.endswith(".webp")]
    assert stored == [await asyncio.to_thread(data_of, allowing, found["base64"])]
