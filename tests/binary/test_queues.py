"""The binary on every queue that comes from elsewhere: what it carries for each works, TLS included, and is lazy."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.binary.conftest import Binary
from tests.binary.test_running import PATIENCE_S, events, worker
from tests.support.certificates import Authority
from tests.support.metadata import MetadataService
from tests.support.redis import RedisServer
from tests.support.s3 import ACCESS_KEY, REGION, SECRET_KEY, Bucket
from tests.support.salad_queue import SaladJobQueue
from tests.support.sqs import made_line, running_sqs
from tests.support.waiting import wait_until
from worker.simulators import Simulator, running

pytestmark = pytest.mark.binary
pytest_plugins = ("tests.support.s3_fixtures",)

TXT2IMG = "/sdapi/v1/txt2img"
REQUEST = {"prompt": "a dog", "steps": 2, "width": 64, "height": 64}
DOCUMENT = {"params": {"prompt": "a cat", "width": 64, "height": 64, "steps": 2}}
ROOTS = "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH"
LIBRARIES = ("grpc", "google.protobuf", "redis", "boto3")
IDLE_MOST = 128 * 10**6
"""Bytes of a worker on the queue whose library is the largest."""


@dataclass(frozen=True)
class Started:
    """A worker of the binary, and what it says."""

    process: asyncio.subprocess.Process
    log: Path
    sim: Simulator

    async def ready(self) -> None:
        await self.until(lambda: any(one.get("phase") == "ready" for one in events(self.log)))

    async def until(self, condition: Any) -> None:
        await wait_until(condition, PATIENCE_S, self.log.read_text)

    @property
    def resident(self) -> int:
        """Bytes, of which others share some."""
        found = re.search(r"^VmRSS:\s+(\d+) kB", Path(f"/proc/{self.process.pid}/status").read_text(), re.MULTILINE)
        assert found is not None
        return int(found[1]) * 1024

    def maps(self) -> str:
        """What it has loaded."""
        return Path(f"/proc/{self.process.pid}/maps").read_text()


@asynccontextmanager
async def started(binary: Binary, folder: Path, variables: Mapping[str, str]) -> AsyncIterator[Started]:
    """A worker of the binary beside a server of its own."""
    log = folder / "log"
    async with (
        running("sdnext") as sim,
        worker(binary, log, WORKER_ENGINE_URL=sim.url, WORKER_HTTP_PORT="0", **variables) as process,
    ):
        yield Started(process, log, sim)


async def said_by(binary: Binary, *words: str, variables: Mapping[str, str], given: bytes = b"") -> str:
    """What a command of the binary prints, which has to succeed."""
    process = await asyncio.create_subprocess_exec(
        binary.path,
        *words,
        env=binary.environment(**variables),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(PATIENCE_S):
            out, _ = await process.communicate(given)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, out.decode()
    return out.decode()


async def submitted(binary: Binary, variables: Mapping[str, str]) -> str:
    """One job by `submit`, followed to its end."""
    document = json.dumps({"id": "a", **DOCUMENT}).encode()
    return await said_by(binary, "submit", "-", "--wait", variables=variables, given=document)


async def test_redis(binary: Binary, tmp_path: Path) -> None:
    """Submitted and done by the file; a real server between them."""
    (tmp_path / "redis").mkdir()
    with RedisServer(tmp_path / "redis") as server:
        variables = {"WORKER_QUEUE": "redis", "WORKER_REDIS_URL": server.url(), "WORKER_STORAGE": "directory"}
        async with started(binary, tmp_path, variables) as life:
            assert "succeeded" in await submitted(binary, variables)
            found = await said_by(binary, "check", variables={**variables, "WORKER_ENGINE_URL": life.sim.url})
            assert "1 done" in found
            assert "cygrpc" not in life.maps()


async def test_sqs(binary: Binary, tmp_path: Path, moto_bucket: Bucket) -> None:
    """The same on moto's; the end is found in the store."""
    with running_sqs() as server:
        line = made_line(server)
        variables = {
            "WORKER_QUEUE": "sqs",
            "WORKER_SQS_QUEUE_URL": line.url,
            "WORKER_S3_BUCKET": moto_bucket.name,
            "WORKER_S3_ENDPOINT_URL": moto_bucket.endpoint_url,
            "AWS_ENDPOINT_URL_SQS": server.url,
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_REGION": REGION,
        }
        async with started(binary, tmp_path, variables) as life:
            assert "succeeded" in await submitted(binary, variables)
            assert "a/result.json" in set(moto_bucket.keys())
            assert "cygrpc" not in life.maps()


def port_of(queue: SaladJobQueue) -> str:
    return queue.target.rpartition(":")[2]


def of_salad(platform: MetadataService, target: str) -> dict[str, str]:
    """A container of the platform, which is told where its service is."""
    return {**platform.variables(), "WORKER_QUEUE": "salad", "SALAD_SERVICE_ENDPOINT": target}


async def test_salad(binary: Binary, tmp_path: Path) -> None:
    """A document and a native request, over TLS with an authority of ours; and it leaves as it should."""
    authority, roots = Authority(), tmp_path / "roots.pem"
    roots.write_bytes(authority.root)
    async with (
        MetadataService() as platform,
        SaladJobQueue(certificate=authority.vouches_for(["localhost"])) as queue,
    ):
        variables = of_salad(platform, f"localhost:{port_of(queue)}") | {ROOTS: str(roots)}
        queue.submit("doc", DOCUMENT)
        queue.submit("native", REQUEST, path=TXT2IMG)
        async with started(binary, tmp_path, variables) as life:
            await life.until(lambda: all(job.status == "succeeded" for job in queue.jobs.values()))
            assert queue.jobs["doc"].output["status"] == "succeeded"
            assert len(queue.jobs["native"].output["images"]) == 1
            assert "cygrpc" in life.maps()
            assert life.resident < IDLE_MOST
            life.process.terminate()
            assert await asyncio.wait_for(life.process.wait(), PATIENCE_S) == 0
        assert {name for name, _ in queue.calls} == {"AcceptJobs", "CompleteJob", "RejectJob"}
        assert not [line for line in (tmp_path / "log").read_text().splitlines() if not line.startswith("{")]


@pytest.mark.parametrize(
    ("is_trusted", "name", "said"),
    [
        (False, "localhost", "its certificate is not to be trusted: unable to get local issuer certificate"),
        (True, "elsewhere.example", "its certificate is for another name"),
    ],
)
async def test_a_false_service(binary: Binary, tmp_path: Path, is_trusted: bool, name: str, said: str) -> None:
    """Another authority than those that the library carries, and another name: it hears no token, the log says why."""
    authority, roots = Authority(), tmp_path / "roots.pem"
    roots.write_bytes(authority.root)
    async with (
        MetadataService() as platform,
        SaladJobQueue(certificate=authority.vouches_for([name])) as queue,
    ):
        variables = of_salad(platform, f"localhost:{port_of(queue)}") | ({ROOTS: str(roots)} if is_trusted else {})
        queue.submit("doc", DOCUMENT)
        async with started(binary, tmp_path, variables) as life:
            await life.until(lambda: any(said in one.get("error", "") for one in events(life.log)))
        assert (queue.calls.total(), queue.jobs["doc"].events) == (0, ["created"])


async def test_a_queue_costs_nothing_where_it_is_not_used(binary: Binary, tmp_path: Path) -> None:
    """A worker with its queue in a file loads no library of another one."""
    variables = {"WORKER_QUEUE": "sqlite", "WORKER_SQLITE_PATH": str(tmp_path / "jobs.db")}
    async with started(binary, tmp_path, variables) as life:
        assert "succeeded" in await submitted(binary, variables)
        assert "cygrpc" not in life.maps()
    code = f"import sys, worker.app, worker.queues.sqlite; print([one for one in {LIBRARIES} if one in sys.modules])"
    assert binary.python(code).strip() == "[]"
