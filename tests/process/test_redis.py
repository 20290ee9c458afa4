"""Real workers on a real Redis to which other programs add."""

from __future__ import annotations

import json
from pathlib import Path

from tests.support.lines import Stream
from tests.support.waiting import wait_until
from tests.support.workshop import workshop


async def test_document_of_another_program(tmp_path: Path) -> None:
    """What any program puts into the stream is done and told of, good or bad."""
    async with workshop(tmp_path, queue="redis") as shop:
        line = shop.line
        assert isinstance(line, Stream)
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
