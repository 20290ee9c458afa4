"""Requests in a server's own language whose owners are told elsewhere: the platform's queue forgets none before."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.support.bench import RunningWorker, running_worker
from tests.support.comfy import text_graph
from tests.support.metadata import MetadataService
from tests.support.receiver import Answer
from tests.support.salad_queue import SaladJobQueue
from tests.support.waiting import wait_until

SMALL = {"prompt": "a fox", "seed": 7, "steps": 2, "width": 64, "height": 64}
FOOOCUS = {"prompt": "a fox", "image_seed": 7, "aspect_ratios_selection": "704*1408", "async_process": True}


@dataclasses.dataclass(frozen=True)
class Language:
    """Where a request goes, what it says, how it names its webhook, and how its output tells of pictures."""

    dialect: str
    path: str
    body: Mapping[str, Any]
    webhook: str
    pictures: str


LANGUAGES = {
    "sdapi": Language("a1111", "/sdapi/v1/txt2img", SMALL, "webhook", "images"),
    "comfyui": Language("comfyui", "/prompt", {"id": "mine", "prompt": text_graph("a fox")}, "webhook_v2", "images"),
    "workflow": Language("a1111", "/workflow/fox", {"input": {}}, "webhook", "images"),
}


async def pushed(worker: RunningWorker[Any], queue: SaladJobQueue, language: Language) -> None:
    """A job whose webhook hangs is pushed, and its picture made."""
    body = {**language.body, language.webhook: worker.receiver.url("/mine")}
    worker.receiver.script.append(Answer(hang=True))
    queue.submit("job", body, path=language.path)
    await wait_until(lambda: bool(worker.receiver.requests), timeout=30, story=lambda: str(queue.jobs["job"]))


def variables(platform: MetadataService, queue: SaladJobQueue, **more: str) -> dict[str, Any]:
    return {
        **platform.variables(),
        "WORKER_QUEUE": "salad",
        "WORKER_STORAGE": "",
        "WORKER_URLS_ALLOW_PRIVATE": "true",
        "WORKER_WARMUP": "none",
        "SALAD_SERVICE_ENDPOINT": queue.target,
        "SALAD_SERVICE_USE_TLS": "false",
        **more,
    }


async def over(queue: SaladJobQueue) -> Any:
    """The output of the job, once it has one."""
    job = queue.jobs["job"]
    await wait_until(lambda: job.status == "succeeded", timeout=30, story=lambda: str(job))
    return job.output


@pytest.mark.parametrize("name", LANGUAGES)
async def test_the_output_follows_the_webhook(name: str, tmp_path: Path) -> None:
    """It is no 202: the pictures, or where they lie, once the owner has heard of them or could not be told."""
    language = LANGUAGES[name]
    (tmp_path / "workflows").mkdir()
    (tmp_path / "workflows" / "fox.json").write_text('{"params": {"prompt": "a fox", "width": 64, "height": 64}}')
    changes = {"WORKER_WORKFLOWS_DIR": str(tmp_path / "workflows"), "WORKER_WEBHOOK_TIMEOUT": "1s"}
    async with MetadataService() as platform, SaladJobQueue() as queue:
        given = variables(platform, queue, **changes)
        async with running_worker(tmp_path, language.dialect, quiet_s=10.0, **given) as worker:
            await pushed(worker, queue, language)
            assert queue.jobs["job"].status == "running"
            output = await over(queue)
            assert len(output[language.pictures]) == 1
            first, second = worker.receiver.requests
            assert first.headers["webhook-id"] == second.headers["webhook-id"]
            assert queue.calls["CompleteJob", "OK"] == queue.jobs["job"].attempts == 1


async def test_fooocus_in_the_background(tmp_path: Path) -> None:
    """`async_process` too is answered with the pictures: nobody could ask a node of a queue how far they are."""
    async with (
        MetadataService() as platform,
        SaladJobQueue() as queue,
        running_worker(tmp_path, "fooocus", quiet_s=10.0, **variables(platform, queue)),
    ):
        queue.submit("job", FOOOCUS, path="/v1/generation/text-to-image")
        [picture] = await over(queue)
        assert picture["finish_reason"] == "SUCCESS"
