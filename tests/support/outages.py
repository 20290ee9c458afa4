"""What every queue is put through, hop by hop, and what has to be so afterwards."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import timedelta

from structlog.testing import capture_logs

from tests.support.fakes import FakeStorage, document
from tests.support.hops import Journey, held_up
from tests.support.outposts import FENCING, LEASE_S, Outpost
from tests.support.virtual import elapse
from tests.support.world import World
from worker.live import Hop
from worker.status import Phase

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


async def _past_its_lease(world: World, hop: Hop) -> tuple[Seen, ...]:
    """Let the lease of a job end that was just cut off, and all that was begun under it; what may be seen from then on.

    An upload that was on its way when the lease ended may still arrive, unless its worker knows by itself that the
    lease is lost.
    """
    await world.until(lambda: bool(world.live), 60)
    await elapse(LEASE_S)
    seen = Seen.of(world)
    await elapse(HELD_UP_S)
    return (seen, replace(seen, deeds=(*seen.deeds, "put_artifact"))) if hop is Hop.UPLOAD else (seen,)


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
            assert Seen.of(one) in seen
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
        assert Seen.of(world) in seen
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


async def away_while_idle(post: Outpost) -> None:
    """Not ready with the reason, in a handful of lines; ready again, and at work, soon after the queue is back."""
    world, way = await post.worker()
    async with world.running():
        await world.until(lambda: world.status.ready().ok, 60)
        with capture_logs() as lines:
            way.cut()
            await world.until(lambda: world.status.phase is Phase.PAUSED, 120)
            assert world.status.ready().reasons == ("queue_unavailable",)
            await elapse(2 * MINUTES_S)
        told = Counter(line["event"] for line in lines if line["log_level"] in ("warning", "error"))
        assert told["dependency_paused"] == 1
        assert told["queue_unavailable"] == 2
        assert told.total() < 12
        way.mend()
        await world.until(lambda: world.status.ready().ok, 150)
        await world.submit("a")
        await post.over("a")
        await world.until(lambda: not world.live, 60)
    assert len(successes(world)) == 1


async def refused_and_let_in(post: Outpost) -> None:
    """Credentials that are good no more pause it at the first; the job in hand ends once they are good again."""
    assert post.refuse is not None
    world, _ = await post.worker()
    world.engine.delays[Hop.GENERATE, "a"] = HELD_UP_S
    async with world.running():
        await world.submit("a")
        await world.at(Hop.GENERATE, "a")
        post.refuse()
        seen = await _past_its_lease(world, Hop.GENERATE)
        if world.link.capacity is None:
            assert world.dependencies.paused == {"queue": "auth_failed"}
        assert Seen.of(world) in seen
        post.accept()
        await post.over("a")
        await world.until(lambda: world.status.ready().ok, 150)
        await world.until(lambda: not world.live, 60)
    assert len(set(successes(world))) == 1
    assert others(world) == []


async def delivered_again_and_late(post: Outpost) -> None:
    """The same document twice, and once more after others and its end: one picture, one result, one success told."""
    world, _ = await post.worker()
    async with world.running():
        await world.submit("a")
        await post.again(document("a"))
        await world.submit("b")
        await post.over("a", "b")
        await world.until(lambda: "b" in world.storage.results(), 60)
        standing = dict(world.storage.objects)
        await post.again(document("a"))
        await elapse(LEASE_S * 3)
        assert not world.live
    assert world.engine.generated.count("a") == 1
    assert world.storage.objects == standing
    assert len(set(successes(world))) == 1
    assert others(world) == []


async def an_hour_off(post: Outpost) -> None:
    """Of two workers one has a clock that is an hour ahead, then one that is an hour behind: each job is done once."""
    right, _ = await post.worker("w1")
    wrong, way = await post.worker("w2", storage=right.storage)
    jobs = [f"job-{number}" for number in range(8)]
    async with right.running(), wrong.running():
        for hours, some in ((1, jobs[:4]), (-1, jobs[4:])):
            wrong.clock.offset = timedelta(hours=hours)
            way.set_clock(timedelta(hours=hours))
            await right.submit(*some)
            await post.over(*some)
        await right.until(lambda: not right.live and not wrong.live, 60)
    told = [name for world in (right, wrong) for name, _ in world.receiver.taken]
    assert len(told) == len(set(told)) == len(jobs)
    assert sorted(right.engine.generated + wrong.engine.generated) == jobs
    assert sorted(right.storage.results()) == jobs


ONCE: dict[str, Callable[[Outpost], Awaitable[None]]] = {
    "idle": away_while_idle,
    "refused": refused_and_let_in,
    "again": delivered_again_and_late,
    "skewed": an_hour_off,
}
ORDEALS: dict[str, Callable[[Outpost, Hop, Brought], Awaitable[None]]] = {
    "lost": cut_off_while_another_does_it,
    "minutes": away_for_minutes,
    "moment": away_for_a_moment,
}
