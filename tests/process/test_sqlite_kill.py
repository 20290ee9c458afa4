"""The queue's file between processes that are killed."""

from __future__ import annotations

import asyncio
import random
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import pytest

from tests.support.clock import FakeClock
from tests.support.queues import result_of, taken
from worker.clock import SystemClock
from worker.queues.policy import Policy
from worker.queues.sqlite import SqliteQueue

LATER = Policy().visibility * 2
ROOT = Path(__file__).parents[2]


@asynccontextmanager
async def user(path: Path, worker: str, mode: str) -> AsyncIterator[Process]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.process.queue_user", str(path), worker, mode, stdout=PIPE, cwd=ROOT
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


@asynccontextmanager
async def queue_on(path: Path, *, later: bool = False) -> AsyncIterator[SqliteQueue]:
    """A queue in this process; ``later`` when every lease that is held now has run out."""
    clock = FakeClock(SystemClock().now() + (LATER if later else timedelta(0)))
    queue = SqliteQueue(path, clock, worker="here", wait=timedelta(milliseconds=20))
    try:
        yield queue
    finally:
        await queue.aclose()


async def line_of(process: Process) -> str:
    assert process.stdout is not None
    return (await process.stdout.readline()).decode().strip()


async def lines_until_killed(process: Process, after: int, rng: random.Random) -> list[str]:
    """Kill it a random moment after so many lines; the whole lines that it printed."""
    assert process.stdout is not None
    lines = [await line_of(process) for _ in range(after)]
    asyncio.get_running_loop().call_later(rng.uniform(0, 0.02), process.kill)
    rest = (await process.stdout.read()).decode()
    return lines + rest[: rest.rfind("\n") + 1].splitlines()


async def test_killed_holder(tmp_path: Path) -> None:
    """A job whose holder was killed is handed over again after its visibility, its end recorded without a code."""
    path = tmp_path / "queue.db"
    async with queue_on(path) as queue:
        await queue.submit("a", b"{}")
        async with user(path, "victim", "hold") as process:
            assert await line_of(process) == "a"
            process.kill()
            await process.wait()
        assert (await queue.receive()).delivery is None
    async with queue_on(path, later=True) as queue:
        delivery = await taken(queue)
        assert [(one.worker, one.code, one.charged) for one in delivery.attempts] == [("victim", None, False)]
        assert (delivery.deliveries, delivery.redelivered) == (2, True)


async def test_killed_producer(tmp_path: Path) -> None:
    """A job whose submission was confirmed is there after the producer was killed."""
    path = tmp_path / "queue.db"
    async with user(path, "producer", "submit") as process:
        confirmed = await lines_until_killed(process, 20, random.Random(1))
    async with queue_on(path) as queue:
        found = {(await taken(queue)).id for _ in confirmed}
    assert found == set(confirmed)


@pytest.mark.parametrize("seed", range(4))
async def test_killed_at_random(tmp_path: Path, seed: int) -> None:
    """Killed at any instant: nothing confirmed is lost, nothing done runs again, every other job still does."""
    path = tmp_path / "queue.db"
    async with user(path, "victim", "churn") as process:
        lines = await lines_until_killed(process, 30, random.Random(seed))
    submitted = {line.split()[1] for line in lines if line.startswith("submitted")}
    done = {line.split()[1] for line in lines if line.startswith("done")}
    async with queue_on(path, later=True) as queue:
        before = {state.id for state in await queue.jobs("done", 100_000)}
        again = set()
        while (delivery := (await queue.receive()).delivery) is not None:
            again.add(delivery.id)
            await queue.ack(delivery, result_of(delivery.id))
        after = {state.id for state in await queue.jobs("done", 100_000)}
    assert done <= before
    assert before.isdisjoint(again)
    assert submitted <= after
    assert after == before | again


async def test_two_processes(tmp_path: Path) -> None:
    """Two processes that take jobs from one file at the same time get different ones, and together all."""
    path = tmp_path / "queue.db"
    ids = {f"j{number}" for number in range(200)}
    async with queue_on(path) as queue:
        for job_id in ids:
            await queue.submit(job_id, b"{}")
    async with user(path, "w1", "drain") as first, user(path, "w2", "drain") as second:
        outputs = [one.decode().split() for one, _ in await asyncio.gather(first.communicate(), second.communicate())]
    assert sorted(outputs[0] + outputs[1]) == sorted(ids)
    async with queue_on(path) as queue:
        assert {state.deliveries for state in await queue.jobs("done", 1000)} == {1}


async def test_many_open_a_new_file(tmp_path: Path) -> None:
    """Processes that make the same new file at once all find it usable."""
    path = tmp_path / "queue.db"
    async with (
        user(path, "w1", "drain") as first,
        user(path, "w2", "drain") as second,
        user(path, "w3", "drain") as third,
    ):
        assert [await one.wait() for one in (first, second, third)] == [0, 0, 0]
