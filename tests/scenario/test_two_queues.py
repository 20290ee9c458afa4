"""Jobs of a queue and of HTTP callers beside each other: one engine, shared slots, and neither starves the other."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from tests.support.virtual import elapse, virtual
from tests.support.world import World
from worker.desk import Rules
from worker.desk.tickets import Ticket
from worker.job import Limits
from worker.live import Hop
from worker.status import Phase

RULES = Rules(Limits(), 100, timedelta(hours=1), None, cancel_on_disconnect=True)


async def taken(world: World, count: int) -> list[Ticket]:
    assert world.desk is not None
    document = {"params": {"prompt": "x", "width": 64, "height": 64}}
    return [await world.desk.take({**document, "id": f"h{n}"}, waits=True) for n in range(count)]


@virtual
async def test_both_are_served_and_the_window_holds_for_them_together() -> None:
    """A backlog on each side: both end, turn and turn about, and no more is held than the window and one."""
    world = World(http=RULES, window=2)
    world.engine.seconds = 10
    most = 0
    async with world.running():
        await world.status.reached(Phase.READY)
        await world.submit(*(f"q{n}" for n in range(6)))
        tickets = await taken(world, 6)
        waiting = asyncio.gather(*(ticket.over() for ticket in tickets))
        while not waiting.done():
            most = max(most, sum(not job.hop.is_past_engine for job in world.live))
            await world.live.changed()
        ended = await waiting
        assert {one.result.status for one in ended} == {"succeeded"}
        assert [one.result.client_id for one in ended] == [f"h{n}" for n in range(6)]
        while any(state.status != "done" for state in await world.queue.jobs()):
            await world.live.changed()
    assert most <= 3
    order = ["queue" if name.startswith("q") else "http" for name in world.engine.generated]
    assert {"queue", "http"} == set(order[:4])


@virtual
async def test_a_queue_that_is_away_keeps_nobody_from_the_other() -> None:
    """What fails to be received from backs off by itself."""
    world = World(http=RULES)
    async with world.running():
        await world.status.reached(Phase.READY)
        world.link.away = True
        (ticket,) = await taken(world, 1)
        assert (await ticket.over()).result.status == "succeeded"


@virtual
async def test_a_drain_gives_back_the_queues_jobs_and_tells_the_callers() -> None:
    """Each in its own way, and nothing is left held."""
    world = World(http=RULES, window=4, drain_s=1)
    world.engine.seconds = 100
    async with world.running():
        await world.status.reached(Phase.READY)
        tickets = await taken(world, 3)
        await world.submit("q")
        while not any(job.hop is Hop.GENERATE for job in world.live):
            await world.live.changed()
        await elapse(1)
        world.supervisor.stop()
        ended = [await ticket.over() for ticket in tickets]
    assert [one.result.error.code for one in ended if one.result.error] == ["draining"] * 3
    (state,) = await world.queue.jobs()
    assert state.status in ("waiting", "delayed")
