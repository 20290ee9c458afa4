"""What `/docs` offers to send is answered with success by the server that is there, as it stands."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any, cast

import httpx
import pytest

from tests.support.bench import RunningWorker, running_worker
from tests.support.fakes import FakeEngine
from worker.api.examples import FAMILIES, PICTURE, STANDARD, examples, exemplified, graph_of
from worker.api.fetches import Fetches
from worker.api.native import Native
from worker.gate import Gate


def examples_in(document: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """Path, name and value of every example of a request's body."""
    for path, item in document["paths"].items():
        for operation in item.values():
            content = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
            named = content.get("examples") or {"example": {"value": content.get("example")}}
            for name, example in named.items():
                if example["value"] is not None:
                    yield path, name, example["value"]


async def ordered(*_: Any, **__: Any) -> None:
    """A model that is on its way."""


async def answers(worker: RunningWorker[Any]) -> dict[tuple[str, str], httpx.Response]:
    """What each example is answered."""
    document = (await worker.client.get("/openapi.json")).json()
    cases = list(examples_in(document))
    sent = [worker.client.post(path, json=value, timeout=60) for path, _, value in cases]
    found = await asyncio.gather(*sent)
    return {(path, name): response for (path, name, _), response in zip(cases, found, strict=True)}


@pytest.mark.parametrize("dialect", ["sdnext", "a1111", "comfyui", "fooocus"])
async def test_every_example_runs_as_it_stands(tmp_path: Any, dialect: str) -> None:
    """On each server: every one of the OpenAPI document, among them some in the server's own language."""
    async with running_worker(
        tmp_path,
        dialect,
        changed=lambda patch: patch.setattr(Fetches, "fetched", ordered),
        WORKER_QUEUE="none",
        WORKER_HTTP_JOBS="on",
        WORKER_MAX_PENDING="50",
        WORKER_MAX_WAIT="10m",
        WORKER_STORAGE="directory",
    ) as worker:
        found = await answers(worker)
        desk = (await worker.status())["desk"]
    bad = {case: response.text[:300] for case, response in found.items() if not response.is_success}
    assert bad == {}
    assert desk == {"waiting": 0, "max_pending": 50, "full": []}
    name = dialect.partition("-")[0]
    assert {path for path, some in examples(name).items() if some} <= {path for path, _ in found}


@pytest.mark.parametrize("server", ["a1111", "sdnext", "fooocus", "comfyui"])
def test_only_what_the_server_speaks_is_shown(server: str) -> None:
    """Endpoints in another server's language would be answered with 404; while it is unknown all are shown."""
    tags = [*FAMILIES, "jobs"]
    content: dict[str, Any] = {"application/json": {"example": {}}}
    document = {"paths": {f"/{tag}": {"post": {"tags": [tag], "requestBody": {"content": content}}} for tag in tags}}
    kept = exemplified(document, server)["paths"]
    assert set(kept) == {"/jobs"} | {f"/{tag}" for tag in tags if server in FAMILIES.get(tag, ())}
    assert exemplified(document, "auto") == document


def test_the_document_itself_stays_as_it_is() -> None:
    """It is made once, and suited to the server whenever it is asked for."""
    content: dict[str, Any] = {"application/json": {"example": {"params": {}}}}
    document: dict[str, Any] = {
        "paths": {"/v1/jobs": {"post": {"tags": ["jobs"], "requestBody": {"content": content}}}}
    }
    suited = exemplified(document, "sdnext")["paths"]["/v1/jobs"]["post"]["requestBody"]["content"]
    assert {"params", "image", "request"} <= set(suited["application/json"]["examples"])
    assert content == {"application/json": {"example": {"params": {}}}}


async def test_a_server_that_is_not_ready_is_not_asked() -> None:
    """Neither is one that has no graphs."""
    for name in ("comfyui", "sdnext"):
        engine = FakeEngine()
        engine.name = name
        gate = Gate(engine)
        if name == "sdnext":
            gate.open("starting")
        assert await graph_of(cast("Native", SimpleNamespace(engine=engine, gate=gate))) is STANDARD


def test_there_is_a_graph_even_while_comfyui_cannot_be_asked() -> None:
    """The one that a default installation runs."""
    found = examples("comfyui")
    assert found["/prompt"]["graph"]["value"] == {"prompt": STANDARD}
    assert PICTURE not in str(found["/prompt"])
