"""A worker that is back tells the queue in Redis what its last run held: those jobs wait for no lease."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

from tests.support.clock import FakeClock
from tests.support.queues import taken
from tests.support.redis import RedisServer
from worker.queues.base import Delivery, Recalling
from worker.queues.policy import Policy
from worker.queues.redis import RedisPlace, RedisQueue
from worker.wire import HeldThen, PreviousRun

pytest_plugins = ("tests.support.redis_fixtures",)

BRIEF = timedelta(milliseconds=20)
OOM = "out_of_memory"


class Desk:
    """A stream under a clock, and a worker on it for each name."""

    def __init__(self, place: RedisPlace) -> None:
        self.place, self.clock = place, FakeClock()
        self.opened: dict[str, RedisQueue] = {}

    def of(self, worker: str) -> RedisQueue:
        if worker not in self.opened:
            policy = Policy(max_attempts=2)
            self.opened[worker] = RedisQueue(self.place, clock=self.clock, worker=worker, policy=policy, wait=BRIEF)
        return self.opened[worker]

    async def held(self, worker: str) -> Delivery:
        return await taken(self.of(worker))

    async def ends(self, job_id: str = "a") -> list[tuple[str, str | None, bool]]:
        state = await self.of("w1").state(job_id)
        assert state is not None
        return [(one.worker, one.code, one.charged) for one in state.attempts]

    async def status(self, job_id: str = "a") -> str:
        state = await self.of("w1").state(job_id)
        assert state is not None
        return state.status


@pytest.fixture(name="desk")
async def open_desk(redis_server: RedisServer) -> AsyncIterator[Desk]:
    desk = Desk(redis_server.place())
    await desk.of("w1").submit("a", b"{}")
    yield desk
    for queue in desk.opened.values():
        await queue.aclose()


def run_of(*held: Delivery, ended: str = "killed", hop: str = "generate") -> PreviousRun:
    return PreviousRun(ended=ended, jobs=tuple(HeldThen(id=one.id, token=one.receipt, hop=hop) for one in held))


async def test_what_a_killed_worker_held_is_handed_over_at_once(desk: Desk) -> None:
    """The old lease is over with it, though it had not run out; told twice, it is one."""
    assert isinstance(desk.of("w1"), Recalling)
    first = await desk.held("w1")
    await desk.of("w1").recall(run_of(first))
    assert await desk.ends() == [("w1", "node_restarted", False)]
    again = await desk.held("w1")
    await desk.of("w1").recall(run_of(first))
    assert (again.id, again.deliveries, again.redelivered, await desk.status()) == ("a", 2, True, "leased")


async def test_a_job_that_kills_workers_is_charged_from_the_second_on(desk: Desk) -> None:
    """It rests a little longer each time, and its last attempt is known as such."""
    for worker, rest_s in (("w1", 2), ("w2", 4)):
        held = await desk.held(worker)
        await desk.of(worker).recall(run_of(held, ended=OOM))
        assert await desk.status() == "delayed"
        desk.clock.advance(timedelta(seconds=rest_s - 1))
        assert await desk.status() == "delayed"
        desk.clock.advance(timedelta(seconds=1))
        assert await desk.status() == "waiting"
    assert await desk.ends() == [("w1", "node_killed_oom", False), ("w2", "node_killed_oom", True)]
    assert (await desk.held("w3")).last_attempt is True


async def test_a_lease_that_ran_out_before_gets_its_cause(desk: Desk) -> None:
    """Whoever has the job now keeps it."""
    late = await desk.held("w1")
    desk.clock.advance(timedelta(minutes=3))
    await desk.held("w2")
    assert await desk.ends() == [("w1", None, False)]
    await desk.of("w1").recall(run_of(late, ended=OOM))
    assert await desk.ends() == [("w1", "node_killed_oom", False)]
    assert await desk.status() == "leased"


async def test_a_cancelled_job_is_over(desk: Desk) -> None:
    """Nobody wants it any more."""
    held = await desk.held("w1")
    assert await desk.of("w1").cancel("a")
    await desk.of("w1").recall(run_of(held))
    assert await desk.status() == "done"


async def test_only_its_own_can_be_recalled(desk: Desk) -> None:
    """Not another worker's, not under another id or a receipt of another queue's."""
    held = await desk.held("w1")
    other = HeldThen(id="b", token=held.receipt, hop="generate")
    strange = (HeldThen(id="a", token="receipt"), HeldThen(id="a", token=held.receipt + 1), HeldThen(id="a"))
    await desk.of("w2").recall(run_of(held))
    await desk.of("w1").recall(PreviousRun(ended=OOM, jobs=(other, *strange)))
    assert (await desk.status(), await desk.ends()) == ("leased", [])
