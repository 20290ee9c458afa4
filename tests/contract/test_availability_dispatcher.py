"""The worker's driver and our own dispatcher: each takes the other at its word."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from tests.support.dispatching import NODE, USER, Talk, dispatching
from tests.support.queues import result_of, taken
from tests.support.scheduling import a_node
from tests.support.waiting import wait_until
from worker.clock import SystemClock
from worker.errors import IdConflict, InvalidJob, JobCancelled, LeaseLost
from worker.queues.availability import AvailabilityProducer, AvailabilityQueue
from worker.wire import Download

BODY = b'{"params": {"prompt": "a cat"}, "checkpoint": "a.safetensors", "x-mine": 1}'
NOW = timedelta(0)


@dataclass
class Pair:
    talk: Talk
    queue: AvailabilityQueue
    producer: AvailabilityProducer

    async def status(self, job_id: str) -> str:
        state = await self.producer.state(job_id)
        assert state is not None
        return state.status


@asynccontextmanager
async def paired(folder: Path, *, wait: timedelta = timedelta(seconds=1)) -> AsyncIterator[Pair]:
    async with dispatching(folder) as talk:
        clock = SystemClock()
        queue = AvailabilityQueue(talk.url, a_node(), clock, token=NODE, wait=wait)
        producer = AvailabilityProducer(talk.url, clock, token=USER)
        try:
            yield Pair(talk, queue, producer)
        finally:
            await queue.aclose()
            await producer.aclose()


async def test_a_job_goes_all_the_way(tmp_path: Path) -> None:
    """Submitted once, leased, kept, given back, done: both sides count alike."""
    async with paired(tmp_path) as pair:
        queue, producer = pair.queue, pair.producer
        assert "leases jobs" in await queue.check()
        assert await producer.submit("a", BODY)
        assert not await producer.submit("a", BODY)
        with pytest.raises(IdConflict):
            await producer.submit("a", b'{"params": {"prompt": "a dog"}}')
        with pytest.raises(InvalidJob, match=r"params\.widht"):
            await producer.submit("b", b'{"params": {"prompt": "a dog", "widht": 1}}')
        first = await taken(queue)
        assert (first.deliveries, first.redelivered, first.last_attempt, first.last_delivery) == (
            1,
            False,
            False,
            False,
        )
        assert b'"x-mine":1' in first.body
        assert await queue.extend(first) is None
        await queue.nack(first, NOW, "internal", charged=True)
        second = await taken(queue)
        assert second.receipt > first.receipt
        assert [(one.worker, one.code, one.charged) for one in second.attempts] == [("w1", "internal", True)]
        assert (second.deliveries, second.redelivered) == (2, True)
        result = result_of("a")
        await queue.ack(second, result)
        state = await producer.state("a")
        assert state is not None
        assert (state.status, state.code, state.result) == ("done", None, result)
        assert [job.id for job in await producer.jobs("done")] == ["a"]


async def test_the_catalogues_word_goes_beside_the_job(tmp_path: Path) -> None:
    """Where its model is to be had comes with the delivery, at each hand-over; the job stays what was submitted."""
    entry = {"kind": "checkpoint", "name": "a.safetensors", "url": "http://[::1]:9/a", "sha256": "ab" * 32, "size": 5}
    async with paired(tmp_path) as pair:
        put = await pair.talk.client.put("/models", json=[entry])
        assert put.status_code == 204
        await pair.producer.submit("a", BODY)
        for _ in range(2):
            delivery = await taken(pair.queue)
            assert delivery.sources == (Download.model_validate(entry),)
            assert json.loads(delivery.body) == {"id": "a", **json.loads(BODY)}
            await pair.queue.nack(delivery, NOW, "draining", charged=False)


async def test_a_dead_letter_runs_again(tmp_path: Path) -> None:
    """With fresh counts, and as a redelivery; a success that becomes one keeps its result."""
    async with paired(tmp_path) as pair:
        queue, producer = pair.queue, pair.producer
        await producer.submit("a", BODY)
        await queue.reject(await taken(queue), result_of("a"))
        [dead] = await producer.jobs("dead")
        assert (dead.id, dead.code) == ("a", "webhook_undelivered")
        assert await producer.requeue("a")
        assert not await producer.requeue("a")
        delivery = await taken(queue)
        assert (delivery.deliveries, delivery.attempts, delivery.redelivered) == (1, (), True)


async def test_a_cancelled_job_is_told(tmp_path: Path) -> None:
    """At each extend, until its holder has ended it; one that waits is gone at once."""
    async with paired(tmp_path) as pair:
        queue, producer = pair.queue, pair.producer
        await producer.submit("a", BODY)
        delivery = await taken(queue)
        await producer.submit("b", BODY)
        assert await producer.cancel("a")
        assert await producer.cancel("b")
        assert not await producer.cancel("unknown")
        for _ in range(2):
            with pytest.raises(JobCancelled):
                await queue.extend(delivery)
        await queue.ack(delivery, result_of("a", "cancelled"))
        with pytest.raises(LeaseLost):
            await queue.extend(delivery)
        assert [await pair.status(job_id) for job_id in "ab"] == ["done", "done"]


async def test_receives_cancelled_at_any_instant_leave_nothing_leased(tmp_path: Path) -> None:
    """What was leased meanwhile waits again, and counts for nothing."""
    rng, loop = random.Random(7), asyncio.get_running_loop()
    async with paired(tmp_path) as pair:
        for job_id in "abc":
            await pair.producer.submit(job_id, b'{"params": {"prompt": "a cat"}}')
        for _ in range(40):
            receiving = asyncio.create_task(pair.queue.receive(), name="receiving")
            loop.call_later(rng.uniform(0, 0.02), receiving.cancel)
            [outcome] = await asyncio.gather(receiving, return_exceptions=True)
            if not isinstance(outcome, BaseException) and outcome.delivery is not None:
                await pair.queue.nack(outcome.delivery, NOW, "draining", charged=False)
        await pair.queue.settled()
        assert [await pair.status(job_id) for job_id in "abc"] == ["waiting"] * 3
        held = [await taken(pair.queue) for _ in range(3)]
        assert [delivery.deliveries for delivery in held] == [1] * 3


async def test_closing_ends_the_long_poll(tmp_path: Path) -> None:
    """The dispatcher answers at once that there is nothing, and leases nothing to a worker that is gone."""
    async with paired(tmp_path, wait=timedelta(seconds=60)) as pair:
        await pair.queue.check()
        receiving = asyncio.create_task(pair.queue.receive(), name="receiving")
        await wait_until(lambda: pair.talk.view.desk.polls > 0)
        receiving.cancel()
        await asyncio.wait({receiving})
        with capture_logs() as logs:
            await pair.queue.aclose()
        assert "queue_cut_off" not in {line["event"] for line in logs}
        assert pair.talk.view.desk.polls == 0
        await pair.producer.submit("a", BODY)
        assert await pair.status("a") == "waiting"
