"""What jobs name is fetched, used and kept, on all four servers, through the whole worker over real sockets."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
import pytest_asyncio

from tests.support.bench import params
from tests.support.model_host import ModelHost
from tests.support.stocked import SERVERS, Kind, Stocked, stocked
from worker.mentions import stem_of

pytestmark = pytest.mark.asyncio(loop_scope="module")
everywhere = pytest.mark.parametrize("kind", SERVERS)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def host() -> AsyncIterator[ModelHost]:
    async with ModelHost() as host:
        yield host


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fleet(host: ModelHost, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[dict[str, Stocked]]:
    """A worker for each server."""
    async with AsyncExitStack() as stack:
        yield {
            kind: await stack.enter_async_context(stocked(kind, tmp_path_factory.mktemp(kind), host))
            for kind in SERVERS
        }


@pytest_asyncio.fixture(loop_scope="module")
async def node(fleet: dict[str, Stocked], kind: Kind) -> Stocked:
    await fleet[kind].worker.ready()
    return fleet[kind]


@everywhere
async def test_a_model_is_fetched_once_and_used(node: Stocked, kind: Kind) -> None:
    """By URL and hash: fetched, listed by the server, generated with; the second job needs no transfer."""
    path = f"/{kind}/fetched.safetensors"
    file = node.offer(path, f"{kind}-fetched")
    job: dict[str, Any] = {"checkpoint": "fetched", "models": [node.ref("checkpoint", "fetched.safetensors", path)]}
    result = await node.made("fetch-1", **job)
    assert node.used["checkpoint"] == ("fetched",)
    assert result.engine is not None
    assert (stem_of(result.engine.model or ""), result.engine.proof != "none") == ("fetched", True)
    assert node.stored()["fetched.safetensors"] == file.body
    asked = len(file.requests)
    await node.made("fetch-2", params=params("again"), **job)
    assert node.used["checkpoint"] == ("fetched",)
    assert len(file.requests) == asked > 0
    assert node.partials() == []
