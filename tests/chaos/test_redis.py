"""Real workers on a real Redis that goes away and comes back."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.support.lines import Stream
from tests.support.waiting import wait_until
from tests.support.workshop import workshop

pytestmark = pytest.mark.chaos


async def test_server_away_in_the_middle(tmp_path: Path) -> None:
    """Workers outlast a restart of the server: each job is handed over, made and told of once."""
    async with workshop(tmp_path, queue="redis") as shop:
        assert isinstance(shop.line, Stream)
        server = shop.line.server
        await shop.submit_many(12)
        async with shop.worker("w1") as life:
            await wait_until(lambda: len(shop.receiver.ended()) > 2, timeout=30)
            await asyncio.to_thread(server.stop)
            await wait_until(lambda: life.events("queue_unavailable") or life.events("lease_not_renewed"), timeout=30)
            await asyncio.to_thread(server.start)
            await shop.ended(life)
            assert await life.stop() == 0, life.tail()
        assert await shop.breaches() == []
