"""The last delivery of a job whose success may stand: no end that says otherwise is told."""

from __future__ import annotations

from datetime import timedelta

from tests.support.virtual import virtual
from tests.support.world import World
from worker.errors import UploadFailed, WebhookFailed
from worker.queues.policy import Policy


@virtual
async def test_a_success_that_cannot_be_looked_up_is_never_told_to_have_failed() -> None:
    """Nodes were lost after the mark, and the store is away at the last delivery: it goes back until the store says."""
    world = World(policy=Policy(visibility=timedelta(seconds=20), max_deliveries=2))
    await world.submit("a")
    async with world.running():
        world.receiver.answer = lambda message: WebhookFailed("down")
        await world.until(lambda: "a" in world.storage.results())
        world.link.lose("a")
        await world.until(lambda: not len(world.live))
        world.storage.down = UploadFailed("away")
        await world.until(lambda: world.storage.calls.count("find_mark") >= 2)
        world.storage.down = None
        world.receiver.up_again()
        await world.ended("a")
    assert await world.status_of("a") == "done"
    assert world.receiver.ids("failed") == []
    assert world.receiver.ids("succeeded") == ["a"]
    assert world.engine.generated == ["a"]
