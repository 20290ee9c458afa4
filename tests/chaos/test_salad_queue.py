"""A real worker on the platform's job queue when that goes away, and when it leaves itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.metadata import token
from tests.support.salad_at_work import TXT2IMG, at_work, body, size_of, until_over

pytestmark = pytest.mark.chaos


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
