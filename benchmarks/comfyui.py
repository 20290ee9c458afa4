"""`python -m benchmarks.comfyui --url http://[::1]:8188`: what the driver costs on a real ComfyUI, and each way out.

The same small jobs by a bare client, which submits, hears the end on the socket, reads the history and fetches the
picture, and by the driver, by turns. Then pictures without any sampling: the server's own time for each way out,
and ours for what is made of them.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, Literal
from uuid import uuid4

from PIL import Image, ImageChops

from tests.support.engines import job_of
from worker.engines.base import Files, RawImage
from worker.engines.client import Client
from worker.engines.comfyui.api import Server
from worker.engines.comfyui.engine import ComfyEngine
from worker.engines.comfyui.outputs import item_of
from worker.engines.comfyui.socket import socket_url
from worker.images import Encoding, verified
from worker.job import Limits
from worker.settings.groups import EngineSettings

SIZES = (512, 1024)
GRAIN = 6.0
"""Standard deviation of the noise, in levels of 255: what cameras and samplers leave in a picture."""


async def bare(server: Server, socket: Any, client_id: str, graph: dict[str, Any]) -> bytes:
    """One job as the shortest client makes it."""
    body = {"prompt": graph, "client_id": client_id}
    prompt_id = (await server.submit(body, timeout=timedelta(minutes=1))).json["prompt_id"]
    async for message in socket:
        told = json.loads(message) if isinstance(message, str) else {}
        data = told.get("data", {})
        if told.get("type") == "executing" and data.get("node") is None and data.get("prompt_id") == prompt_id:
            break
    entry = await server.history(prompt_id) or {}
    (image,) = next(iter(entry["outputs"].values()))["images"]
    item = item_of(image)
    return (await server.view(item) if item is not None else None) or b""


def portable(seed: int) -> dict[str, Any]:
    size = {"width": 64, "height": 64, "steps": 2}
    return {"id": f"bench-{seed}", "params": {"prompt": "a cat", "seed": seed, **size}}


async def overhead(engine: ComfyEngine, server: Server, jobs: int, first: int) -> tuple[float, float]:
    """Milliseconds a job, at the median: the bare client's, the driver's."""
    from websockets.asyncio.client import connect

    client_id = uuid4().hex
    spent: tuple[list[float], list[float]] = [], []
    address = f"{socket_url(server.url)}?clientId={client_id}"
    async with connect(address, proxy=None, max_size=None, compression=None) as socket:
        for number in range(jobs):
            theirs = await engine.admit(job_of(portable(first + 2 * number)))
            ours = job_of(portable(first + 2 * number + 1))
            began = perf_counter()
            await bare(server, socket, client_id, dict(theirs.request))
            spent[0].append(perf_counter() - began)
            began = perf_counter()
            await engine.generate(replace(await engine.admit(ours), key=uuid4().hex), Files(), lambda _: None)
            spent[1].append(perf_counter() - began)
    return median(spent[0]) * 1000, median(spent[1]) * 1000


def pictured(path: Path | None, size: int) -> bytes:
    """A picture of this size with some grain, as PNG."""
    slope = Image.linear_gradient("L").resize((size, size))
    plain = Image.merge("RGB", (slope, slope.rotate(90), slope.rotate(180)))
    image = Image.open(path).convert("RGB").resize((size, size)) if path is not None else plain
    noise = Image.merge("RGB", [Image.effect_noise((size, size), GRAIN)] * 3)
    out = io.BytesIO()
    ImageChops.add(image, noise, 1, -128).save(out, "PNG")
    return out.getvalue()


async def way(server: Server, name: str, cls: str, salt: str) -> tuple[float, bytes]:
    """The server's own milliseconds for a picture that it only passes on, and what came."""
    prompt_id = str(uuid4())
    save = {"images": ["1", 0], "filename_prefix": salt, "salt": salt}
    graph = {
        "1": {"class_type": "LoadImage", "inputs": {"image": name}},
        "9": {"class_type": cls, "inputs": save if cls == "SaveImage" else {"images": ["1", 0], "salt": salt}},
    }
    await server.submit({"prompt": graph, "prompt_id": prompt_id}, timeout=timedelta(minutes=1))
    while (entry := await server.history(prompt_id)) is None:
        await asyncio.sleep(0.02)
    at = {kind: data["timestamp"] for kind, data in entry["status"]["messages"]}
    images = [image for output in entry["outputs"].values() for image in output["images"]]
    items = [item for image in images if (item := item_of(image)) is not None]
    return at["execution_success"] - at["execution_start"], (await server.view(items[0]) or b"") if items else b""


async def ways(server: Server, picture: Path | None, rounds: int) -> None:
    for size in SIZES:
        data = await asyncio.to_thread(pictured, picture, size)
        name = await server.upload(data, f"bench-{size}.png", subfolder="sd-worker")
        await way(server, name, "SaveImage", uuid4().hex)
        for cls in ("SaveImage", "PreviewImage", "SaveImageWebsocket"):
            runs = [await way(server, name, cls, uuid4().hex) for _ in range(rounds)]
            print(f"{size:>6} {cls:>20}: {median(ms for ms, _ in runs):6.0f} ms {len(runs[0][1]) // 1024:6} kB")
        for wanted in ("keep", "jpeg", "webp"):
            print(
                f"{size:>6} {'ours, ' + wanted:>20}: {await asyncio.to_thread(encoding, data, wanted, rounds):6.0f} ms"
            )


def encoding(data: bytes, wanted: Literal["keep", "jpeg", "webp"], rounds: int) -> float:
    """Our own milliseconds for verifying a picture and making it what is wanted."""
    spent = []
    for _ in range(rounds):
        began = perf_counter()
        verified(RawImage(data), 0, width=None, height=None, encoding=Encoding(format=wanted))
        spent.append(perf_counter() - began)
    return median(spent) * 1000


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[tuple[ComfyEngine, Server]]:
    settings = EngineSettings(kind="comfyui", url=url)
    engine, client = ComfyEngine(settings, Limits()), Client(settings)
    try:
        await engine.prepare()
        await client.locate()
        yield engine, Server(client)
    finally:
        await engine.aclose()
        await client.aclose()


async def measure(url: str, jobs: int, rounds: int, picture: Path | None) -> None:
    async with opened(url) as (engine, server):
        for number in range(3 if jobs else 0):
            bare_ms, driver_ms = await overhead(engine, server, jobs, 1 + number * 10_000)
            print(f"bare {bare_ms:.0f} ms, driver {driver_ms:.0f} ms a job: {driver_ms / bare_ms:.2f}")
        if rounds:
            await ways(server, picture, rounds)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.comfyui", description=__doc__)
    parser.add_argument("--url", default="http://[::1]:8188", help="of a ComfyUI that nobody else uses")
    parser.add_argument("--jobs", type=int, default=50, help="of each of the three rounds")
    parser.add_argument("--rounds", type=int, default=15, help="for each way out")
    parser.add_argument("--picture", type=Path, help="of which the ways out are measured")
    given = parser.parse_args(arguments)
    asyncio.run(measure(given.url, given.jobs, given.rounds, given.picture))


if __name__ == "__main__":
    main()
