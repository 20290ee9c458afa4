"""A worker with comfyui-api's endpoints over a simulated ComfyUI, and a client that speaks as its callers do."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.bench import SECRET
from tests.support.comfy import Graph, text_graph
from tests.support.model_host import ModelHost
from tests.support.receiver import Answer, Receiver, Request
from tests.support.s3 import Bucket, made_bucket, set_credentials
from tests.support.stocked import BASE, Stocked, stocked
from tests.support.waiting import wait_until


@dataclass
class Prompts:
    """``hook`` takes signed webhooks, ``plain`` any, and what is put there."""

    node: Stocked
    hook: Receiver
    plain: Receiver
    bucket: Bucket

    async def ask(self, path: str, document: Any) -> httpx.Response:
        return await self.node.worker.client.post(path, json=document, timeout=30)

    async def prompt(self, graph: Graph | None = None, **fields: Any) -> httpx.Response:
        return await self.ask("/prompt", {"prompt": graph or a_graph(), **fields})

    async def told(self, receiver: Receiver, of: str, count: int = 1) -> list[dict[str, Any]]:
        """The bodies that a receiver got of a request's id, once there are so many."""

        def found() -> list[dict[str, Any]]:
            return [one for one in receiver.documents if one.get("id") == of]

        await wait_until(lambda: len(found()) >= count)
        return found()

    async def at_rest(self) -> bool:
        """Whether no job is held."""
        status: dict[str, Any] = await self.node.worker.status()
        return not status["jobs"]

    def put(self) -> dict[str, Request]:
        """What was put to the plain server, by its path."""
        return {one.path: one for one in self.plain.requests if one.method == "PUT"}


def a_graph(prompt: str = "a cat", **changes: Any) -> Graph:
    return text_graph(prompt, checkpoint=BASE, **changes)


def decoded(image: str) -> bytes:
    return base64.b64decode(image, validate=True)


class Plain(Receiver):
    """Takes whatever is posted or put, JSON or not."""

    @property
    def documents(self) -> list[dict[str, Any]]:
        return [json.loads(one.body) for one in self.taken if one.method == "POST"]


@asynccontextmanager
async def prompting(root: Path, moto: str, **variables: str) -> AsyncIterator[Prompts]:
    """A worker that takes no jobs but over HTTP, with an S3 store that nothing names but requests."""
    given: dict[str, Any] = {
        "WORKER_QUEUE": "none",
        "WORKER_WARMUP": "none",
        "WORKER_S3_ENDPOINT_URL": moto,
        "WORKER_WEBHOOK_EVENTS": "failed",
        **variables,
    }
    with pytest.MonkeyPatch.context() as patch:
        set_credentials(patch)
        async with ModelHost() as host, Receiver(secret=SECRET) as hook, Plain() as plain:
            host.otherwise = Answer(404)
            async with stocked("comfyui", root, host, **given) as node:
                yield Prompts(node, hook, plain, made_bucket(moto))
