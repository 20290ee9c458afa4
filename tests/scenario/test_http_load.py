"""More HTTP jobs than there is time for: who is taken, who is told to come again, and when; models fetched ahead."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import timedelta
from typing import Any

import pytest

from tests.support.fakes import FakeEngine
from tests.support.virtual import elapse, virtual
from tests.support.world import World
from worker.desk import Desk, Rules, Ticket
from worker.desk.hints import MOST, Hints
from worker.desk.refusals import TooManyPending
from worker.errors import GenerationRejected
from worker.job import Job, Limits, parse
from worker.mentions import Mention, place_of
from worker.status import Phase

PATIENT = Rules(Limits(), 16, timedelta(hours=10), None, cancel_on_disconnect=True)
NEVER = timedelta(days=365)
SMALL = {"width": 64, "height": 64, "steps": 4}


def at_work(world: World) -> Desk:
    assert world.desk is not None
    return world.desk


async def take(world: World, name: str, *, models: list[dict[str, Any]] | None = None, **params: Any) -> Ticket:
    document = {"id": name, "params": {"prompt": name, **SMALL, **params}, "models": models or []}
    return await at_work(world).take(document, waits=True)


async def refused(world: World, name: str = "one-more", **params: Any) -> float:
    """Seconds after which it may come again."""
    with pytest.raises(TooManyPending) as caught:
        await take(world, name, **params)
    assert caught.value.retry_after is not None
    return caught.value.retry_after.total_seconds()


@virtual
async def test_two_hundred_callers_at_once_are_all_served() -> None:
    """Those who are refused come again when they were told to: nobody is lost, nobody has to come often, the engine
    never idles, and jobs are done in the order in which they were taken."""
    world = World(http=PATIENT, window=1)
    world.engine.seconds = 2
    accepted: list[str] = []
    calls: Counter[str] = Counter()

    async def caller(name: str) -> str:
        while True:
            calls[name] += 1
            try:
                ticket = await take(world, name)
            except TooManyPending as busy:
                await elapse((busy.retry_after or NEVER).total_seconds())
                continue
            accepted.append(ticket.id)
            return (await ticket.over()).result.status

    async with world.running():
        await world.status.reached(Phase.READY)
        began = asyncio.get_running_loop().time()
        assert await asyncio.gather(*(caller(f"c{n}") for n in range(200))) == ["succeeded"] * 200
        took_s = asyncio.get_running_loop().time() - began
    assert world.engine.generated == accepted
    assert took_s == pytest.approx(200 * 2, rel=0.05)
    assert max(calls.values()) <= 12
    assert sum(calls.values()) <= 200 * 4


@virtual
async def test_full_and_not_full_again() -> None:
    """The readiness probe says no as long as one more would be refused, and yes from the first free place on."""
    world = World(http=PATIENT, window=1)
    async with world.running():
        await world.status.reached(Phase.READY)
        desk = at_work(world)
        assert desk.full() == ()
        first = await take(world, "first")
        await world.until(lambda: desk.held(first.id) is not None)
        waiting = [await take(world, f"w{n}") for n in range(PATIENT.max_pending)]
        assert desk.full() == ("too_many_pending",)
        await refused(world)
        await desk.cancel(waiting[-1].id)
        assert desk.full() == ()
        waiting.append(await take(world, "instead"))
        assert desk.full() == ("too_many_pending",)
        await first.over()
        await world.until(lambda: desk.full() == (), seconds=5)
        for ticket in waiting:
            await ticket.over()
    assert desk.load.ahead_s == 0


@virtual
async def test_a_burst_is_told_times_one_after_another() -> None:
    """The first when there will be a place, the others a job's time after each other; when they have passed, a new
    line begins."""
    world = World(http=PATIENT, window=1)
    world.engine.seconds = 4
    async with world.running():
        await world.status.reached(Phase.READY)
        assert (await (await take(world, "measured")).over()).result.status == "succeeded"
        tickets = [await take(world, f"w{n}") for n in range(PATIENT.max_pending)]
        told = [await refused(world, f"r{n}") for n in range(5)]
        assert [later - told[0] for later in told] == pytest.approx([0, 4, 8, 12, 16], abs=0.01)
        assert 0 < told[0] <= 8
        for ticket in tickets:
            await ticket.over()
        tickets = [await take(world, f"again{n}") for n in range(PATIENT.max_pending)]
        assert await refused(world) <= 8
        for ticket in tickets:
            await ticket.over()


@virtual
async def test_large_jobs_count_for_what_they_take() -> None:
    """Where the sizes are known, the time is told by them: a small job is taken where a large one is not."""
    rules = Rules(Limits(), 16, timedelta(seconds=30), None, cancel_on_disconnect=True)
    world = World(http=rules, window=1)
    async with world.running():
        await world.status.reached(Phase.READY)
        world.engine.seconds = 4
        await (await take(world, "measured", steps=10)).over()
        tickets = [await take(world, "running", steps=10), await take(world, "large", steps=50)]
        wait_s = await refused(world, "another-large", steps=50)
        tickets.append(await take(world, "small", steps=5))
        assert wait_s >= 10
        for ticket in tickets:
            await ticket.over()
        assert at_work(world).full() == ()
        assert (await (await take(world, "huge", steps=150)).over()).result.status == "succeeded"


class Listing(FakeEngine):
    """Does not look into some jobs, and trips over others."""

    async def mentions(self, job: Job) -> tuple[Mention, ...]:
        if job.params is not None and job.params.prompt == "refused":
            raise GenerationRejected
        if job.params is not None and job.params.prompt == "bug":
            raise KeyError("bug")
        return await super().mentions(job)


def lora(name: str) -> list[dict[str, Any]]:
    return [{"kind": "lora", "name": name, "url": f"https://models.example/{name}"}]


@virtual
async def test_models_of_waiting_jobs_are_hinted() -> None:
    """In their order, but for what the server has, and for jobs whose turn came or whose callers left before that; a
    job that cannot be looked into is in nobody's way, and a bug there is counted and no more."""
    world = World(http=PATIENT, window=1, engine=Listing(100))
    async with world.running():
        await world.status.reached(Phase.READY)
        desk, bugs = at_work(world), world.metrics.counters()["bugs"]
        first = await take(world, "first", models=lora("first.safetensors"))
        await world.until(lambda: desk.held(first.id) is not None)
        world.gate.close("closed for a while")
        tickets = [await take(world, name, models=lora(f"{name}.safetensors")) for name in ("a", "b", "refused", "bug")]
        tickets.append(await take(world, "last", models=lora("last.safetensors")))
        await desk.cancel(tickets[0].id)
        assert world.models.hints == []
        world.gate.open("closed for a while")
        await world.until(lambda: len(world.models.hints) == 2, seconds=5)
        assert [hint.name for hint in world.models.hints] == ["b.safetensors", "last.safetensors"]
        assert world.metrics.counters()["bugs"] == bugs + 1
        for ticket in [first, *tickets]:
            await desk.cancel(ticket.id)
            await ticket.over()


@virtual
async def test_hints_are_few_and_for_those_who_wait() -> None:
    """Of a long line the last ones are looked at, the first ones come first anyway; none whose turn has come; known
    models are left alone."""
    world = World(http=PATIENT)
    world.engine.files = {place_of("lora", "known.safetensors")}
    hints = Hints(world.tools)
    names = [f"job-{n}" for n in range(MOST + 6)]
    for name in names:
        models = [*lora(f"{name}.safetensors"), *lora("known.safetensors")]
        hints.note(parse({"params": {"prompt": "x"}, "models": models}, fallback_id=name, limits=Limits()))
    hints.forget(names[-1])
    hints.forget(names[-1])
    world.gate.open("starting")
    with world.live.holding(names[-2]):
        task = asyncio.create_task(hints.run(), name="hints")
        await world.until(lambda: len(world.models.hints) == MOST - 2)
    assert [hint.name for hint in world.models.hints] == [f"{name}.safetensors" for name in names[6:-2]]
    world.drain.begin(0)
    hints.note(parse({"params": {"prompt": "x"}, "models": lora("late")}, fallback_id="late", limits=Limits()))
    await task
    assert len(world.models.hints) == MOST - 2
    await world.receiver.aclose()
    await world.inputs.aclose()
