"""A whole worker on a node that has to be fit: simulated server, real store, real model source."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from tests.support.bench import running_worker
from tests.support.model_host import ModelHost
from tests.support.s3 import Bucket
from worker.fitness import verdict
from worker.supervisor import ExitCode

pytest_plugins = ["tests.support.s3_fixtures"]
pytestmark = pytest.mark.usefixtures("credentials")


def at_once(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(verdict, "PAUSES_S", (0.0, 0.0))


def demands(bucket: Bucket, host: ModelHost, **changes: str) -> dict[str, Any]:
    host.host("/m.safetensors", os.urandom(3_000_000))
    catalog = [{"kind": "checkpoint", "name": "m.safetensors", "url": host.url("/m.safetensors")}]
    path = Path(changes.pop("root")) / "catalog.json"
    path.write_text(json.dumps(catalog))
    return {
        "WORKER_S3_BUCKET": bucket.name,
        "WORKER_S3_ENDPOINT_URL": bucket.endpoint_url,
        "WORKER_MODELS_CATALOG": str(path),
        "WORKER_FITNESS_UPLOAD": "1kB",
        "WORKER_FITNESS_DOWNLOAD": "1kB",
        "WORKER_FITNESS_STEP": "1h",
        **changes,
    }


async def test_a_fit_node_is_ready_with_its_figures_in_the_status(rclone_bucket: Bucket, tmp_path: Path) -> None:
    """Measured before and after its server's start; the scheduler hears of the line's rate before any model came."""
    async with ModelHost() as host:
        environ = demands(rclone_bucket, host, root=str(tmp_path))
        async with running_worker(tmp_path, **environ) as worker:
            status = (await worker.client.get("/v1/status")).json()
    assert status["fitness"]["verdict"] == "fit"
    figures: dict[str, Any] = status["fitness"]["figures"]
    assert {name: one["fit"] for name, one in figures.items()} == {
        "disk": None,
        "upload": True,
        "download": True,
        "step": True,
    }
    assert figures["download"]["unit"] == "bytes/s"
    assert status["node"]["rates"]["network"] > 0
    assert not [key for key in rclone_bucket.keys() if "fitness" in key]  # noqa: SIM118


async def test_an_unfit_node_ends_with_its_reason_before_a_job_meets_it(rclone_bucket: Bucket, tmp_path: Path) -> None:
    """A canary that is too slow, three times over: nobody would have waited for a job to tell."""
    async with ModelHost() as host:
        environ = demands(rclone_bucket, host, root=str(tmp_path), WORKER_FITNESS_STEP="1ms")
        with capture_logs() as logs:
            async with running_worker(tmp_path, ready=False, changed=at_once, **environ) as worker:
                assert await worker.process is ExitCode.NEVER_READY
    [given_up] = [line["error"] for line in logs if line["event"] == "node_given_up"]
    assert given_up.startswith("unfit: step ")
    assert "0.001 s wanted, the best of 3 tries" in given_up
