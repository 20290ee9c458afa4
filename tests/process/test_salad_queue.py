"""A real worker on the platform's job queue: job documents, native requests, an outage, and how it leaves."""

from __future__ import annotations

import base64
import io
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from PIL import Image

from tests.support.metadata import MetadataService, token
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


async def test_documents_and_native_requests(tmp_path: Path) -> None:
    """Each is answered in its own language, what can never succeed with the error, each handed over once."""
    async with at_work(tmp_path) as (_, life, queue):
        queue.submit("doc", {"params": {"prompt": "a cat", "width": 64, "height": 64, "steps": 2}})
        queue.submit("native", body("a dog", seed=7), path=TXT2IMG)
        queue.submit("wrong", {"params": {"prompt": "a", "widht": 64}})
        queue.submit("refused", body("a cow", steps=100_000), path=TXT2IMG)
        queue.submit("nowhere", body("a hen"), path="/no/such/endpoint")
        told = await until_over(life, queue)
        assert (told["doc"]["status"], told["doc"]["id"]) == ("succeeded", "doc")
        assert size_of(told["doc"]["images"][0]["base64"]) == (64, 64)
        assert size_of(told["native"]["images"][0]) == (64, 64)
        assert told["native"]["parameters"]["prompt"] == "a dog"
        assert (told["wrong"]["status"], told["wrong"]["error"]["code"]) == ("failed", "invalid_job")
        assert (told["refused"]["status"], told["refused"]["code"]) == (422, "invalid_job")
        assert (told["nowhere"]["status"], told["nowhere"]["code"]) == (404, "not_found")
        assert {one.attempts for one in queue.jobs.values()} == {1}
        assert queue.calls == {("RejectJob", "NOT_FOUND"): 1, ("AcceptJobs", "OK"): 1, ("CompleteJob", "OK"): 5}
        assert (await life.get("/openapi.json")).json()["paths"].keys().isdisjoint({TXT2IMG, "/v1/jobs"})
        await life.drained()
        assert not any(token(number) in life.log.read_text() for number in range(1, 9))


async def test_an_outage_in_mid_job(tmp_path: Path) -> None:
    """The service away and back, with every token expired: the job goes on, is named again, and ends once."""
    async with at_work(tmp_path) as (around, life, queue):
        await around.turn(step_seconds=0.3)
        queue.submit("a", body("a cat", steps=12), path=TXT2IMG)
        await life.until(lambda: queue.jobs["a"].status == "running")
        queue.refused.add(token(1))
        await queue.stop()
        await life.until(lambda: life.events("queue_stream_broke"))
        await queue.start()
        told = await until_over(life, queue)
        assert size_of(told["a"]["images"][0]) == (64, 64)
        assert (queue.jobs["a"].attempts, queue.jobs["a"].events) == (1, ["created", "started", "succeeded"])
        assert queue.named[0] == ""
        assert set(queue.named[1:]) == {"a"}
        assert {one["job"] for one in life.events("request_settled")} == {"a"}


async def test_a_drain_gives_back_what_does_not_fit(tmp_path: Path) -> None:
    """And takes nothing more: the job that waits is not handed over."""
    async with at_work(tmp_path, WORKER_DRAIN_TIMEOUT="1s") as (around, life, queue):
        await around.turn(step_seconds=1.0)
        queue.submit("a", body("a cat", steps=60), path=TXT2IMG)
        await life.until(lambda: queue.jobs["a"].status == "running")
        queue.submit("b", {"params": {"prompt": "a dog", "width": 64, "height": 64, "steps": 2}})
        around.wanted["a cat"] = None
        await life.sampling()
        await life.drained()
        assert queue.jobs["a"].events == ["created", "started", "failed"]
        assert queue.jobs["b"].events == ["created"]
        assert (queue.jobs["a"].status, queue.streams) == ("pending", 0)
