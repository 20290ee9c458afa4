"""The driver against a real ComfyUI: ``LIVE_ENGINE_URL=http://... pytest -m live``.

It generates about thirty small pictures with the first checkpoints that the server lists, and interrupts what runs.
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Mapping
from copy import deepcopy
from typing import Any, Literal

import pybase64
import pytest
from PIL import Image
from structlog.testing import capture_logs

from tests.live.conftest import START_S, settings_of_the_server
from tests.support.engines import job_of
from tests.support.pictures import encoded, picture
from tests.support.waiting import wait_until
from worker.engines.base import Files, Output, ProgressReport, Reach
from worker.engines.client import Client
from worker.engines.comfyui.api import Server
from worker.engines.comfyui.engine import ComfyEngine
from worker.errors import GenerationRejected, InvalidJob, ModelNotFound, OutputMismatch
from worker.job import Limits

pytestmark = [pytest.mark.live, pytest.mark.timeout(1800)]
FAMILY = "comfyui"

STOP_S = 120.0
FOLDERS = ("input", "output", "temp")
LONG: dict[str, Any] = {"width": 256, "height": 256, "steps": 150}
ABSENT = "no_such_file.safetensors"


class Live:
    """The engine on the real server, and what it reported. ``shared`` are the folders whose files it removes."""

    def __init__(self, engine: ComfyEngine, client: Client, shared: frozenset[str]) -> None:
        self.engine, self.client, self.shared = engine, client, shared
        self.server = Server(client)
        self.checkpoints: tuple[str, ...] = ()
        self.reports: list[ProgressReport] = []

    def job(self, checkpoint: str | None = None, **params: Any) -> dict[str, Any]:
        """A small portable job; what ``params`` set to None is left out."""
        body = {"prompt": "a red apple", "width": 128, "height": 192, "steps": 4, "seed": 7, **params}
        named = checkpoint or self.checkpoints[0]
        return {"params": {k: v for k, v in body.items() if v is not None}, "checkpoint": named}

    async def graph(self, **params: Any) -> dict[str, Any]:
        """The graph of such a job, for changing it."""
        return deepcopy(dict((await self.engine.admit(job_of(self.job(**params)))).request))

    async def make(self, document: dict[str, Any], *, fresh: bool = False) -> Output:
        work = await self.engine.admit(job_of(document))
        return await self.engine.generate(work, Files(), self.reports.append, fresh=fresh)

    async def kept(self) -> Mapping[str, Any]:
        """What the server keeps of prompts, by its own word: its history, its queue, its files in shared folders."""
        files = {kind: (await self.client.get(f"/internal/files/{kind}")).json for kind in sorted(self.shared)}
        history = (await self.client.get("/history")).json
        return {**files, "history": sorted(history), "waiting": await self.server.remaining()}


@pytest.fixture
async def live() -> AsyncIterator[Live]:
    """The engine once the server is ready and known."""
    settings = settings_of_the_server()
    engine, client = ComfyEngine(settings, Limits()), Client(settings)

    async def ready() -> bool:
        return (await engine.look()).reach is Reach.READY

    try:
        await wait_until(ready, START_S)
        with capture_logs() as logs:
            await engine.prepare()
        unshared = {kind for event in logs for kind in event.get("folders", ())}
        found = Live(engine, client, frozenset(FOLDERS) - unshared)
        await client.locate()
        found.checkpoints = (await found.server.folders())["checkpoints"]
        yield found
    finally:
        await engine.aclose()
        await client.aclose()


def pixels(output: Output) -> list[bytes]:
    return [image.tobytes() for image in opened(output)]


def opened(output: Output) -> list[Image.Image]:
    return [Image.open(io.BytesIO(image.data)).convert("RGB") for image in output.images]


def given(width: int, height: int) -> str:
    return pybase64.b64encode(encoded(picture(width, height))).decode()


async def test_a_picture_is_what_was_asked_for(live: Live) -> None:
    """Its size, seed and model; and the server says that it is idle afterwards."""
    output = await live.make(live.job())
    assert [image.size for image in opened(output)] == [(128, 192)]
    assert [image.seed for image in output.images] == [7]
    assert (output.engine.model, output.engine.proof) == (live.checkpoints[0], "name")
    assert not (await live.engine.look()).busy


async def test_nothing_stays_behind(live: Live) -> None:
    """Neither an entry in the history nor a file, the input image's included."""
    before = await live.kept()
    await live.make(live.job(width=None, height=None, image=given(128, 64), denoise=0.5))
    await live.make({"workflow": await live.graph()})
    assert await live.kept() == before


@pytest.mark.parametrize("way", ["files", "preview", "websocket"])
async def test_each_way_gives_the_same_pixels(live: Live, way: Literal["files", "preview", "websocket"]) -> None:
    """However pictures leave the server."""
    engine = ComfyEngine(settings_of_the_server().model_copy(update={"comfyui_output": way}), Limits())
    try:
        other = Live(engine, live.client, live.shared)
        other.checkpoints = live.checkpoints
        assert pixels(await other.make(live.job(batch_size=2))) == pixels(await live.make(live.job(batch_size=2)))
    finally:
        await engine.aclose()


async def test_a_batch_is_of_different_pictures(live: Live) -> None:
    """All of one seed, as the server draws them."""
    output = await live.make(live.job(batch_size=2, sampler="dpmpp_2m", scheduler="karras"))
    assert [image.seed for image in output.images] == [7, 7]
    assert len(set(pixels(output))) == 2


async def test_a_graph_makes_the_picture_of_its_portable_job(live: Live) -> None:
    """Nothing that is done to a graph changes what it paints."""
    assert pixels(await live.make({"workflow": await live.graph()})) == pixels(await live.make(live.job()))


async def test_a_job_that_comes_again_is_made_again(live: Live) -> None:
    """The server would answer from its cache with the names of files that are gone; so it does not after `free`."""
    first = pixels(await live.make(live.job()))
    assert pixels(await live.make(live.job())) == first
    assert pixels(await live.make(live.job(), fresh=True)) == first
    await live.engine.free(everything=True)
    assert pixels(await live.make(live.job())) == first


async def test_an_input_image_sets_the_size(live: Live) -> None:
    """An image to image job without a size of its own."""
    output = await live.make(live.job(width=None, height=None, image=given(128, 64), denoise=0.5))
    assert [image.size for image in opened(output)] == [(128, 64)]


async def test_a_mask_keeps_what_it_leaves_black(live: Live) -> None:
    """Left of the middle nothing changes; the right half is painted."""
    mask = Image.new("RGB", (128, 64), "black")
    mask.paste("white", (64, 0, 128, 64))
    body: dict[str, Any] = {"image": given(128, 64), "mask": pybase64.b64encode(encoded(mask)).decode(), "denoise": 1.0}
    (painted,) = opened(await live.make(live.job(width=None, height=None, **body)))
    kept, new = (0, 0, 48, 64), (80, 0, 128, 64)
    assert painted.crop(kept).tobytes() == picture(128, 64).convert("RGB").crop(kept).tobytes()
    assert painted.crop(new).tobytes() != picture(128, 64).convert("RGB").crop(new).tobytes()


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"sampler": "no_such_sampler"}, InvalidJob),
        ({"prompt": "embedding:no_such_embedding"}, ModelNotFound),
        ({"loras": [{"name": ABSENT, "weight": 1.0}]}, ModelNotFound),
        ({"vae": ABSENT}, ModelNotFound),
    ],
    ids=["sampler", "embedding", "lora", "vae"],
)
async def test_a_job_that_cannot_be_done_is_refused(
    live: Live, changes: dict[str, Any], error: type[Exception]
) -> None:
    """Before the graphics card is used."""
    with pytest.raises(error):
        await live.engine.admit(job_of(live.job(**changes)))


async def test_a_broken_graph_is_refused_by_name(live: Live) -> None:
    """The editor's format, unknown classes, missing inputs and missing models are found before anything is sent."""
    graph = await live.graph()
    sampler = next(i for i, node in graph.items() if node["class_type"].startswith("KSampler"))
    loader = next(i for i, node in graph.items() if node["class_type"] == "CheckpointLoaderSimple")
    unknown, missing, absent = deepcopy(graph), deepcopy(graph), deepcopy(graph)
    unknown[sampler]["class_type"] = "NoSuchNode"
    del missing[sampler]["inputs"]["steps"]
    absent[loader]["inputs"]["ckpt_name"] = ABSENT
    for broken, error, said in (
        ({"nodes": [], "links": []}, InvalidJob, "API"),
        (unknown, InvalidJob, "NoSuchNode"),
        (missing, InvalidJob, "steps"),
        (absent, ModelNotFound, ABSENT),
    ):
        with pytest.raises(error, match=said):
            await live.engine.admit(job_of({"workflow": broken}))


async def test_one_bad_output_of_two_refuses_the_whole_graph(live: Live) -> None:
    """The server would answer 200 and run the good one; nothing of it stays."""
    before = await live.kept()
    graph = await live.graph(**LONG)
    graph["a"] = {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": -5}}
    graph["b"] = {"class_type": "SaveImage", "inputs": {"images": ["a", 0], "filename_prefix": "x"}}
    with pytest.raises(GenerationRejected, match="EmptyImage"):
        await live.make({"workflow": graph})
    assert await live.kept() == before


async def _begun(live: Live, task: asyncio.Task[Output]) -> None:
    """Until the server samples. The reports are of this task alone."""
    await wait_until(lambda: any(report.sampling for report in live.reports) or task.done(), START_S)
    assert not task.done()


async def test_an_interrupt_by_somebody_else_is_no_picture(live: Live) -> None:
    """It looks like a failure in the history; the next job is a whole picture."""
    long = asyncio.create_task(live.make(live.job(**LONG)), name="live-long")
    await _begun(live, long)
    await live.client.post("/interrupt", {})
    async with asyncio.timeout(STOP_S):
        await asyncio.wait({long})
    assert isinstance(long.exception(), OutputMismatch)
    assert [image.size for image in opened(await live.make(live.job()))] == [(128, 192)]


async def test_a_cancelled_generation_leaves_the_server_idle(live: Live) -> None:
    """Progress is seen, the interrupt ends the work within moments, and the next job is a whole picture."""
    before = await live.kept()
    long = asyncio.create_task(live.make(live.job(**LONG)), name="live-long")
    await _begun(live, long)
    long.cancel()
    async with asyncio.timeout(STOP_S):
        await asyncio.wait({long})
    assert long.cancelled()
    assert not (await live.engine.look()).busy
    assert await live.kept() == before
    assert [image.size for image in opened(await live.make(live.job()))] == [(128, 192)]
