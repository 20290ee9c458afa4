"""Real workers on a real Redis: with the server away, and with documents of other programs."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

from tests.support.lines import Stream
from tests.support.waiting import wait_until
from tests.support.workshop import Workshop, workshop


def stream_of(shop: Workshop) -> Stream:
    assert isinstance(shop.line, Stream)
    return shop.line


async def test_server_away_in_the_middle(tmp_path: Path) -> None:
    """Workers outlast a restart of the server: each job is handed over, made and told of once."""
    async with workshop(tmp_path, queue="redis") as shop:
        server = stream_of(shop).server
        await shop.submit_many(12)
        async with shop.worker("w1") as life:
            await wait_until(lambda: len(shop.receiver.ended()) > 2, timeout=30)
            await asyncio.to_thread(server.stop)
            await wait_until(lambda: life.events("queue_unavailable") or life.events("lease_not_renewed"), timeout=30)
            await asyncio.to_thread(server.start)
            await shop.ended(life)
            assert await life.stop() == 0, life.tail()
        assert await shop.breaches() == []


async def test_document_of_another_program(tmp_path: Path) -> None:
    """What any program puts into the stream is done and told of, good or bad."""
    async with workshop(tmp_path, queue="redis") as shop:
        line = stream_of(shop)
        good = json.dumps({"id": "theirs", "params": {"prompt": "theirs", "width": 64, "height": 64, "steps": 4}})
        stream = line.place.stream
        line.server.ask("XADD", stream, "*", "job", good)
        line.server.ask("XADD", stream, "*", "document", json.dumps({"id": "broken", "params": {"steps": "many"}}))
        entry: bytes = line.server.ask("XADD", stream, "*", "data", "no document")
        async with shop.worker("w1") as life:

            async def all_over() -> bool:
                return len(await line.producer.jobs("dead")) == 2 and len(await line.producer.jobs("done")) == 1

            await wait_until(all_over, timeout=30, story=life.tail)
            assert await life.stop() == 0, life.tail()
        ended = {one.id: one.code for one in await line.producer.jobs()}
        assert ended == {"theirs": None, "broken": "invalid_job", entry.decode(): "invalid_job"}
        assert (line.server.ask("XLEN", stream), shop.receiver.ended()) == (0, set(ended))
