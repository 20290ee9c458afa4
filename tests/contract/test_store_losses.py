"""Jobs that a node lost with a run of it: back at once, noted by cause, and charged where they bring nodes down."""

from __future__ import annotations

from datetime import timedelta

import pytest

from dispatcher.store.base import Grant, Loss
from dispatcher.store.sql import SqlStore
from tests.support.databases import Given, open_given
from tests.support.stores import LEASE, give_back, held, known, put, waiting
from worker.wire import NODE_RESTARTED

__all__ = ["open_given"]

OOM, CRASH = "node_killed_oom", "node_crashed"


async def lost(store: SqlStore, grant: Grant, code: str, node: str, most: int = 3) -> list[str]:
    """What came of telling it."""
    rows = await store.lose(node, [Loss(grant.job.id, grant.token, code)], max_attempts=most)
    return [row.status for row in rows]


async def ends(store: SqlStore, job_id: str = "a") -> list[tuple[str, str | None, bool]]:
    return [(one.worker, one.code, one.charged) for one in (await known(store, job_id)).attempts]


async def test_a_restarted_node_keeps_no_job_waiting_for_a_lease(given_db: Given) -> None:
    """It had nothing to do with the end of its node: uncharged, and there for the next node at once."""
    store = await given_db.store()
    await put(store, "a")
    grant = await held(store)
    assert await lost(store, grant, NODE_RESTARTED, "n1") == ["waiting"]
    assert await ends(store) == [("n1", NODE_RESTARTED, False)]
    assert await waiting(store) == {"checkpoint/a": (1, 6.0)}
    assert (await held(store, node="n2")).deliveries == 2
    assert await lost(store, grant, NODE_RESTARTED, "n1") == []


async def test_the_same_told_twice_is_one_and_another_nodes_job_is_not_its_own(given_db: Given) -> None:
    """Nor is a job of that id under another token, or a token that no lease can have."""
    store = await given_db.store()
    await put(store, "a")
    grant = await held(store)
    assert await lost(store, grant, OOM, "n2") == []
    assert await store.lose("n1", [Loss("b", grant.token, OOM)], max_attempts=3) == []
    assert await store.lose("n1", [Loss("a", 2**63, OOM), Loss("a", -1, OOM)], max_attempts=3) == []
    assert await store.lose("n1", [], max_attempts=3) == []
    assert (await known(store, "a")).status == "leased"
    assert await lost(store, grant, OOM, "n1") == ["delayed"]
    assert await lost(store, grant, CRASH, "n1") == []
    assert await ends(store) == [("n1", OOM, False)]


@pytest.mark.parametrize("code", [OOM, CRASH, "engine_lost"])
async def test_a_job_that_brings_nodes_down_is_charged_from_the_second_on(given_db: Given, code: str) -> None:
    """The first node's end may have been its own; it rests a little longer each time."""
    store = await given_db.store()
    await put(store, "a")
    rests = []
    for node in ("n1", "n1", "n2"):
        assert await lost(store, await held(store, node=node), code, node) == ["delayed"]
        row = await known(store, "a")
        assert row.visible_at is not None
        rests.append(row.visible_at - given_db.clock.now())
        given_db.advance(timedelta(minutes=3))
        await store.sweep(max_deliveries=10)
    assert rests == [timedelta(seconds=2), timedelta(seconds=4), timedelta(seconds=8)]
    assert await ends(store) == [("n1", code, False), ("n1", code, False), ("n2", code, True)]


async def test_an_engine_fault_elsewhere_counts_as_another_node(given_db: Given) -> None:
    """A server that broke there and a node that was killed here are of one kind; a release is of another."""
    store = await given_db.store()
    await put(store, "a")
    await give_back(store, await held(store, node="n1"), "disk_full")
    await give_back(store, await held(store, node="n1"), "gpu_fault")
    assert await lost(store, await held(store, node="n2"), OOM, "n2") == ["delayed"]
    assert [charged for *_, charged in await ends(store)] == [False, False, True]


async def test_a_job_that_was_charged_so_often_is_dead_and_its_user_hears_of_it(given_db: Given) -> None:
    """Before it takes another node down."""
    store = await given_db.store()
    await put(store, "a")
    for number in (1, 2, 3):
        grant = await held(store, node=f"n{number}")
        assert await lost(store, grant, OOM, f"n{number}", most=2) == (["dead"] if number == 3 else ["delayed"])
        given_db.advance(timedelta(minutes=3))
        await store.sweep(max_deliveries=10)
    row = await known(store, "a")
    assert (row.status, row.code, row.result and row.result.error and row.result.error.fault) == ("dead", OOM, "job")
    assert [charged for *_, charged in await ends(store)] == [False, True, True]
    (letter,) = await store.letters(10, LEASE)
    assert (letter.job_id, letter.event) == ("a", "failed")
    assert await waiting(store) == {}


async def test_a_cancelled_job_is_over_with_its_node(given_db: Given) -> None:
    """Nobody wants it any more, whoever is to blame."""
    store = await given_db.store()
    await put(store, "a")
    await give_back(store, await held(store, node="n1"), "engine_lost")
    grant = await held(store, node="n2")
    assert await store.cancel("a")
    assert await lost(store, grant, OOM, "n2", most=1) == ["done"]
    assert (await known(store, "a")).code == "cancelled"


async def test_a_node_that_comes_back_late_still_tells_how_it_ended(given_db: Given) -> None:
    """The job is another's by now, and stays there; the hand-over that vanished gets its cause."""
    store = await given_db.store()
    await put(store, "a", "b")
    await give_back(store, await held(store, "a", node="n0"), "engine_stalled")
    late, other = await held(store, "a", node="n1"), await held(store, "b", node="n1")
    given_db.advance(LEASE + timedelta(seconds=1))
    await store.sweep(max_deliveries=10)
    assert (await ends(store))[1] == ("n1", None, False)
    await held(store, "a", node="n2")
    told = [Loss("a", late.token, OOM), Loss("b", other.token, NODE_RESTARTED)]
    assert await store.lose("n1", told, max_attempts=3) == []
    assert (await ends(store))[1:] == [("n1", OOM, True)]
    assert await ends(store, "b") == [("n1", NODE_RESTARTED, False)]
    row = await known(store, "a")
    assert (row.status, row.node) == ("leased", "n2")
