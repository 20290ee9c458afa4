"""A worker whose images go to S4, with nothing to prove itself by but its node's identity token."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.support.bench import RunningWorker, params, running_worker
from tests.support.metadata import MetadataService, token
from tests.support.s4 import S4Service
from tests.support.waiting import wait_until
from worker import http

JOBS = "/v1/jobs"


@asynccontextmanager
async def _worker(root: Path, platform: MetadataService, store: S4Service) -> AsyncIterator[RunningWorker[Any]]:
    """Without a queue, and without any webhook."""
    variables: dict[str, Any] = {
        **platform.variables(),
        "SALAD_STORAGE_URI": store.url(""),
        "WORKER_STORAGE": "s4",
        "WORKER_S3_PREFIX": "renders",
        "WORKER_QUEUE": "none",
        "WORKER_WEBHOOK_URL": "",
    }
    async with running_worker(root, **variables) as worker:
        yield worker


async def test_jobs_over_http_are_kept_and_linked_to(tmp_path: Path) -> None:
    """An answer links to its images; a job that nobody waits for is told of by any replica, as with S3."""
    async with (
        MetadataService() as platform,
        S4Service() as store,
        _worker(tmp_path / "a", platform, store) as worker,
        _worker(tmp_path / "b", platform, store) as replica,
        http.client(loopback=True) as anyone,
    ):
        store.refused = {token(1)}
        waited = (await worker.client.post(JOBS, json={"params": params()})).json()
        (image,) = waited["images"]
        assert "base64" not in image
        assert (await anyone.get(image["url"])).content == store.read(image["key"])
        asked = await worker.client.post(JOBS, json={"params": params("a dog")}, headers={"prefer": "respond-async"})
        assert asked.status_code == 202, asked.text
        address = f"{JOBS}/{asked.json()['id']}"

        async def is_over() -> bool:
            return bool((await replica.client.get(address)).json().get("status") == "succeeded")

        await wait_until(is_over)
        result = (await replica.client.get(address)).json()["result"]
        assert (await anyone.get(result["images"][0]["url"])).content == store.read(result["images"][0]["key"])
        assert all(name.startswith("renders/http-") for name in store.names())
        assert (await worker.status())["storage"] == {"kind": "s4"}


async def test_a_store_that_does_not_believe_the_node_pauses_it(tmp_path: Path) -> None:
    """The image waits for the store, and goes there once the node is believed: nothing is generated twice."""
    async with (
        MetadataService() as platform,
        S4Service() as store,
        _worker(tmp_path, platform, store) as worker,
    ):
        platform.is_cached = True
        store.refused = {token(1)}
        asked = await worker.client.post(JOBS, json={"params": params()}, headers={"prefer": "respond-async"})
        await worker.unready("auth_failed")
        assert store.names() == set()
        store.refused = set()
        await worker.ready()

        async def is_over() -> bool:
            found = (await worker.client.get(f"{JOBS}/{asked.json()['id']}")).json()
            return bool(found["status"] == "succeeded")

        await wait_until(is_over)
        assert len([name for name in store.names() if name.endswith(".png")]) == 1
