"""A worker on the platform's job queue that stands still while another does its job."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from tests.process.test_salad_queue import at_work, body
from tests.support.lines_base import VISIBILITY_S
from tests.support.waiting import wait_until

pytestmark = pytest.mark.chaos


async def test_a_frozen_worker_publishes_and_settles_nothing(tmp_path: Path) -> None:
    """Frozen past its visibility while another does its job: thawed, it hears that the job is not its own any more."""
    async with at_work(tmp_path, WORKER_STORAGE="directory") as (around, life, queue):
        await around.turn(step_seconds=0.2)
        queue.submit("a", {"params": body("a cat", steps=10)})
        around.wanted["a cat"] = None
        await life.sampling()
        os.kill(life.number, signal.SIGSTOP)
        queue.hand_to("a", "another")
        frozen_at, loop = asyncio.get_running_loop().time(), asyncio.get_running_loop()
        await wait_until(lambda: loop.time() > frozen_at + VISIBILITY_S * 1.5, timeout=60)
        os.kill(life.number, signal.SIGCONT)
        await life.until(lambda: life.events("job_abandoned"))
        assert [call for call in queue.calls if call[0] == "CompleteJob"] == []
        assert (queue.jobs["a"].worker, queue.jobs["a"].status) == ("another", "running")
        assert around.receiver.ended() == set()
        assert list(around.outputs.rglob("*.png")) == []
        queue.submit("b", {"params": body("a dog")})
        await life.until(lambda: queue.jobs["b"].status == "succeeded")
