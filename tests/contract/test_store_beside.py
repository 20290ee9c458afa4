"""What stands beside the jobs: nodes and their orders, roles, the catalogue, owed webhooks, news. Both databases."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from dispatcher.store.base import NodeRow
from dispatcher.words import Source
from tests.support.clock import START
from tests.support.databases import Given, open_given
from tests.support.stores import LEASE, SOON, give_back, held, ids, put
from tests.support.waiting import wait_until

__all__ = ["open_given"]

LONG_S = 20.0


async def test_nodes(given_db: Given) -> None:
    """What a node told last is kept, in whatever order the processes write it; its orders are another's to write."""
    store, other = await given_db.store(), await given_db.store()
    late = NodeRow("n1", START + SOON, '{"node":{"id":"n1"},"disk":{"free":2}}')
    await store.save_nodes([NodeRow("n2", START, "{}"), NodeRow("n1", START, "{}"), late])
    await other.save_orders({"n1": {"download": ["m"]}, "unknown": {"evict": []}})
    await other.save_nodes([NodeRow("n1", START, '{"old":true}')])
    assert await store.nodes() == [
        NodeRow("n1", late.seen, late.report, {"download": ["m"]}),
        NodeRow("n2", START, "{}", {}),
    ]
    await store.save_nodes([])
    await store.save_orders({})


async def test_nodes_are_forgotten(given_db: Given) -> None:
    """A node not heard of for a day is not known any more."""
    store = await given_db.store()
    await store.save_nodes([NodeRow("gone", START, "{}"), NodeRow("here", START + SOON, "{}")])
    given_db.advance(timedelta(days=1))
    await store.sweep(max_deliveries=10)
    assert [row.id for row in await store.nodes()] == ["here"]


async def test_roles(given_db: Given) -> None:
    """One process at a time has a role, until it does not ask for it any more."""
    one, two = await given_db.store(), await given_db.store()
    assert await one.lead("coverage", "one", LEASE)
    assert not await two.lead("coverage", "two", LEASE)
    assert await two.lead("other", "two", LEASE)
    given_db.advance(LEASE - SOON)
    assert await one.lead("coverage", "one", LEASE)
    given_db.advance(SOON)
    assert not await two.lead("coverage", "two", LEASE)
    given_db.advance(LEASE)
    took = await asyncio.gather(one.lead("coverage", "one", LEASE), two.lead("coverage", "two", LEASE))
    assert sorted(took) == [False, True]


async def test_catalogue(given_db: Given) -> None:
    """Entries of the same kind and name replace each other; what is removed is gone."""
    store = await given_db.store()
    old = Source("checkpoint", "m", "https://a/m")
    new = Source("checkpoint", "m", "https://b/m", "ab" * 32, 6_000_000_000, "sdxl")
    await store.put_models([old, Source("lora", "l")])
    await store.put_models([new])
    await store.put_models([])
    assert await store.models() == [new, Source("lora", "l")]
    assert await store.remove_model("lora", "l")
    assert not await store.remove_model("lora", "l")
    assert await store.models() == [new]


async def test_letters(given_db: Given) -> None:
    """An owed webhook is one process's at a time; it is due again when that says so, or says nothing."""
    store, other = await given_db.store(), await given_db.store()
    await put(store, "a", "b", "c")
    for job_id in ("a", "b"):
        await store.cancel(job_id)
    taken = [*await store.letters(1, LEASE), *await other.letters(10, LEASE)]
    assert sorted(letter.job_id for letter in taken) == ["a", "b"]
    assert await other.letters(10, LEASE) == []
    await store.posted(taken[0].id, again=None)
    await other.posted(taken[1].id, again=LEASE * 2)
    given_db.advance(LEASE)
    assert await store.letters(10, LEASE) == []
    given_db.advance(LEASE)
    for _ in range(2):
        [letter] = await store.letters(10, LEASE)
        assert (letter.job_id, letter.tries) == (taken[1].job_id, 1)
        given_db.advance(LEASE)


async def test_news_in_the_process(given_db: Given) -> None:
    """Who waits for jobs hears at once of one that was submitted or given back; a ticket misses nothing in between."""
    store = await given_db.store()
    await wait_until(lambda: store.ticket() > 0 or given_db.kind == "sqlite")
    ticket = store.ticket()
    waiter = asyncio.create_task(store.changed(LONG_S))
    await put(store, "a")
    assert await waiter
    assert await store.changed(0.0, ticket)
    ticket = store.ticket()
    assert not await store.changed(0.0, ticket)
    await give_back(store, await held(store))
    assert await store.changed(0.0, ticket)


async def test_news_between_processes(given_db: Given) -> None:
    """So does another process, for what is submitted, given back, requeued or taken back."""
    store, other = await given_db.store(), await given_db.store()
    await wait_until(lambda: other.ticket() > 0 or given_db.kind == "sqlite")

    async def is_heard(ticket: int) -> bool:
        return await other.changed(LONG_S, ticket)

    ticket = other.ticket()
    await put(store, "a")
    assert await is_heard(ticket)
    grant = await held(store)
    ticket = other.ticket()
    await give_back(store, grant)
    assert await is_heard(ticket)
    await held(store)
    given_db.advance(LEASE)
    ticket = other.ticket()
    await store.sweep(max_deliveries=10)
    assert await is_heard(ticket)
    assert await ids(other, "waiting") == ["a"]


async def test_check(given_db: Given) -> None:
    """A look at the database says where it is, without its password, and what is in it."""
    store = await given_db.store()
    await put(store, "a", "b")
    await held(store)
    said = await store.check()
    assert said.endswith("1 jobs waiting, 1 leased, 0 nodes known")
    assert said.startswith(given_db.kind)
