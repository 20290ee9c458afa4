"""A real worker, a simulated server and more callers than there is time for, on real sockets."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from tests.conftest import Figures
from tests.support.callers import Caller, all_served, callers, large_image, watched
from tests.support.waiting import wait_until
from tests.support.workshop import Life, living
from worker.simulators import free_port

BUSY = 60
"""How many times longer a probe may take while the worker has all that to do: the machine is busy, too."""


@dataclass
class Gateway:
    life: Life
    port: int
    engine: str

    @property
    def url(self) -> str:
        return f"http://[::1]:{self.port}"

    async def drawn(self) -> list[str]:
        """Prompts in the order in which the server drew them."""
        async with httpx.AsyncClient(trust_env=False) as client:
            found = (await client.get(f"{self.engine}/simulator/stats")).json()
        return [made["prompt"] for made in found["generations"]]

    def taken(self) -> list[str]:
        """Ids in the order in which the worker took the jobs in."""
        return [event["job"] for event in self.life.events("job_taken")]


@asynccontextmanager
async def gateway(folder: Path, **changes: str) -> AsyncIterator[Gateway]:
    """Ready, with a window of one. Worker and server are processes of their own: only they are measured."""
    port = free_port()
    inherited = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}
    server = ("worker.simulators", "sdnext", "--port", str(port), "--step-seconds", "0.002", "--load-seconds", "0")
    variables = {
        **inherited,
        "WORKER_ENGINE": "sdnext",
        "WORKER_ENGINE_URL": f"http://[::1]:{port}",
        "WORKER_HTTP_PORT": "0",
        "WORKER_QUEUE_WINDOW": "1",
        "WORKER_WARMUP": "none",
        "WORKER_MAX_WAIT": "10m",
        "WORKER_LOG_FORMAT": "json",
        **changes,
    }
    async with (
        living(*server, environment=inherited, log=folder / "server.log"),
        living("worker", "run", environment=variables, log=folder / "worker.log") as life,
    ):
        await wait_until(lambda: life.over or ready(life), timeout=60)
        assert not life.over, life.tail()
        yield Gateway(life, int(life.events("listening")[0]["port"]), f"http://[::1]:{port}")


def ready(life: Life) -> bool:
    return any(event["phase"] == "ready" for event in life.events("phase_changed"))


def ids(crowd: list[Caller]) -> dict[str, str]:
    return {caller.name: caller.result["id"] for caller in crowd if caller.result is not None}


async def crowded(folder: Path, count: int, pending: int, megabytes: float) -> str:
    """So many callers at once: each is answered, with his picture or with when to come again; who comes then gets it;
    jobs are done in the order in which they were taken; and the probes answer all the while. Then come some with
    images of so many megabytes, which are read, checked and passed on beside the probes."""
    crowd = callers(count)
    async with gateway(folder, WORKER_MAX_PENDING=str(pending)) as here:
        async with watched(here.port) as idle:
            await all_served(here.url, callers(1), patience=0)
        async with watched(here.port) as busy:
            await all_served(here.url, crowd, patience=100)
        assert [caller.name for caller in crowd if not caller.served] == []
        named = ids(crowd)
        assert len(set(named.values())) == count
        drawn = (await here.drawn())[1:]
        assert sorted(drawn) == sorted(named)
        assert [named[name] for name in drawn] == here.taken()[1:]
        refused = [caller for caller in crowd if caller.told]
        assert 0 < len(refused) < count
        told = [caller.told[0] for caller in refused]
        assert len(set(told)) > 1, "they were all told to come at once"
        assert max(told) <= count * 5
        assert busy.statuses.get("/live 200", 0) > 0
        assert busy.statuses.get("/ready 503", 0) > 0
        assert busy.statuses.get("/live 503", 0) == 0
        assert idle.statuses.get("/ready 503", 0) == 0
        assert busy.at(0.5) <= BUSY * idle.at(0.5)
        large = with_images(2, megabytes)
        async with watched(here.port) as laden:
            await all_served(here.url, large, patience=5)
        assert [caller.name for caller in large if not caller.served] == []
        assert laden.at(0.5) <= BUSY * idle.at(0.5)
    refusals = sum(len(caller.told) for caller in crowd)
    probes = ", ".join(f"{one.at(0.5) * 1000:.1f} (longest {one.at(1) * 1000:.0f})" for one in (idle, busy, laden))
    return (
        f"gateway: {count} callers, {len(refused)} refused, {refusals} refusals, first told {min(told)} to "
        f"{max(told)} s; probes in ms, idle, with the crowd, with large images: {probes}"
    )


def with_images(count: int, megabytes: float) -> list[Caller]:
    params = {"width": 64, "height": 64, "image": large_image(megabytes)}
    return [Caller(f"l{n}", json.dumps({"params": {"prompt": f"l{n}", **params}}).encode()) for n in range(count)]


async def test_a_crowd_of_callers_and_a_window_of_one(tmp_path: Path, figures: Figures) -> None:
    """As `crowded` says."""
    figures(await crowded(tmp_path, 40, 16, 5))
