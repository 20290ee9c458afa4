"""A simulated ComfyUI together with a client for it: HTTP, a websocket, and small graphs."""

from __future__ import annotations

import asyncio
import io
import json
import struct
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
from PIL import Image
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from tests.support.waiting import wait_until
from worker.simulators import comfyui

CHECKPOINT = "dreamshaper_8.safetensors"
OTHER = "sd_xl_base_1.0.safetensors"

Graph = dict[str, dict[str, Any]]


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    """One node of a graph."""
    return {"class_type": class_type, "inputs": inputs}


def picture_graph(colour: int = 0xFF0000, *, prefix: str = "lab", size: int = 64, batch: int = 1) -> Graph:
    """A graph without a model: an empty picture, saved."""
    return {
        "1": node("EmptyImage", width=size, height=size, batch_size=batch, color=colour),
        "9": node("SaveImage", images=["1", 0], filename_prefix=prefix),
    }


def text_graph(
    prompt: str = "a cat",
    *,
    checkpoint: str = CHECKPOINT,
    seed: int = 1,
    steps: int = 3,
    batch: int = 1,
    prefix: str = "ComfyUI",
    size: int = 64,
) -> Graph:
    """The text-to-image graph that everybody starts with."""
    return {
        "3": node(
            "KSampler",
            model=["4", 0],
            seed=seed,
            steps=steps,
            cfg=7.0,
            sampler_name="euler",
            scheduler="normal",
            positive=["6", 0],
            negative=["7", 0],
            latent_image=["5", 0],
            denoise=1.0,
        ),
        "4": node("CheckpointLoaderSimple", ckpt_name=checkpoint),
        "5": node("EmptyLatentImage", width=size, height=size, batch_size=batch),
        "6": node("CLIPTextEncode", text=prompt, clip=["4", 1]),
        "7": node("CLIPTextEncode", text="", clip=["4", 1]),
        "8": node("VAEDecode", samples=["3", 0], vae=["4", 2]),
        "9": node("SaveImage", images=["8", 0], filename_prefix=prefix),
    }


def image_graph(name: str, *, denoise: float = 0.5, mask: str | None = None) -> Graph:
    """Image to image, with a mask if there is one."""
    graph = text_graph()
    graph["3"]["inputs"] |= {"latent_image": ["5", 0], "denoise": denoise}
    graph["10"] = node("LoadImage", image=name)
    graph["5"] = node("VAEEncode", pixels=["10", 0], vae=["4", 2])
    if mask:
        graph["11"] = node("LoadImageMask", image=mask, channel="red")
        graph["12"] = node("SetLatentNoiseMask", samples=["5", 0], mask=["11", 0])
        graph["3"]["inputs"]["latent_image"] = ["12", 0]
    return graph


def png(colour: tuple[int, ...] = (200, 30, 30), size: tuple[int, int] = (64, 48)) -> bytes:
    """A picture of one colour; four numbers make it transparent."""
    out = io.BytesIO()
    Image.new("RGBA" if len(colour) == 4 else "RGB", size, colour).save(out, "PNG")
    return out.getvalue()


@dataclass
class Ear:
    """A websocket whose messages are kept as they come."""

    client_id: str
    connection: ClientConnection
    messages: list[dict[str, Any]] = field(default_factory=list)
    frames: list[bytes] = field(default_factory=list)
    closed: int | None = None
    """The code with which the connection ended."""

    async def listen(self) -> None:
        try:
            async for message in self.connection:
                if isinstance(message, str):
                    self.messages.append(json.loads(message))
                else:
                    self.frames.append(message)
        except ConnectionClosed:
            pass
        self.closed = self.connection.close_code

    def types(self) -> list[str]:
        """The messages' types in order."""
        return [message["type"] for message in self.messages]

    def of(self, kind: str) -> list[dict[str, Any]]:
        """The data of all messages of a type."""
        return [message["data"] for message in self.messages if message["type"] == kind]

    async def over(self, prompt_id: str) -> None:
        """Wait for the last message about a prompt."""
        await wait_until(lambda: {"node": None, "prompt_id": prompt_id} in self.of("executing"))


@dataclass
class Comfy:
    """A simulator and a client that speaks to it."""

    sim: comfyui.ComfyUI
    client: httpx.AsyncClient

    async def get(self, path: str, **options: Any) -> Any:
        """GET a path; the JSON of the answer."""
        return (await self.client.get(path, **options)).json()

    async def post(self, path: str, body: Any = None) -> httpx.Response:
        """POST JSON."""
        return await self.client.post(path, json=body)

    async def submit(self, graph: Graph, **more: Any) -> str:
        """Queue a graph; its prompt id."""
        answer = await self.post("/prompt", {"prompt": graph, **more})
        assert answer.status_code == 200, answer.text
        return str(answer.json()["prompt_id"])

    async def entry(self, prompt_id: str) -> dict[str, Any]:
        """The prompt's history as soon as it is there."""
        found: dict[str, Any] = {}

        async def there() -> bool:
            found.update(await self.get(f"/history/{prompt_id}"))
            return bool(found)

        await wait_until(there)
        entry: dict[str, Any] = found[prompt_id]
        return entry

    async def run(self, graph: Graph, **more: Any) -> dict[str, Any]:
        """Queue a graph and wait for its history."""
        return await self.entry(await self.submit(graph, **more))

    async def view(self, item: dict[str, Any]) -> Image.Image:
        """A picture of some outputs."""
        answer = await self.client.get("/view", params=item)
        assert answer.status_code == 200, answer.status_code
        image = Image.open(io.BytesIO(answer.content))
        image.load()
        return image

    async def picture(self, graph: Graph) -> Image.Image:
        """The first picture that a graph saves."""
        return await self.view(images_of(await self.run(graph))[0])

    async def sampling(self, steps: int = 1) -> None:
        """Wait until the latest prompt has done so many steps."""
        await wait_until(lambda: self.sim.stats.runs and self.sim.stats.runs[-1].steps >= steps)

    @asynccontextmanager
    async def socket(self, client_id: str | None = None, *, flags: bool = False) -> AsyncIterator[Ear]:
        """An open websocket that has heard its greeting."""
        client_id = uuid.uuid4().hex if client_id is None else client_id
        url = f"{self.sim.url.replace('http', 'ws', 1)}/ws?clientId={client_id}"
        async with connect(url, max_size=None, proxy=None) as connection:
            ear = Ear(client_id, connection)
            task = asyncio.create_task(ear.listen(), name="ear")
            try:
                if flags:
                    hello = {"type": "feature_flags", "data": {"supports_preview_metadata": True}}
                    await connection.send(json.dumps(hello))
                    await wait_until(lambda: "feature_flags" in ear.types())
                await wait_until(lambda: ear.messages)
                yield ear
            finally:
                await connection.close()
                await task


async def upload(
    c: Comfy, data: bytes, name: str = "in.png", path: str = "/upload/image", **fields: str
) -> httpx.Response:
    """Send a file as the web page does."""
    return await c.client.post(path, files={"image": (name, data, "image/png")}, data=fields)


def images_of(entry: dict[str, Any]) -> list[dict[str, Any]]:
    """All pictures that a history names."""
    return [item for shown in entry["outputs"].values() for item in shown.get("images", [])]


def last_message(entry: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The message that tells how a prompt ended."""
    kind, data = entry["status"]["messages"][-1]
    return kind, data


def frame_parts(frame: bytes) -> tuple[int, int, bytes]:
    """Event, format or length, and the rest of a binary frame."""
    event, second = struct.unpack(">II", frame[:8])
    return event, second, frame[8:]


@asynccontextmanager
async def simulated(knobs: comfyui.Knobs | None = None, **options: Any) -> AsyncIterator[Comfy]:
    """A running simulator with a client that ignores proxies."""
    async with (
        comfyui.running(knobs, **options) as sim,
        httpx.AsyncClient(base_url=sim.url, trust_env=False, verify=False, timeout=20) as client,
    ):
        yield Comfy(sim, client)
