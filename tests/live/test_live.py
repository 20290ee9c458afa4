"""The driver against a real server of the Automatic1111 family: ``LIVE_ENGINE_URL=http://... pytest -m live``.

It changes the server's settings as a worker does, and generates about twenty small pictures.
``LIVE_ENGINE_USERNAME`` and ``LIVE_ENGINE_PASSWORD`` where the server asks for them.
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator
from typing import Any

import pybase64
import pytest
from PIL import Image

from tests.live.conftest import START_S, settings_of_the_server
from tests.support.engines import job_of
from tests.support.pictures import encoded, picture
from tests.support.waiting import wait_until
from worker.engines.base import EngineState, Files, Output, ProgressReport, Reach
from worker.engines.client import Client
from worker.engines.sdapi.engine import SdapiEngine
from worker.engines.sdapi.server import Server, recognise
from worker.errors import GenerationRejected, InvalidJob, ModelNotFound
from worker.job import Limits

pytestmark = [pytest.mark.live, pytest.mark.timeout(1800)]
FAMILY = "sdapi"

STOP_S = 120.0


def params(**fields: Any) -> dict[str, Any]:
    """A small portable job; what ``fields`` set to None is left out."""
    body = {"prompt": "a red apple", "width": 128, "height": 192, "steps": 4, "seed": 7, **fields}
    return {"params": {name: value for name, value in body.items() if value is not None}}


class Live:
    """The engine on the real server, and what it reported."""

    def __init__(self, engine: SdapiEngine, server: Server) -> None:
        self.engine = engine
        self.server = server
        self.reports: list[ProgressReport] = []

    async def state(self) -> EngineState:
        return await self.engine.look()

    async def make(self, document: dict[str, Any], *, fresh: bool = False) -> Output:
        work = await self.engine.admit(job_of(document))
        inputs = {ref.field: pybase64.b64decode(ref.value) for ref in work.inputs}
        return await self.engine.generate(work, Files(inputs), self.reports.append, fresh=fresh)


@pytest.fixture
async def live() -> AsyncIterator[Live]:
    """The engine once the server is ready and its settings are made."""
    settings = settings_of_the_server()
    engine, client = SdapiEngine(settings, Limits()), Client(settings)

    async def ready() -> bool:
        return (await engine.look()).reach is Reach.READY

    try:
        await wait_until(ready, START_S)
        await engine.prepare()
        yield Live(engine, Server(client, await recognise(client)))
    finally:
        await engine.aclose()
        await client.aclose()


def opened(output: Output, index: int = 0) -> Image.Image:
    image = Image.open(io.BytesIO(output.images[index].data))
    image.load()
    return image


async def test_the_settings_hold(live: Live) -> None:
    """Every setting of the dialect that the server knows reads back as it was set."""
    options = await live.server.options()
    wanted = live.server.dialect.settings
    assert {name: options[name] for name in wanted if name in options} == {n: wanted[n] for n in wanted if n in options}
    assert "samples_format" in options


async def test_a_picture_is_what_was_asked_for(live: Live) -> None:
    """Its size, format, seed and model; and the server says that it is idle afterwards."""
    output = await live.make(params())
    image = opened(output)
    assert (image.size, image.format) == ((128, 192), "PNG")
    assert output.images[0].seed == 7
    assert output.engine.proof in ("hash", "name")
    assert not (await live.state()).busy


async def test_a_batch_has_seeds_in_order(live: Live) -> None:
    """Two pictures of one request, without a grid."""
    output = await live.make(params(batch_size=2, sampler="dpmpp_2m", scheduler="karras"))
    assert [image.seed for image in output.images] == [7, 8]
    assert output.images[0].data != output.images[1].data


async def test_an_input_image_sets_the_size(live: Live) -> None:
    """An image to image job without a size of its own."""
    body = params(width=None, height=None, image=pybase64.b64encode(encoded(picture(128, 64))).decode(), denoise=0.5)
    assert opened(await live.make(body)).size == (128, 64)


async def test_each_listed_model_makes_the_picture_that_names_it(live: Live) -> None:
    """Switching to and fro between two models is proven by the answers."""
    listed = (await live.server.inventory()).checkpoints[:2]
    for model in [*listed, *listed]:
        output = await live.make({**params(), "checkpoint": model.label})
        assert output.engine.proof in ("hash", "name")


async def test_a_fresh_run_loads_the_model_again(live: Live) -> None:
    """The same picture's size and seed come out of a server that was emptied first."""
    assert (await live.make(params(), fresh=True)).images[0].seed == 7
    await live.engine.free(everything=True)
    assert (await live.make(params())).images[0].seed == 7


@pytest.mark.parametrize(
    ("document", "error"),
    [
        (params(sampler="no_such_sampler"), InvalidJob),
        ({**params(), "checkpoint": "no_such_model.safetensors"}, ModelNotFound),
        ({"request": {"prompt": "x", "sampler_name": "No Such Sampler"}}, InvalidJob),
        ({"request": {"prompt": "x", "no_such_field": 1}}, InvalidJob),
        ({"request": {"prompt": "x", "override_settings": {"no_such_option": 1}}}, InvalidJob),
        ({"request": {"prompt": "x", "script_name": "no such script", "script_args": []}}, InvalidJob),
    ],
    ids=["sampler", "model", "native sampler", "field", "option", "script"],
)
async def test_what_the_server_would_replace_in_silence_is_refused(
    live: Live, document: dict[str, Any], error: type[Exception]
) -> None:
    """Before the graphics card is used."""
    with pytest.raises(error):
        await live.engine.admit(job_of(document))


async def test_an_unreadable_input_is_refused_by_the_server(live: Live) -> None:
    """A native body goes as it is; what the server says of it is the job's fault."""
    body = {"init_images": [pybase64.b64encode(b"no image at all").decode()], "width": 128, "height": 128, "steps": 2}
    with pytest.raises((GenerationRejected, InvalidJob)):
        await live.make({"request": {"prompt": "x", **body}, "endpoint": "img2img"})


async def test_the_second_pass_sets_the_size(live: Live) -> None:
    """As in Automatic1111's own interface, whatever else the server wants to be told for it."""
    body = {"prompt": "x", "seed": 7, "steps": 3, "width": 128, "height": 128}
    hires = {"enable_hr": True, "hr_scale": 2, "hr_upscaler": _latent(live), "denoising_strength": 0.5}
    assert opened(await live.make({"request": {**body, **hires}})).size == (256, 256)


def _latent(live: Live) -> str:
    return "Latent Nearest" if live.server.dialect.engine == "sdnext" else "Latent"


async def test_a_cancelled_generation_leaves_the_server_idle(live: Live) -> None:
    """Progress is seen, the interrupt ends the work within moments, and the next job is a whole picture."""
    long = asyncio.create_task(live.make(params(width=256, height=256, steps=150)), name="live-long")
    await wait_until(lambda: any(report.sampling for report in live.reports) or long.done(), START_S)
    assert not long.done()
    long.cancel()
    async with asyncio.timeout(STOP_S):
        await asyncio.wait({long})
    assert long.cancelled()
    assert not (await live.state()).busy
    assert opened(await live.make(params())).size == (128, 192)
