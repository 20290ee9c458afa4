"""The fair order among users, over both databases."""

from __future__ import annotations

from datetime import timedelta

from tests.support.databases import Given, open_given
from tests.support.queues import result_of
from tests.support.stores import give_back, held, in_order, is_done, new_job, put

__all__ = ["open_given"]


async def test_fair_order(given_db: Given) -> None:
    """Who has many jobs waiting does not delay another's first; within a user it is first come, first served."""
    store = await given_db.store()
    await put(store, *(f"ann{number}" for number in range(5)), user="ann")
    await put(store, "bob0", "bob1", user="bob")
    assert await in_order(store) == ["ann0", "bob0", "ann1", "bob1", "ann2", "ann3", "ann4"]


async def test_fair_order_by_work(given_db: Given) -> None:
    """Long jobs count for more."""
    store = await given_db.store()
    await store.submit([new_job(f"ann{number}", user="ann", work_s=30) for number in range(2)])
    await store.submit([new_job(f"bob{number}", user="bob", work_s=6) for number in range(6)])
    assert await in_order(store) == [*(f"bob{n}" for n in range(4)), "ann0", "bob4", "bob5", "ann1"]


async def test_fair_order_goes_on(given_db: Given) -> None:
    """A newcomer begins where the line is now, neither before those who waited nor behind all of another's jobs."""
    store = await given_db.store()
    await put(store, *(f"ann{number:03}" for number in range(150)), user="ann")
    for _ in range(20):
        await held(store)
    await held(store, "ann149", node="warm")
    for row in await store.jobs(status="leased", limit=19):
        assert row.token is not None
        await store.end(row.id, row.token, result_of(row.id), dead=False)
    await store.sweep(max_deliveries=10)
    await put(store, "bob", user="bob")
    place = (await in_order(store, many=200)).index("bob")
    assert 0 <= place <= 2


async def test_fair_order_forgets_what_was_used(given_db: Given) -> None:
    """Who has nothing waiting is not held to account for what he used before."""
    store = await given_db.store()
    await put(store, *(f"ann{number}" for number in range(30)), user="ann")
    for _ in range(30):
        await held(store)
    await store.sweep(max_deliveries=10)
    await put(store, "bob0", "bob1", "bob2", user="bob")
    await put(store, "ann30", user="ann")
    assert await in_order(store) == ["ann30", "bob0", "bob1", "bob2"]


async def test_given_back_keeps_its_place(given_db: Given) -> None:
    """A job that comes back stands before those that were behind it, however far the line has come since."""
    store = await given_db.store()
    await put(store, "a", "b", "c")
    grants = [await held(store) for _ in range(2)]
    await is_done(store, grants[1])
    await store.sweep(max_deliveries=10)
    await put(store, "z", user="zoe")
    await give_back(store, grants[0], delay=timedelta(0))
    assert (await in_order(store))[0] == "a"
