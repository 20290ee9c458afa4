"""Known pitfalls of Fooocus-API that show only in what is sent to it, and in what waits in it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.support.fooocus import ALL, bench, image, small
from tests.support.pictures import picture
from tests.support.waiting import wait_until
from worker.simulators.fooocus import Knobs

every = pytest.mark.parametrize("version", ALL)
PORTABLE: dict[str, Any] = {"prompt": "a cat", "steps": 3}


@every
@pytest.mark.parametrize(
    "document",
    [
        small(async_process=False),
        {"params": PORTABLE},
        {"params": {**PORTABLE, "image": image(picture(1024, 1024)), "width": 1024, "height": 1024}},
    ],
)
async def test_no_request_waits_within_the_server(version: str, document: dict[str, Any]) -> None:
    """Each one that waits for its picture holds a thread of few, and its own webhook would hold the only worker."""
    async with bench(version) as b:
        request = (await b.admit(document)).request
        assert request["async_process"] is True
        assert not request.get("webhook_url")


@every
async def test_only_one_job_is_in_its_queue(version: str) -> None:
    """A job that waits there can be neither cancelled nor moved to another node: jobs wait here."""
    async with bench(version, Knobs(step_seconds=0.01)) as b:
        works = [await b.admit(small(f"cat {n}", steps=10)) for n in range(3)]
        running = [asyncio.create_task(b.run(work)) for work in works]
        longest = 0

        def over() -> bool:
            nonlocal longest
            longest = max(longest, len(b.sim.machine.queue))
            return all(task.done() for task in running)

        await wait_until(over)
        assert all(len(task.result().images) == 1 for task in running)
        assert longest == 1
