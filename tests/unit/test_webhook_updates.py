"""What is told of a job while it runs."""

from __future__ import annotations

import asyncio
import hashlib
from datetime import datetime

from structlog.testing import capture_logs

from tests.support.receiver import Answer, Receiver
from tests.support.sending import (
    SECRET,
    WORKER,
    job_of,
    own,
    result_of,
    sending,
)
from tests.support.waiting import wait_until
from worker.clock import CorrectedClock
from worker.signature import decode_secrets
from worker.webhooks import Defaults


async def test_updates_tell_of_start_and_progress() -> None:
    """A running job's state goes out as started and progress events, the latter numbered."""
    async with Receiver(secret=SECRET) as receiver:
        job = job_of(webhook={"url": receiver.url(), "events": ["started", "progress"]}, metadata="m")
        defaults = Defaults(secrets=decode_secrets(SECRET))
        async with sending(defaults, worker=WORKER) as sender, sender.updates(job) as updates:
            updates.started("generate")
            await wait_until(lambda: receiver.taken)
            updates.progress(0.123456, "generate")
            await wait_until(lambda: len(receiver.taken) == 2)
    started, progress = receiver.documents
    assert (started["type"], progress["type"]) == ("job.started", "job.progress")
    assert progress["data"] == {
        "id": "job-1",
        "status": "running",
        "progress": 0.1235,
        "stage": "generate",
        "metadata": "m",
        "worker": {"id": "w1", "version": "1"},
    }
    event, digest, sequence = receiver.ids[1].split("_")
    assert (event, digest) == ("progress", hashlib.sha256(b"job-1").hexdigest()[:32])
    assert sequence.isdecimal()
    assert receiver.ids[0] == f"started_{digest}"


async def test_updates_wait_until_they_may_be_told() -> None:
    """Of what was said meanwhile the newest goes out, and nothing before."""
    allowed = asyncio.Event()
    asked = asyncio.Event()

    async def before_try() -> None:
        asked.set()
        await allowed.wait()

    async with Receiver() as receiver:
        job = job_of(webhook={"url": receiver.url(), "events": ["progress"]})
        async with sending() as sender, sender.updates(job, before_try=before_try) as updates:
            updates.progress(0.1)
            await asked.wait()
            updates.progress(0.2)
            assert receiver.taken == []
            allowed.set()
            await wait_until(lambda: receiver.taken)
    assert [one["data"]["progress"] for one in receiver.documents] == [0.2]


async def test_updates_are_at_most_one_a_second_and_the_newest() -> None:
    """What comes too soon waits for its turn and is replaced by what comes after it."""
    async with Receiver() as receiver:
        job = job_of(webhook={"url": receiver.url(), "events": ["progress", "succeeded"]})
        async with sending() as sender, sender.updates(job) as updates:
            updates.progress(0.1)
            await wait_until(lambda: receiver.taken)
            updates.progress(0.2)
            await sender.send("succeeded", job, result_of(job))
            updates.progress(0.9)
            await wait_until(lambda: len(receiver.taken) == 3)
    assert [document["data"].get("progress") for document in receiver.documents] == [0.1, None, 0.9]
    assert len(set(receiver.ids)) == 3


async def test_updates_that_fail_are_lost_and_the_next_still_goes() -> None:
    """Progress is never retried, and a failure of it disturbs nobody."""
    async with Receiver(Answer(500)) as receiver:
        job = job_of(webhook={"url": receiver.url(), "events": ["progress"]})
        with capture_logs() as logs:
            async with sending() as sender, sender.updates(job) as updates:
                updates.progress(0.1)
                await wait_until(lambda: receiver.requests)
                updates.progress(0.5)
                await wait_until(lambda: receiver.taken)
    assert [document["data"]["progress"] for document in receiver.documents] == [0.5]
    assert "webhook_update_lost" in [entry["event"] for entry in logs]


async def test_updates_nobody_wants_cost_nothing() -> None:
    """Without the events in its list a job's progress goes nowhere."""
    async with Receiver() as receiver, sending(own(receiver)) as sender, sender.updates(job_of()) as updates:
        updates.started()
        updates.progress(0.5)
    assert receiver.requests == []


async def test_a_bug_in_telling_updates_is_logged_and_spares_the_job() -> None:
    """What breaks beside the job neither ends it nor is lost."""

    class Broken:
        def now(self) -> datetime:
            raise ArithmeticError("bug")

    with capture_logs() as logs:
        job = job_of(webhook={"url": "http://[::1]/", "events": ["progress"]})
        async with sending(at=CorrectedClock(Broken())) as sender, sender.updates(job) as updates:
            updates.progress(0.1)
            await wait_until(lambda: "webhook-updates-job-1" not in {task.get_name() for task in asyncio.all_tasks()})
    (entry,) = [entry for entry in logs if entry["event"] == "webhook_updates_broke"]
    assert isinstance(entry["exc_info"], ArithmeticError)


async def test_updates_end_with_the_job() -> None:
    """A receiver that hangs on a progress event holds nobody up."""
    async with Receiver(Answer(hang=True)) as receiver, sending() as sender:
        job = job_of(webhook={"url": receiver.url(), "events": ["progress"]})
        async with sender.updates(job) as updates:
            updates.progress(0.1)
            await wait_until(lambda: receiver.requests)
        assert len(receiver.requests) == 1
