"""Tries of a webhook that outlive the lease: none is made before a renewal has succeeded."""

from __future__ import annotations

import asyncio

from tests.support.virtual import elapse, virtual
from tests.support.world import VISIBILITY, World
from worker.errors import OutputEmpty, WebhookFailed, WorkerError
from worker.queues.policy import Policy
from worker.webhooks import Message


@virtual
async def test_no_failure_is_told_after_another_worker_succeeded() -> None:
    """The receiver is away while a worker that lost sight of the queue tells of its failure; another does the job."""
    policy = Policy(visibility=VISIBILITY, max_attempts=1)
    one = World(policy=policy)
    two = World(worker="w2", queue=one.queue.beside("w2"), storage=one.storage)
    one.engine.trouble("a", OutputEmpty(), OutputEmpty())
    one.receiver.answer = lambda message: WebhookFailed("away")
    async with one.running():
        await one.submit("a")
        await one.until(lambda: one.receiver.tries.total() > 0)
        one.link.away = True
        async with two.running():
            await two.ended("a")
            one.receiver.up_again()
            await elapse(60)
            one.link.away = False
            await one.until(lambda: len(one.live) == 0)
    assert two.receiver.ids("succeeded") == ["a"]
    assert one.receiver.ids("failed") == []
    assert await two.status_of("a") == "done"


@virtual
async def test_a_webhook_goes_on_when_the_queue_is_back() -> None:
    """Tries stop when the lease is doubtful and go on behind the next renewal, within the same budget."""
    world = World()
    loop = asyncio.get_running_loop()
    tries: list[float] = []

    def away(message: Message) -> WorkerError:
        tries.append(loop.time())
        return WebhookFailed("away")

    world.receiver.answer = away
    async with world.running():
        await world.submit("a")
        await world.until(lambda: bool(tries))
        world.link.away = True
        doubtful_from = loop.time() + VISIBILITY.total_seconds()
        await elapse(45)
        assert tries[-1] < doubtful_from
        world.receiver.up_again()
        world.link.away = False
        await world.ended("a")
    assert world.receiver.ids("succeeded") == ["a"]
    assert await world.ends("a") == [("succeeded", False)]
