"""What may happen to a job from outside, at each hop of its life: nothing is lost, nothing is done twice."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from tests.support.hops import Journey, at_every_hop, held_up, later
from tests.support.virtual import elapse, virtual
from tests.support.world import VISIBILITY, World
from worker.engines.base import Reach
from worker.live import Hop
from worker.supervisor import ExitCode

pytest_plugins = ("tests.support.hops_fixtures",)

RETURNED = "sd_worker_deliveries_returned_total"
BEFORE_ENGINE = (Hop.RECEIVED, Hop.ADMIT, Hop.MODELS, Hop.WAITING)
PAST_ENGINE = (Hop.IMAGES, Hop.UPLOAD, Hop.SETTLE)


@at_every_hop
@virtual
async def test_a_lost_lease_ends_the_job_silently_and_its_next_delivery_finishes_it(
    hop: Hop, journey: Callable[[World, Hop], Journey]
) -> None:
    """Nothing is settled without a lease; a success that stood already is not generated again."""
    world = World()
    async with world.running():
        await journey(world, hop).bring(held_up(world, hop, 10), lambda: world.link.lose("a"))
        await world.until(lambda: world.metrics.value(RETURNED, code="lease_lost") == 1)
        answered = world.receiver.ids("succeeded").count("a")
        assert await world.status_of("a") in ("leased", "waiting")
        await world.ended("a")
        assert (await world.ends("a"))[0] == (None, False)
        assert await world.status_of("a") == "done"
    assert answered == 0
    assert world.receiver.ids("succeeded").count("a") == 1
    assert world.engine.interrupted == (["a"] if hop is Hop.GENERATE else [])
    assert world.engine.generated.count("a") == (2 if hop in (Hop.IMAGES, Hop.UPLOAD) else 1)
    assert world.storage.results()["a"].status == "succeeded"


@at_every_hop
@virtual
async def test_an_owner_who_cancels_hears_of_it_unless_the_job_was_done(
    hop: Hop, journey: Callable[[World, Hop], Journey]
) -> None:
    """Cancelled at the queue: noticed at the next renewal, acknowledged as cancelled, no success stands."""
    world = World()
    async with world.running():
        await journey(world, hop).bring(held_up(world, hop, 10), later(world, lambda: world.queue.cancel("a")))
        await world.ended("a")
        state = await world.state("a")
    assert state.status == "done"
    assert state.result is not None
    if hop is Hop.SETTLE:
        assert (state.result.status, world.receiver.ids("cancelled")) == ("succeeded", [])
        return
    assert (state.code, state.result.status) == ("cancelled", "cancelled")
    assert world.receiver.ids("cancelled") == ["a"]
    assert "a" not in world.receiver.ids("succeeded") + world.receiver.ids("failed")
    assert "a" not in world.storage.results()
    assert world.engine.interrupted == (["a"] if hop is Hop.GENERATE else [])


@at_every_hop
@virtual
async def test_a_drain_gives_back_what_has_not_begun_and_finishes_the_rest(
    hop: Hop, journey: Callable[[World, Hop], Journey]
) -> None:
    """What waits goes back at once, uncharged and unheard of; what is in hand is finished within the deadline."""
    world = World(drain_s=40)
    asked_at: list[float] = []

    def stop() -> None:
        asked_at.append(asyncio.get_running_loop().time())
        world.supervisor.stop()

    async with world.running() as process:
        await journey(world, hop).bring(held_up(world, hop, 10), stop)
        await asyncio.wait({process})
        took_s = asyncio.get_running_loop().time() - asked_at[0]
        state, ends = await world.state("a"), await world.ends("a")
    assert process.result() is ExitCode.CLEAN
    if hop in BEFORE_ENGINE:
        assert (state.status, ends) == ("waiting", [("draining", False)])
        assert "a" not in world.engine.generated + world.receiver.ids("succeeded") + world.receiver.ids("failed")
    else:
        assert state.status == "done"
        assert world.receiver.ids("succeeded") == ["a"]
    assert took_s < (1 if hop in (*BEFORE_ENGINE[:-1],) else 20)


@at_every_hop
@virtual
async def test_a_queue_that_is_away_for_minutes_stops_effects_and_loses_nothing(
    hop: Hop, journey: Callable[[World, Hop], Journey]
) -> None:
    """Work goes on, effects wait for a renewal; when the queue is back the job ends as if nothing had been."""
    world = World()

    def cut() -> None:
        world.link.away = True

    async with world.running():
        await journey(world, hop).bring(held_up(world, hop, 30), cut)
        world.receiver.seconds = 0.0
        await world.until(lambda: world.link.away)
        await elapse(VISIBILITY.total_seconds() + 11)
        calls, taken = list(world.storage.calls), len(world.receiver.taken)
        await elapse(180)
        assert (world.storage.calls, len(world.receiver.taken)) == (calls, taken)
        assert world.status.ready().reasons in ((), ("queue_unavailable",))
        world.link.away = False
        await world.ended("a")
        assert await world.status_of("a") == "done"
        assert await world.ends("a") == [("succeeded", False)]
        await world.until(lambda: world.status.ready().ok)
    assert world.engine.generated.count("a") == 1
    assert world.receiver.ids("succeeded").count("a") == 1


@at_every_hop
@virtual
async def test_an_engine_that_goes_away_costs_the_job_nothing(
    hop: Hop, journey: Callable[[World, Hop], Journey]
) -> None:
    """Jobs before the engine wait for it, one on it is given back uncharged, those behind it are finished."""
    world = World()

    def go() -> None:
        world.engine.reach = Reach.PORT_CLOSED

    async with world.running():
        await journey(world, hop).bring(held_up(world, hop, 30), go)
        await world.until(lambda: world.engine.reach is Reach.PORT_CLOSED)
        await elapse(60)
        assert (await world.status_of("a") == "done") == (hop in PAST_ENGINE)
        assert (hop in PAST_ENGINE) == ("a" in world.engine.generated)
        assert world.status.ready().reasons == ("engine_port_closed",)
        world.engine.reach = Reach.READY
        await world.ended("a")
        ends = await world.ends("a")
    assert ends[-1] == ("succeeded", False)
    assert not any(charged for _, charged in ends)
    assert ("engine_lost", False) in ends or hop is not Hop.GENERATE
    assert world.engine.generated.count("a") == 1
    assert world.receiver.ids("succeeded").count("a") == 1
