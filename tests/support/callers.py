"""Many callers of a worker's HTTP API at once, each of whom does as he is told, and somebody who watches its probes."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import random
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from PIL import Image

from tests.support.virtual import takes


@dataclass
class Caller:
    """Somebody who wants one picture: what he was told each time, and what he got."""

    name: str
    body: bytes
    told: list[int] = field(default_factory=list)
    """Seconds after which he was to come again."""
    result: dict[str, Any] | None = None

    async def call(self, client: httpx.AsyncClient, *, patience: int) -> None:
        """Ask, and come again when told to, but no more often than ``patience``."""
        while True:
            answer = await client.post("/v1/jobs", content=self.body, headers={"content-type": "application/json"})
            if answer.status_code == 200:
                self.result = answer.json()
                return
            assert answer.status_code == 429, answer.text
            assert answer.json()["code"] == "too_many_pending"
            self.told.append(int(answer.headers["retry-after"]))
            if len(self.told) > patience:
                return
            await takes(self.told[-1])

    @property
    def served(self) -> bool:
        """Whether he has his picture, whole."""
        if self.result is None or self.result["status"] != "succeeded":
            return False
        (image,) = self.result["images"]
        return Image.open(io.BytesIO(base64.b64decode(image["base64"]))).size == (64, 64)


def callers(count: int, **params: Any) -> list[Caller]:
    """Each with a prompt of his own."""
    small = {"width": 64, "height": 64, "steps": 4, **params}
    return [Caller(f"c{n}", json.dumps({"params": {"prompt": f"c{n}", **small}}).encode()) for n in range(count)]


def large_image(megabytes: float) -> str:
    """A picture of so many megabytes, in base64: noise, so that nothing makes it smaller."""
    side = int((megabytes * 1e6 / 3) ** 0.5)
    out = io.BytesIO()
    Image.frombytes("RGB", (side, side), random.Random(1).randbytes(side * side * 3)).save(out, "PNG", compress_level=0)
    return base64.b64encode(out.getvalue()).decode()


async def all_served(url: str, crowd: list[Caller], *, patience: int) -> None:
    """They all call at the same time, each on a connection of his own."""
    limits = httpx.Limits(max_connections=len(crowd), max_keepalive_connections=len(crowd))
    async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=300, limits=limits) as client:
        await asyncio.gather(*(caller.call(client, patience=patience) for caller in crowd))


@dataclass
class Watched:
    """How long each probe took, in seconds, and how often each answer was given."""

    took: list[float] = field(default_factory=list)
    statuses: dict[str, int] = field(default_factory=dict)

    def at(self, fraction: float) -> float:
        """The time that so many of the probes stayed below."""
        ordered = sorted(self.took)
        return ordered[min(len(ordered) - 1, int(fraction * len(ordered)))]


@asynccontextmanager
async def watched(port: int) -> AsyncIterator[Watched]:
    """Probes are asked for from another process, which has begun, for as long as the block lasts; told at its end."""
    script = Path(__file__).with_name("prober.py")
    process = await asyncio.create_subprocess_exec(sys.executable, str(script), str(port), stdin=PIPE, stdout=PIPE)
    found = Watched()
    try:
        assert process.stdout is not None
        await process.stdout.readline()
        yield found
        out, _ = await process.communicate(b"")
        said = json.loads(out)
        found.took, found.statuses = said["took"], said["statuses"]
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
