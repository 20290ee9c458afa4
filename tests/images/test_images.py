"""Each image, built from its Dockerfile on a stand-in of its base: what it is, and its life as a container."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import json
import os
import signal
from collections.abc import AsyncIterator

import httpx
import pytest
from PIL import Image

from tests.images.bases import BASES
from tests.images.boxes import Box, Seen, command_line, environment, exists, listeners, status
from tests.images.conftest import Build
from tests.images.models import NAME, Shelf
from tests.images.store import NotBuilt, Store
from tests.support.s3 import SECRET_KEY
from tests.support.waiting import wait_until

pytestmark = pytest.mark.images

PORT = 3000
HOSTS = ("127.0.0.1", "[::1]")
JOB = {"params": {"prompt": "a red fox"}}
OURS_MOST = 160_000_000
"""Bytes that an image may have beyond its base."""

START_S = 90.0


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=f"http://[::1]:{PORT}", timeout=60, trust_env=False) as client:
        yield client


async def ready(box: Box, client: httpx.AsyncClient) -> None:
    """Until it takes jobs."""

    async def is_so() -> bool:
        assert box.runs, box.printed[-4000:]
        try:
            return (await client.get("/ready")).status_code == 200
        except httpx.TransportError:
            return False

    await wait_until(is_so, START_S, lambda: box.printed[-4000:])


def servers(box: Box) -> list[Seen]:
    """The processes that the worker started, one unless it is just ending."""
    return [one for one in box.processes().values() if one.parent == box.pid and one.state != "Z"]


def check_images(answer: httpx.Response) -> None:
    """That there is one, and that it is the one the result tells of."""
    assert answer.status_code == 200, answer.text
    (image,) = answer.json()["images"]
    body = base64.b64decode(image["base64"])
    assert hashlib.sha256(body).hexdigest() == image["sha256"]
    assert Image.open(io.BytesIO(body)).size == (image["width"], image["height"])


def test_the_image_is_run_as_its_dockerfile_says(store: Store, image: str) -> None:
    """Health check and labels arrive, and what it has beyond the base is small."""
    config = store.config(image)
    assert config["Entrypoint"] == ["sd-worker", "run", "--"]
    assert config["Healthcheck"]["Test"] == ["CMD", "sd-worker", "probe", "live"]
    assert config["Labels"]["org.opencontainers.image.version"] == "1.2.3"
    base = BASES[config["Labels"]["org.opencontainers.image.title"].removeprefix("sd-worker-")]
    assert sum(store.layers(image)) - sum(store.layers(base.tag)) < OURS_MOST


def test_nothing_of_the_build_stays(store: Store, shelf: Shelf, image: str, box: Box) -> None:
    """No secret, no sources, no archive of what is unpacked, no partial file."""
    assert SECRET_KEY not in store.history(image)
    assert shelf.url not in json.dumps(store.config(image))
    assert not list((box.root / "run").glob("*/sd-worker"))
    assert not (box.root / "src").exists()
    assert not list((box.root / "run/secrets").glob("*"))
    assert (box.root / "usr/local/bin/sd-worker").stat().st_size < 20_000
    assert [one.name for one in (box.root / "opt/sd-worker").iterdir() if one.name.startswith(".")] == []


async def test_process_1_is_the_worker_and_runs_as_the_image_says(box: Box, client: httpx.AsyncClient) -> None:
    """Neither shell nor loader stands between the platform's signals and it."""
    await ready(box, client)
    assert status(box.pid, "NSpid").split()[-1] == "1"
    assert "worker" in command_line(box.pid)
    assert command_line(box.pid)[-len(box.config["Cmd"]) :] == box.config["Cmd"]
    user = int(box.user.partition(":")[0])
    (server,) = servers(box)
    for pid in (box.pid, server.pid):
        assert {int(word) for word in status(pid, "Uid").split()} == {user}


async def test_both_families_are_answered_and_the_server_reached_by_none(box: Box, client: httpx.AsyncClient) -> None:
    """The platform probes by the one or the other; the server has no authentication."""
    await ready(box, client)
    for host in HOSTS:
        for probe in ("live", "startup", "ready"):
            assert (await client.get(f"http://{host}:{PORT}/{probe}")).status_code == 200
    port = int(box.variables["WORKER_ENGINE_URL"].rpartition(":")[2])
    assert listeners(box.pid, port) == {"0100007F"}


async def test_the_server_has_the_environment_of_its_image(box: Box, client: httpx.AsyncClient) -> None:
    """What its base sets, and nothing of the worker's or the bundle's."""
    await ready(box, client)
    (server,) = servers(box)
    found = environment(server.pid)
    assert not [name for name in found if name.startswith(("WORKER_", "AWS_", "SD_WORKER_BUNDLE", "_PYI"))]
    for name, value in box.variables.items():
        assert name.startswith("WORKER_") or found[name] == value


async def test_jobs_are_done(box: Box, client: httpx.AsyncClient) -> None:
    """Asked for over HTTP, made by the server of the image, verified."""
    await ready(box, client)
    check_images(await client.post("/v1/jobs", json=JOB))


async def test_the_baked_model_is_there_and_used(box: Box, client: httpx.AsyncClient) -> None:
    """Known by its hash from the build on, and no part of the cache's size."""
    await ready(box, client)
    listed = (await client.get("/v1/models")).json()["on_disk"]
    assert [one["baked"] for one in listed if one["name"] == NAME] == [True]
    check_images(await client.post("/v1/jobs", json={"checkpoint": NAME, **JOB}))


async def test_the_probe_of_the_health_check(box: Box, client: httpx.AsyncClient) -> None:
    """As Docker runs it, within the container."""
    await ready(box, client)
    done = await asyncio.to_thread(box.run, *box.config["Healthcheck"]["Test"][1:])
    assert (done.returncode, done.stderr) == (0, "")


async def test_orphans_are_reaped(box: Box, client: httpx.AsyncClient) -> None:
    """Process 1 gets everybody's, and no zombie stays."""
    await ready(box, client)
    done = await asyncio.to_thread(box.run, "sh", "-c", "for i in 1 2 3; do sleep 1000 >/dev/null 2>&1 & done")
    assert done.returncode == 0

    def orphans() -> list[Seen]:
        return [one for one in box.processes().values() if one.parent == box.pid and one.name == "sleep"]

    await wait_until(lambda: len(orphans()) == 3)
    for orphan in orphans():
        os.kill(orphan.pid, signal.SIGKILL)
    await wait_until(lambda: not orphans(), 20)
    assert not [one for one in box.processes().values() if one.state == "Z"]


async def test_a_server_that_dies_is_started_again(box: Box, client: httpx.AsyncClient) -> None:
    """Within the same container, by its worker."""
    await ready(box, client)
    (first,) = servers(box)
    os.kill(first.pid, signal.SIGKILL)
    await wait_until(lambda: [one for one in servers(box) if one.pid != first.pid], START_S)
    await ready(box, client)
    check_images(await client.post("/v1/jobs", json=JOB))


async def test_it_drains_and_starts_again_after_any_end(box: Box, client: httpx.AsyncClient) -> None:
    """SIGTERM: the job at work is finished and answered, exit 0. SIGKILL: everything is gone, and nothing is in the way
    of the next start on the same disk, where jobs from the queue in its file are done as well."""
    await ready(box, client)
    unpacked = sorted((box.root / "opt/sd-worker").iterdir())
    job = asyncio.create_task(client.post("/v1/jobs", json=JOB), name="job")
    await wait_until(lambda: is_generating(client))
    box.signal(signal.SIGTERM)
    check_images(await job)
    assert await asyncio.to_thread(box.ended) == 0

    box.start()
    await ready(box, client)
    ran = [box.pid, *(one.pid for one in servers(box))]
    box.signal(signal.SIGKILL)
    assert await asyncio.to_thread(box.ended) != 0
    assert not [pid for pid in ran if exists(pid)]

    box.start({"WORKER_QUEUE": "sqlite", "WORKER_HTTP_JOBS": "on"})
    await ready(box, client)
    submit = ("sd-worker", "submit", "--prompt", "a red fox", "--wait")
    done = await asyncio.to_thread(lambda: box.run(*submit, WORKER_QUEUE="sqlite"))
    assert done.returncode == 0, done.stderr
    assert len(list((box.root / "var/lib/sd-worker/outputs").glob("*/result.json"))) == 1
    box.signal(signal.SIGTERM)
    assert await asyncio.to_thread(box.ended) == 0
    assert sorted((box.root / "opt/sd-worker").iterdir()) == unpacked
    assert [one.name for one in (box.root / "tmp").iterdir() if "sd-worker" in one.name] == []


async def is_generating(client: httpx.AsyncClient) -> bool:
    return any(job["progress"] for job in (await client.get("/v1/status")).json()["jobs"])


def test_a_wrong_base_ends_the_build(build: Build) -> None:
    """And says what is missing."""
    with pytest.raises(NotBuilt, match=r"'main\.py' is not found in /opt/ComfyUI"):
        build("comfyui", "sdnext", "")
