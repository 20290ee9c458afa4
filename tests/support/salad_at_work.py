"""A real worker on the platform's job queue, in a container of the platform."""

from __future__ import annotations

import base64
import io
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from PIL import Image

from tests.support.metadata import MetadataService
from tests.support.salad_queue import SaladJobQueue
from tests.support.supervised import Supervised, SupervisingLife, supervised

TXT2IMG = "/sdapi/v1/txt2img"


def variables(platform: MetadataService, queue: SaladJobQueue) -> dict[str, str]:
    """What a container of the platform is given, beside the one variable that its user sets."""
    return {
        **platform.variables(),
        "WORKER_NODE_ID": "",
        "WORKER_QUEUE": "salad",
        "WORKER_STORAGE": "",
        "SALAD_SERVICE_ENDPOINT": queue.target,
        "SALAD_SERVICE_USE_TLS": "false",
    }


@asynccontextmanager
async def at_work(folder: Path, **changes: str) -> AsyncIterator[tuple[Supervised, SupervisingLife, SaladJobQueue]]:
    """A worker that is ready, on a queue of its own."""
    async with (
        supervised("sdnext", folder) as around,
        MetadataService() as platform,
        SaladJobQueue() as queue,
        around.worker(**{**variables(platform, queue), **changes}) as life,
    ):
        await life.ready()
        yield around, life, queue


def body(prompt: str, **more: Any) -> dict[str, Any]:
    """A request in the server's own language."""
    return {"prompt": prompt, "steps": 2, "width": 64, "height": 64, **more}


def size_of(picture: str) -> tuple[int, int]:
    return Image.open(io.BytesIO(base64.b64decode(picture))).size


async def until_over(life: SupervisingLife, queue: SaladJobQueue) -> Mapping[str, Any]:
    """The outputs of all jobs, once every one is over."""
    await life.until(lambda: all(one.status in ("succeeded", "failed") for one in queue.jobs.values()))
    return {one.id: one.output for one in queue.jobs.values()}
