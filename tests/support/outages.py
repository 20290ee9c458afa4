"""What every queue is put through, hop by hop, and what has to be so afterwards."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from tests.support.fakes import FakeStorage
from tests.support.hops import Journey, held_up
from tests.support.outposts import FENCING, LEASE_S, Outpost
from tests.support.virtual import elapse
from tests.support.world import World
from worker.live import Hop

Brought = Callable[[World, Hop], Journey]
HELD_UP_S = LEASE_S * 1.5
MINUTES_S = 300.0


@dataclass(frozen=True)
class Seen:
    """All that a worker did which others can see, so far; what its store was asked that changes something."""

    deeds: tuple[str, ...]
    tries: dict[str, int]

    @classmethod
    def of(cls, world: World) -> Seen:
        return cls(tuple(call for call in world.storage.calls if call.startswith("put")), dict(world.receiver.tries))


def successes(*worlds: World) -> list[str]:
    """The ids of the webhooks that told of a success of job ``a``, as often as one was taken."""
    return [
        name
        for world in worlds
        for name, body in world.receiver.taken
        if body["type"] == "job.succeeded" and body["data"]["id"] == "a"
    ]


def others(*worlds: World) -> list[str]:
    """The other ends that were told of job ``a``."""
    return [
        body["type"]
        for world in worlds
        for _, body in world.receiver.taken
        if body["data"]["id"] == "a" and body["type"] in ("job.failed", "job.cancelled")
    ]


async def _past_its_lease(world: World, hop: Hop) -> Seen:
    """Let the lease of a job end that was just cut off, and all that was begun under it; what was seen by then."""
    await world.until(lambda: bool(world.live), 60)
    await elapse(LEASE_S)
    seen = Seen.of(world)
    await elapse(HELD_UP_S)
    return replace(seen, deeds=(*seen.deeds, "put_artifact")) if hop is Hop.UPLOAD else seen


async def cut_off_while_another_does_it(post: Outpost, hop: Hop, brought: Brought) -> None:
    """The lease is lost at a hop: by the time that this worker is back another has done the job.

    From the end of its lease on it publishes, tells and settles nothing, whatever had been done by then.
    """
    store, theirs = FakeStorage(), FakeStorage()
    one, way = await post.worker("w1", storage=store)
    two, _ = await post.worker("w2", storage=theirs)
    theirs.objects = store.objects
    async with one.running():
        await brought(one, hop).bring(held_up(one, hop, HELD_UP_S), way.cut)
        seen = await _past_its_lease(one, hop)
        async with two.running():
            await post.over("a")
            standing = dict(store.objects)
            way.mend()
            await one.until(lambda: not one.live, 600)
            await elapse(LEASE_S)
            assert Seen.of(one) == seen
        assert store.objects == standing
    assert store.results()["a"].status == "succeeded"
    assert len(set(successes(one, two))) == 1
    assert others(one, two) == []
    assert await post.status_of("a") in ("done", "succeeded")


async def away_for_minutes(post: Outpost, hop: Hop, brought: Brought) -> None:
    """Nobody answers for minutes and nobody else is there: the job ends once all the same.

    It is generated once where the queue left it to its holder, or was back before its end was to be told.
    """
    world, way = await post.worker()
    async with world.running():
        await brought(world, hop).bring(held_up(world, hop, HELD_UP_S), way.cut)
        world.receiver.seconds = 0.0
        seen = await _past_its_lease(world, hop)
        await elapse(MINUTES_S)
        assert Seen.of(world) == seen
        way.mend()
        await post.over("a")
        await world.until(lambda: world.status.ready().ok, 600)
        await world.until(lambda: not world.live, 600)
    assert world.storage.results()["a"].status == "succeeded"
    assert len(set(successes(world))) == 1
    assert others(world) == []
    if post.kind in FENCING:
        assert world.engine.generated.count("a") == 1


async def away_for_a_moment(post: Outpost, hop: Hop, brought: Brought) -> None:
    """For less than a lease: every queue leaves the job to its holder, which does it as if nothing had been."""
    world, way = await post.worker()
    async with world.running():
        await brought(world, hop).bring(held_up(world, hop, LEASE_S / 4), way.cut)
        await world.until(lambda: bool(world.live), 60)
        await elapse(LEASE_S / 2)
        way.mend()
        await post.over("a")
        await world.until(lambda: not world.live, 600)
    assert world.engine.generated.count("a") == 1
    assert len(successes(world)) == 1
    assert others(world) == []


def loop_time() -> float:
    return asyncio.get_running_loop().time()


Ordeal = Callable[[Outpost, Hop, Brought], Any]
ORDEALS: dict[str, Ordeal] = {
    "lost": cut_off_while_another_does_it,
    "minutes": away_for_minutes,
    "moment": away_for_a_moment,
}
