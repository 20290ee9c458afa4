"""Models whose place only the queue's operator tells, through the whole worker: on a host that no job may name."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.bench import params
from tests.support.model_host import ModelHost
from tests.support.receiver import Answer
from tests.support.stocked import SERVERS, Kind, Stocked, stocked
from worker.clock import SystemClock
from worker.job import digest, document_of
from worker.queues.base import Received
from worker.queues.policy import Policy
from worker.queues.sqlite import SqliteQueue
from worker.wire import Download

CLOSED: dict[str, Any] = {"WORKER_MODELS_HOSTS": "huggingface.co,civitai.com", "WORKER_URLS_ALLOW_PRIVATE": "false"}
"""As they are by default: jobs may name neither the test's host nor any other of a private address."""


class Telling(SqliteQueue):
    """A queue that tells the sources which a test leaves here with each delivery, as a scheduling server does."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, SystemClock(), worker="w1", policy=Policy())
        self.sources: tuple[Download, ...] = ()

    async def receive(self) -> Received:
        received = await super().receive()
        if received.delivery is None:
            return received
        return dataclasses.replace(received, delivery=dataclasses.replace(received.delivery, sources=self.sources))


def source(node: Stocked, kind: str, name: str, path: str) -> Download:
    node.offer(path, name, kind=kind)
    return Download.model_validate(node.ref(kind, name, path))


@pytest.mark.parametrize("kind", SERVERS)
async def test_the_operators_sources_may_be_anywhere(kind: Kind, tmp_path: Path) -> None:
    """A private host gives a checkpoint and a LoRA that the job only names; the result is of the document as sent.

    An embedding comes too, which no server tells from a word before it has the file. The very same URL in the job's own
    words is refused.
    """
    queue = Telling(tmp_path / "telling.db")
    async with ModelHost() as host, stocked(kind, tmp_path, host, queue=queue, **CLOSED) as node:
        host.otherwise = Answer(404)
        cat = source(node, "checkpoint", "cat.safetensors", "/cat.safetensors")
        ink = source(node, "lora", "ink.safetensors", "/ink.safetensors")
        lazy = source(node, "embedding", "lazy.safetensors", "/lazy.safetensors")
        queue.sources = (cat, ink, lazy)
        document = {"checkpoint": "cat", "params": params("a", loras=[{"name": "ink.safetensors"}])}
        result = await node.made("a", **document)
        assert node.used == {"checkpoint": ("cat",), "lora": ("ink",)}
        assert node.path("embedding", "lazy.safetensors").is_file()
        assert result.job_sha256 == digest(document_of(json.dumps({"id": "a", **document}).encode(), max_body=10_000))
        queue.sources = ()
        own = [{"kind": "checkpoint", "name": "dog.safetensors", "url": cat.url}]
        state = await node.worker.done("b", checkpoint="dog", models=own, params=params("b"))
        assert (state.status, state.code) == ("dead", "url_forbidden")
