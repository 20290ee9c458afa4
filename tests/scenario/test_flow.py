"""How work flows: the engine never waits for the network, and nothing is held or kept without bound."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from tests.support.fakes import SIDE, FakeEngine, FakeStorage
from tests.support.virtual import START, elapse, virtual
from tests.support.world import World
from worker.engines.base import Output, Work
from worker.errors import EngineCrashed, OutputEmpty
from worker.intake import PAST_ENGINE_MOST
from worker.live import Hop
from worker.node import Orders
from worker.queues.base import Delivery, Received
from worker.status import Phase

JOBS = [f"job-{n}" for n in range(50)]


def slow_network() -> World:
    world = World(engine=FakeEngine(seconds=0.3), storage=FakeStorage())
    world.storage.seconds = 0.4
    world.receiver.seconds = 0.3
    return world


async def duty(world: World, submit: str) -> float:
    """The share of the time in which the engine generates, while all jobs are done."""
    async with world.running():
        await world.until(lambda: world.status.phase is Phase.READY)
        began, busy = asyncio.get_running_loop().time(), world.engine.busy_s
        if submit == "all at once":
            await world.submit(*JOBS)
            await world.until(lambda: len(world.engine.generated) == len(JOBS))
        else:
            for job in JOBS:
                await world.submit(job)
                await world.ended(job)
        share = (world.engine.busy_s - busy) / (asyncio.get_running_loop().time() - began)
        await world.ended(*JOBS)
    assert world.engine.most_running == 1
    return share


@virtual
async def test_the_engine_works_while_others_are_stored_and_told() -> None:
    """Short jobs with a slow store and receiver: nearly full duty, where one job after another reaches a third."""
    assert await duty(slow_network(), "all at once") > 0.97
    assert await duty(slow_network(), "one by one") < 0.35


@virtual
async def test_a_node_with_slow_generations_holds_nothing_hostage() -> None:
    """While a long generation runs its delivery is the only one held, until shortly before its end."""
    world = World(engine=FakeEngine(seconds=60))
    held: list[int] = []
    async with world.running():
        await world.submit("first")
        await world.ended("first")
        await world.submit("a", "b", "c")
        await world.at(Hop.GENERATE, "a")
        for _ in range(55):
            await elapse(1)
            held.append(len(world.live))
        await world.at(Hop.WAITING, "b")
        assert world.engine.running == 1
        await world.at(Hop.GENERATE, "b")
        world.engine.seconds = 1
        await world.ended("a", "b", "c")
    assert set(held) == {1}


@virtual
async def test_the_window_bounds_what_waits_for_the_engine() -> None:
    """With preparation slower than generation several are prepared at once, but never more than the window."""
    world = World(engine=FakeEngine(seconds=1), window=3)
    most = 0
    jobs = [f"job-{n}" for n in range(20)]
    for job in jobs:
        world.engine.delays[Hop.ADMIT, job] = 10.0
    async with world.running():
        await world.submit(*jobs)
        while len(world.engine.generated) < len(jobs):
            await world.live.changed()
            most = max(most, sum(not job.hop.is_past_engine for job in world.live))
        await world.ended(*jobs)
    assert most == 3


@virtual
async def test_the_turn_goes_to_whoever_is_ready_first() -> None:
    """A delivery whose preparation takes long is overtaken."""
    world = World()
    world.engine.delays[Hop.ADMIT, "slow"] = 20.0
    async with world.running():
        await world.submit("slow", "quick")
        await world.ended("slow", "quick")
    assert world.engine.generated == ["quick", "slow"]


@virtual
async def test_at_most_so_many_deliveries_are_on_their_way_from_the_engine() -> None:
    """Receivers that hang do not make a worker take the whole queue."""
    world = World(engine=FakeEngine(seconds=0.1))
    world.receiver.seconds = 40
    jobs = [f"job-{n}" for n in range(60)]
    past: list[int] = []
    async with world.running():
        await world.submit(*jobs)
        while len(world.receiver.taken) < 20:
            await world.live.changed()
            past.append(sum(job.hop.is_past_engine for job in world.live))
        assert len(world.engine.generated) <= PAST_ENGINE_MOST + world.window + 20
        await world.ended(*jobs)
    assert PAST_ENGINE_MOST <= max(past) <= PAST_ENGINE_MOST + world.window


@virtual
async def test_finished_images_in_memory_are_bounded() -> None:
    """A turn is taken only with room for its images: a slow store stops the engine, not the memory."""
    each = SIDE * SIDE * 4
    world = World(engine=FakeEngine(seconds=1), unpublished=2 * each)
    world.storage.seconds = 100
    taken: list[int] = []
    async with world.running():
        await world.submit("a", "b", "c", "d")
        while len(world.engine.generated) < 4:
            await world.live.changed()
            taken.append(world.tools.budget.taken)
        await world.ended("a", "b", "c", "d")
    assert max(taken) == 2 * each
    assert world.tools.budget.taken == 0


@virtual
async def test_a_deadline_that_passes_while_the_job_waits_ends_it_before_its_turn() -> None:
    """Expired is said with a failed webhook, and the engine never works for it."""
    world = World(engine=FakeEngine(seconds=30))
    async with world.running():
        await world.submit("before")
        await world.at(Hop.GENERATE, "before")
        soon = START + timedelta(seconds=asyncio.get_running_loop().time() + 10)
        await world.submit("a", deadline=soon.isoformat())
        await world.ended("a", "before")
        assert await world.code("a") == "expired"
    assert world.engine.generated == ["before"]
    assert world.receiver.ids("failed") == ["a"]


@virtual
async def test_a_deadline_in_the_past_is_refused_at_once() -> None:
    """Nothing is prepared for it."""
    world = World()
    async with world.running():
        await world.submit("a", deadline=(START - timedelta(days=1)).isoformat())
        await world.ended("a")
        assert await world.code("a") == "expired"
    assert world.engine.generated == []


@virtual
async def test_a_jobs_timeout_counts_from_its_first_step() -> None:
    """Waiting for the engine and loading do not use it up; too long a generation is interrupted and charged."""
    world = World(engine=FakeEngine(seconds=40))
    async with world.running():
        await world.submit("before")
        await world.at(Hop.GENERATE, "before")
        await world.submit("a", timeout=31)
        await world.submit("b", timeout=20)
        await world.ended("a")
        assert await world.status_of("a") == "done"
        await world.ended("b")
        assert await world.ends("b") == [("job_timeout", True)] * 3
    assert world.engine.interrupted == ["b", "b", "b"]
    assert world.receiver.ids("failed") == ["b"]


@virtual
async def test_progress_and_start_are_told_to_those_who_want_it() -> None:
    """Started once, progress at most once a second, the end last, and nothing after it."""
    world = World(engine=FakeEngine(seconds=20))
    webhook = {"url": "https://hooks.example/in", "events": ["started", "progress", "succeeded"]}
    async with world.running():
        await world.submit("a", webhook=webhook, metadata={"order": 7})
        await world.ended("a")
        await elapse(10)
    kinds = [body["type"].removeprefix("job.") for _, body in world.receiver.taken]
    assert kinds[0] == "started"
    assert kinds[-1] == "succeeded"
    assert set(kinds[1:-1]) == {"progress"}
    assert 3 <= kinds.count("progress") <= 20
    assert {body["data"]["metadata"]["order"] for _, body in world.receiver.taken} == {7}


@virtual
async def test_a_job_that_breaks_the_code_is_a_bug_and_stops_nobody() -> None:
    """Charged as internal, counted, told at the last attempt; other jobs go on."""
    world = World()
    world.engine.trouble("a", *[_bug] * 3)
    async with world.running():
        await world.submit("a", "b")
        await world.ended("a", "b")
        assert await world.ends("a") == [("internal", True)] * 3
        assert await world.status_of("b") == "done"
    assert world.metrics.value("sd_worker_bugs_total") == 3
    assert world.receiver.ids("failed") == ["a"]


def _bug(engine: FakeEngine, work: Work) -> Output:
    raise ZeroDivisionError


@virtual
async def test_a_crash_in_the_second_turn_is_the_nodes_fault() -> None:
    """A doubtful answer first, a crash at its repetition: uncharged, done later."""
    world = World()
    world.engine.trouble("a", OutputEmpty(), EngineCrashed())
    async with world.running():
        await world.submit("a")
        await world.ended("a")
        assert await world.ends("a") == [("engine_lost", False), ("succeeded", False)]


@virtual
async def test_orders_of_the_queue_reach_the_jobs_they_name() -> None:
    """Whether they come with a renewal of another job's lease or with a receive."""
    world = World()
    world.engine.seconds = 30
    renew, receive = world.link.extend, world.link.receive

    async def renewed(delivery: Delivery) -> Orders | None:
        await renew(delivery)
        return Orders(cancel=("a",)) if delivery.id == "b" else None

    world.link.extend = renewed  # type: ignore[method-assign]
    async with world.running():
        await world.submit("a")
        await world.at(Hop.GENERATE, "a")
        await world.submit("b")
        await world.ended("a")
        assert world.receiver.ids("cancelled") == []
        assert (await world.state("a")).code == "cancelled"
        world.link.extend = renew  # type: ignore[method-assign]

        async def received() -> Received:
            found = await receive()
            return found if found.delivery else Received(orders=Orders(cancel=("b",)))

        world.link.receive = received  # type: ignore[method-assign]
        await world.ended("b")
        assert (await world.state("b")).code == "cancelled"
