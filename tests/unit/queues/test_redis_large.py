"""The redis driver and documents that take longer to come than an answer may."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

import pytest

from tests.support.queues import result_of, taken
from tests.support.redis import RedisServer
from tests.support.redis_relay import relaying
from worker.errors import QueueUnavailable
from worker.queues.redis import RedisPlace, RedisQueue

pytest_plugins = ("tests.support.redis_fixtures",)

BRIEF = timedelta(milliseconds=20)
PATIENCE = timedelta(seconds=1)
SLOW = 1_000_000
LARGE = json.dumps({"id": "large", "params": {"prompt": "a cat", "image": "x" * 1_600_000}}).encode()
"""At that pace it takes longer than is waited for any other answer."""


@asynccontextmanager
async def two(server: RedisServer) -> AsyncIterator[tuple[RedisQueue, RedisQueue]]:
    """Drivers on one stream: near the server, and far from it on a slow line."""
    place = server.place()
    async with relaying(server.port) as relay:
        relay.bytes_per_s = SLOW
        near = RedisQueue(place, worker="near", wait=BRIEF)
        far = RedisQueue(
            RedisPlace(relay.url(), place.stream, place.group), worker="far", wait=BRIEF, patience=PATIENCE
        )
        try:
            yield near, far
        finally:
            await near.aclose()
            relay.bytes_per_s = None
            await far.aclose()


@pytest.mark.parametrize("by_another_program", [False, True])
async def test_a_large_document_on_a_slow_line(redis_server: RedisServer, by_another_program: bool) -> None:
    """It is read by itself, for as long as its length takes, and handed over once; what comes after is not held up."""
    async with two(redis_server) as (near, far):
        if by_another_program:
            redis_server.ask("XADD", near._place.stream, "*", "job", LARGE)
        else:
            await near.submit("large", LARGE)
        await near.submit("small", b"{}")
        delivery = await taken(far)
        assert (delivery.id, delivery.body, delivery.deliveries) == ("large", LARGE, 1)
        await far.ack(delivery, result_of("large"))
        assert (await taken(far)).id == "small"


async def test_many_large_documents_at_once(redis_server: RedisServer) -> None:
    """No answer holds several: what another program put into the stream is read one by one."""
    async with two(redis_server) as (near, far):
        for number in range(3):
            body = json.dumps({"id": f"j{number}", "metadata": "x" * 400_000})
            redis_server.ask("XADD", near._place.stream, "*", "job", body)
        assert [(await taken(far)).id for _ in range(3)] == ["j0", "j1", "j2"]


async def test_a_large_document_that_goes_while_it_is_read(redis_server: RedisServer) -> None:
    """It was trimmed away between the claim and the reading: a dead letter that says so, and no job without a body."""
    async with two(redis_server) as (near, _):
        await near.submit("large", LARGE)
        reading = near._ledger._entry

        async def trimmed_first(entry: bytes, size: int) -> object:
            redis_server.ask("XTRIM", near._place.stream, "MAXLEN", 0)
            return await reading(entry, size)

        near._ledger._entry = trimmed_first  # type: ignore[assignment, method-assign]
        with pytest.raises(QueueUnavailable, match="went while it was read"):
            await near.receive()
        assert (await near.receive()).delivery is None
        [dead] = await near.jobs("dead")
        assert (dead.id, dead.code) == ("large", "document_lost")
