"""The desk where things go otherwise than planned: outages, races, nodes that go away at the wrong moment."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from dispatcher.desk import GATHER_S, REMEMBERED, STRANGERS, Desk, Offer
from dispatcher.metrics import LOADS
from dispatcher.store.base import StoreUnavailable
from dispatcher.words import NO_MODEL, Waiting
from tests.support.boards import BoardStore, a_desk, asking, know, waiting
from tests.support.virtual import virtual
from tests.support.waiting import wait_until
from worker.tasks import cancel_all


@asynccontextmanager
async def at_work(desk: Desk) -> AsyncIterator[None]:
    """The desk serves for the time of the block."""
    task = asyncio.create_task(desk.run(), name="desk")
    try:
        yield
    finally:
        await cancel_all({task})


async def ask(desk: Desk, node: str, *loaded: str, wait_s: float = 0.0) -> Offer:
    desk.fleet.asked(asking(node, *loaded))
    return await desk.ask(node, wait_s)


def held(desk: Desk, node: str, *loaded: str) -> asyncio.Task[Offer]:
    """A request that may be held back for long."""
    return asyncio.create_task(ask(desk, node, *loaded, wait_s=100), name=node)


def job_of(offer: Offer) -> str | None:
    return offer.grant.job.id if offer.grant is not None else None


@pytest.mark.parametrize("verb", ["board", "grant"])
async def test_an_outage_is_told_to_those_who_asked(verb: str) -> None:
    """They may ask again; what was thought to be given away is not, so that it is given afterwards."""
    store = BoardStore(waiting("j1"))
    desk = a_desk(store)
    async with at_work(desk):
        store.fails = {verb}
        with pytest.raises(StoreUnavailable):
            await ask(desk, "n1", "a")
        store.fails = set()
        know(desk, store)
        assert job_of(await ask(desk, "n1", "a")) == "j1"


async def test_an_idle_desk_asks_its_database_nothing() -> None:
    """With nothing waiting, a request costs no statement."""
    store = BoardStore()
    async with at_work(desk := a_desk(store)):
        assert job_of(await ask(desk, "n1", "a")) is None
    assert store.calls == []


@virtual
async def test_what_comes_close_together_shares_a_batch() -> None:
    """A lone request is served at once; those that come within the pause behind it are one grant."""
    store, loop = BoardStore(*(waiting(f"j{number}") for number in range(4))), asyncio.get_running_loop()
    async with at_work(desk := a_desk(store)):
        assert job_of(await ask(desk, "n0", "a")) is not None
        assert loop.time() == 0
        given = await asyncio.gather(*(ask(desk, f"n{number}", "a") for number in range(1, 4)))
        assert None not in map(job_of, given)
        assert loop.time() == GATHER_S
    assert store.calls.count("grant") == 2


async def test_the_quicker_process_gets_the_job_and_the_node_another() -> None:
    """A grant that another was quicker with is tried anew with what is left."""
    store = BoardStore(waiting("j1"), waiting("j2"))
    store.refused = {"j1"}
    async with at_work(desk := a_desk(store)):
        assert job_of(await ask(desk, "n1", "a")) == "j2"


async def test_a_node_that_is_always_too_late_gets_nothing() -> None:
    """After a few tries it is told so instead of being kept."""
    store = BoardStore(*(waiting(f"j{i}") for i in range(9)))
    store.refused = set(store.jobs)
    async with at_work(desk := a_desk(store)):
        assert job_of(await ask(desk, "n1", "a")) is None
        assert store.calls.count("grant") == 3
        assert desk.fleet["n1"].latest is None


async def test_a_node_that_leaves_during_its_grant_leaves_nothing_leased() -> None:
    """The job goes back uncounted."""
    store = BoardStore(waiting("j1"))
    store.gate.clear()
    async with at_work(desk := a_desk(store)):
        asked = held(desk, "n1", "a")
        await store.granting.wait()
        await cancel_all({asked})
        store.gate.set()
        await wait_until(lambda: store.released)
    assert store.released == [("j1", "draining")]


async def test_a_node_that_leaves_right_after_its_grant_leaves_nothing_leased() -> None:
    """Also where the answer was on its way already; while the database does not answer it is tried again."""
    store = BoardStore(waiting("j1"))
    store.fails = {"release"}
    desk = a_desk(store)
    async with at_work(desk):
        asked = held(desk, "n1", "a")
        await wait_until(lambda: "grant" in store.calls)
        grant = (await asked).grant
        desk.undelivered("n1", grant)
        await wait_until(lambda: "release" in store.calls)
        assert store.released == []
        store.fails = set()
        desk.tick()
        await wait_until(lambda: store.released)
    assert desk.demands.waiting == 1


async def test_each_decision_of_a_batch_sees_the_ones_before() -> None:
    """Two warm nodes that ask at once get the two first jobs, none twice."""
    store = BoardStore(waiting("j1", rank=1), waiting("j2", rank=2), waiting("j3", rank=3))
    async with at_work(desk := a_desk(store)):
        offers = await asyncio.gather(*(ask(desk, f"n{i}", "a") for i in range(40)))
    assert sorted(filter(None, map(job_of, offers))) == ["j1", "j2", "j3"]
    assert desk.demands.waiting == 0


async def test_held_requests_are_looked_at_when_their_model_comes() -> None:
    """The warm node among many is found, although nobody of them asked again."""
    store = BoardStore()
    async with at_work(desk := a_desk(store)):
        many = [held(desk, f"n{i:03}", "b") for i in range(100)] + [held(desk, "warm", "a")]
        await wait_until(lambda: desk.polls == 101)
        store.jobs["j1"] = waiting("j1")
        know(desk, store)
        assert job_of(await many[-1]) == "j1"
        desk.stop()
        rest = await asyncio.gather(*many[:-1])
    assert {job_of(offer) for offer in rest} == {None}
    assert len([offer for offer in rest if offer.choice is not None and offer.choice.options]) <= STRANGERS


async def test_a_job_without_a_model_is_for_anybody() -> None:
    """Whoever is held back gets it."""
    store = BoardStore()
    async with at_work(desk := a_desk(store)):
        asked = held(desk, "n1", "b")
        await wait_until(lambda: desk.polls)
        store.jobs["j1"] = Waiting("j1", ())
        know(desk, store)
        assert job_of(await asked) == "j1"
    assert desk.demands.index[NO_MODEL].waiting == 0
    assert desk.metrics.value(LOADS) == 0


async def test_a_request_of_a_batch_that_was_full_is_looked_at_in_the_next() -> None:
    """More nodes concern themselves with a model than one batch takes."""
    store = BoardStore()
    async with at_work(desk := a_desk(store)):
        many = [held(desk, f"n{i:03}", "a") for i in range(70)]
        await wait_until(lambda: desk.polls == 70)
        store.jobs |= {f"j{i:03}": waiting(f"j{i:03}", rank=i) for i in range(70)}
        know(desk, store)
        offers = await asyncio.gather(*many)
    assert len(set(map(job_of, offers))) == 70


async def test_a_cold_job_is_begun_by_a_node_that_nobody_needs() -> None:
    """No node has its model: one that is held back fetches it."""
    store = BoardStore()
    async with at_work(desk := a_desk(store)):
        asked = held(desk, "n1")
        await wait_until(lambda: desk.polls)
        store.jobs["j1"] = waiting("j1")
        know(desk, store)
        while not asked.done():
            desk.tick()
            await asyncio.wait({asked}, timeout=0.01)
        assert job_of(await asked) == "j1"
    assert desk.metrics.value(LOADS) == 1


async def test_a_stopped_desk_gives_nothing() -> None:
    """Neither to those who wait nor to those who come, and it is quiet when the last batch is through."""
    store = BoardStore(waiting("j1"))
    store.gate.clear()
    desk = a_desk(store)
    async with at_work(desk):
        first = held(desk, "n1", "a")
        await store.granting.wait()
        late = held(desk, "n2", "a")
        await wait_until(lambda: "n2" in desk.fleet)
        desk.stop()
        store.gate.set()
        await desk.stopped()
        assert [job_of(await first), job_of(await late)] == ["j1", None]
        assert job_of(await ask(desk, "n3", "a")) is None


async def test_why_is_remembered_of_the_latest_assignments() -> None:
    """Of a bounded number, the earliest forgotten first."""
    store = BoardStore(waiting("j1"))
    desk = a_desk(store)
    async with at_work(desk):
        await ask(desk, "n1", "a")
        one = desk.assignments["j1"]
        desk.assignments.update({f"k{i}": one for i in range(REMEMBERED)})
        store.jobs["j2"] = waiting("j2")
        know(desk, store)
        await ask(desk, "n1", "a")
    assert len(desk.assignments) == REMEMBERED
    assert "j1" not in desk.assignments
    assert desk.assignments["j2"].node == "n1"
