"""A simulated server together with a client for it."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
from PIL import Image

from tests.support.waiting import wait_until
from worker.simulators import Knobs, Simulator, running

ALL = ("sdnext", "sdnext-2023", "a1111", "a1111-1.7", "forge")
SDNEXT = ("sdnext", "sdnext-2023")
A1111 = ("a1111", "a1111-1.7", "forge")
TITLES = {
    "sdnext": "sd_xl_base_1.0",
    "sdnext-2023": "sd_xl_base_1.0",
    "a1111": "sd_xl_base_1.0.safetensors",
    "a1111-1.7": "sd_xl_base_1.0.safetensors",
    "forge": "sd_xl_base_1.0.safetensors",
}
"""The title of the second of the simulator's models before it was ever loaded."""


@dataclass
class Sim:
    """A simulator and a client that speaks to it."""

    sim: Simulator
    client: httpx.AsyncClient

    async def get(self, path: str, **options: Any) -> httpx.Response:
        """GET a path below `/sdapi/v1/`."""
        return await self.client.get(f"/sdapi/v1/{path}", **options)

    async def post(self, path: str, document: Any = None, **options: Any) -> httpx.Response:
        """POST to a path below `/sdapi/v1/`."""
        return await self.client.post(f"/sdapi/v1/{path}", json=document, **options)

    async def generate(self, prompt: str = "a cat", **fields: Any) -> httpx.Response:
        """A small txt2img request, changed by ``fields``."""
        small = {"prompt": prompt, "seed": 1, "steps": 2, "width": 64, "height": 64}
        return await self.post("txt2img", small | fields)

    async def began(self, count: int = 1) -> None:
        """Wait until so many generations have begun to sample."""

        def sampling() -> bool:
            return len(self.sim.stats.generations) >= count and self.sim.machine.state.sampling

        await wait_until(sampling)


@asynccontextmanager
async def simulated(dialect: str, knobs: Knobs | None = None, **options: Any) -> AsyncIterator[Sim]:
    """A running simulator with a client that ignores proxies."""
    async with (
        running(dialect, knobs, **options) as sim,
        httpx.AsyncClient(base_url=sim.url, trust_env=False, verify=False, timeout=20) as client,
    ):
        yield Sim(sim, client)


@asynccontextmanager
async def in_background(request: Any) -> AsyncIterator[asyncio.Task[httpx.Response]]:
    """A request under way; it must have been answered or be given up at the end of the block."""
    task = asyncio.create_task(request, name="request")
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait([task])


def image_bytes(response: httpx.Response, index: int = 0) -> bytes:
    """The file bytes of a picture of the answer."""
    return base64.b64decode(response.json()["images"][index], validate=True)


def picture(response: httpx.Response, index: int = 0) -> Image.Image:
    """A picture of the answer, decoded."""
    image = Image.open(io.BytesIO(image_bytes(response, index)))
    image.load()
    return image


def info(response: httpx.Response) -> dict[str, Any]:
    """The info document of the answer."""
    found: dict[str, Any] = json.loads(response.json()["info"])
    return found


def model_of(response: httpx.Response) -> str:
    """The model that the infotext names."""
    return str(info(response)["infotexts"][0].partition(" Model: ")[2].split(",")[0])


def base64_png(colour: tuple[int, int, int] = (200, 30, 30), size: tuple[int, int] = (64, 64)) -> str:
    """An input image."""
    out = io.BytesIO()
    Image.new("RGB", size, colour).save(out, "PNG")
    return base64.b64encode(out.getvalue()).decode()
