"""Handing jobs over: who is first, who holds what, and what a token is good for. Over both databases."""

from __future__ import annotations

import asyncio

import pytest

from dispatcher.store.base import Extended, Pick
from tests.support.clock import START
from tests.support.databases import Given, open_given
from tests.support.queues import result_of
from tests.support.stores import (
    LEASE,
    MOST,
    SOON,
    give_back,
    held,
    ids,
    ids_of,
    in_order,
    is_dead,
    is_done,
    key,
    known,
    new_job,
    put,
    take,
    waiting,
)
from worker.errors import Fault
from worker.queues.base import Attempt

__all__ = ["open_given"]


async def test_board(given_db: Given) -> None:
    """The heads of the keys asked for, each in its order, and the first of all in line whatever its key."""
    store = await given_db.store()
    await put(store, "a1", "a2", "a3", model="a")
    await put(store, "b1", model="b", user="v")
    await put(store, "c9", model="c", priority=9)
    heads, first, passed = await store.board({key("a"): 2, key("b"): 2, key("x"): 2})
    assert {one: [job.id for job in jobs] for one, jobs in heads.items()} == {key("a"): ["a1", "a2"], key("b"): ["b1"]}
    assert first is not None
    assert (first.id, first.priority, passed) == ("c9", 9, 0)
    assert await store.board({}) == ({}, first, 0)


async def test_empty_board(given_db: Given) -> None:
    """Where nothing waits there is nobody first."""
    store = await given_db.store()
    assert await store.board({key("a"): 5}) == ({}, None, 0)
    assert await store.grant([Pick("n", key("a"), None)], LEASE, passed=None) == [None]
    assert await store.grant([], LEASE, passed=None) == []


async def test_order(given_db: Given) -> None:
    """Priority above all, then who came first."""
    store = await given_db.store()
    await put(store, "z", "y")
    await put(store, "p", priority=5)
    await put(store, "n", priority=-5)
    assert await in_order(store) == ["p", "z", "y", "n"]
    assert [(await held(store)).job.id for _ in range(4)] == ["p", "z", "y", "n"]


async def test_grant(given_db: Given) -> None:
    """One call serves many nodes: each the job that it is to get, else the first left of the model, else nothing."""
    store = await given_db.store()
    await put(store, "a1", "a2", "a3", model="a")
    await put(store, "b1", model="b")
    picks = [
        Pick("n1", key("a"), "a2"),
        Pick("n2", key("a"), "a2"),
        Pick("n3", key("b"), None),
        Pick("n4", key("b"), "b1"),
        Pick("n5", key("a"), "unknown"),
    ]
    grants = await store.grant(picks, LEASE, passed=None)
    assert ids_of(grants) == ["a2", "a1", None, "b1", "a3"]
    tokens = [one.token for one in grants if one is not None]
    assert len(set(tokens)) == 4
    row = await known(store, "a1")
    assert (row.status, row.node, row.deliveries, row.lease_until) == ("leased", "n2", 1, START + LEASE)
    assert await waiting(store) == {}


async def test_two_processes_never_grant_one_job(given_db: Given) -> None:
    """However many ask at once, each job has one holder, and tokens are never given twice."""
    stores = [await given_db.store() for _ in range(3)]
    await stores[0].submit([new_job(f"j{number}") for number in range(30)])
    picks = [Pick("n", key("a"), f"j{number}") for number in range(10)]
    rounds = await asyncio.gather(*(store.grant(picks, LEASE, passed="j0") for store in stores for _ in range(2)))
    got = [one for grants in rounds for one in grants if one is not None]
    assert len({one.job.id for one in got}) == len(got) == 30
    assert len({one.token for one in got}) == 30
    assert await ids(stores[0], "waiting") == []


async def test_tokens_grow(given_db: Given) -> None:
    """Each leasing of any job has a greater token than all before it."""
    store = await given_db.store()
    await put(store, "a", "b")
    tokens = []
    for job_id in ("a", "b", "a", "a", "b"):
        grant = await held(store, job_id)
        tokens.append(grant.token)
        await give_back(store, grant)
    assert tokens == sorted(set(tokens))


async def test_passed(given_db: Given) -> None:
    """How often the first in line was passed over is counted over all processes, and begins anew with the next one."""
    store, other = await given_db.store(), await given_db.store()
    await put(store, "first", model="rare")
    await put(store, *(f"j{number}" for number in range(6)))

    async def passed() -> tuple[str | None, int]:
        _, first, count = await store.board({})
        return first.id if first else None, count

    await other.grant([Pick("n", key("a"), None)] * 2, LEASE, passed="first")
    await store.grant([Pick("n", key("a"), None)], LEASE, passed="first")
    assert await passed() == ("first", 3)
    await store.grant([Pick("n", key("a"), None), Pick("n", key("rare"), "first")], LEASE, passed="first")
    assert await passed() == ("j4", 0)
    await other.grant([Pick("n", key("a"), "j5")], LEASE, passed="first")
    assert await passed() == ("j4", 0)
    await store.grant([Pick("n", key("a"), "j4")], LEASE, passed="j4")
    assert await passed() == (None, 0)


async def test_the_first_but_some(given_db: Given) -> None:
    """Jobs that are set aside are not the first in line, but still the first of their model."""
    store = await given_db.store()
    await put(store, "a", "b", "c")
    heads, first, _ = await store.board({key("a"): 1}, but=["a", "b", "unknown"])
    assert ([job.id for job in heads[key("a")]], first and first.id) == (["a"], "c")
    _, nobody, _ = await store.board({}, but=["a", "b", "c"])
    assert nobody is None


async def test_extend(given_db: Given) -> None:
    """A renewal moves the lease and keeps what is told of the job; what others hold is lost, and nothing else."""
    store = await given_db.store()
    await put(store, "a", "b", "c")
    a, b, c = [await held(store) for _ in range(3)]
    await is_done(store, c)
    given_db.advance(SOON)
    told = await store.extend(
        [
            ("a", a.token, 0.25, "generate"),
            ("b", a.token, None, None),
            ("c", c.token, None, None),
            ("x", 9, None, None),
        ],
        LEASE,
    )
    assert told == Extended(lost=frozenset({"b", "c", "x"}))
    row = await known(store, "a")
    assert (row.lease_until, row.progress, row.hop) == (START + SOON + LEASE, 0.25, "generate")
    await store.extend([("a", a.token, None, None)], LEASE)
    assert (await known(store, "a")).progress == 0.25
    assert (await known(store, "b")).lease_until == START + LEASE
    assert await store.extend([], LEASE) == Extended()
    assert await is_done(store, b)


async def test_lease_that_ran_out(given_db: Given) -> None:
    """A lease that ran out is its holder's until the sweep has taken it back."""
    store = await given_db.store()
    await put(store, "a", "b")
    a, b = await held(store), await held(store)
    given_db.advance(LEASE)
    assert (await store.extend([("a", a.token, None, None)], LEASE)).lost == frozenset()
    swept = await store.sweep(max_deliveries=10)
    assert (swept.vanished, swept.limited) == (1, 0)
    assert (await store.extend([("b", b.token, None, None)], LEASE)).lost == {"b"}
    assert not await is_done(store, b)
    assert await give_back(store, b) is None
    row = await known(store, "b")
    assert (row.status, row.attempts) == ("waiting", (Attempt("n1", START + LEASE, None, charged=False),))
    assert await waiting(store) == {key("a"): (1, 6.0)}


async def test_stale_token(given_db: Given) -> None:
    """A holder from before changes nothing, whatever he sends, and neither does one with another job's token."""
    store = await given_db.store()
    await put(store, "a", "b")
    before, beside = await held(store, "a"), await held(store, "b")
    given_db.advance(LEASE)
    await store.extend([("b", beside.token, None, None)], LEASE)
    await store.sweep(max_deliveries=10)
    after = await held(store, "a", node="n2")
    was = await known(store, "a")
    assert not await is_done(store, before)
    assert not await is_dead(store, before)
    assert await give_back(store, before) is None
    assert not await store.end("a", beside.token, result_of("a"), dead=False)
    assert await known(store, "a") == was
    assert after.token > before.token
    assert await is_done(store, after)


async def test_end(given_db: Given) -> None:
    """A job that its holder ended is over with its result; the same end again is one, another is refused."""
    store = await given_db.store()
    await put(store, "a", "b")
    a, b = await held(store), await held(store)
    assert await store.end("a", a.token, result_of("a"), dead=False)
    row = await known(store, "a")
    assert (row.status, row.code, row.ended, [one.code for one in row.attempts]) == ("done", None, START, ["succeeded"])
    assert await store.end("a", a.token, result_of("a"), dead=False)
    assert not await is_dead(store, a)
    assert await known(store, "a") == row
    assert row.result == result_of("a")
    failed = result_of("b", "failed", code="internal", fault=Fault.BUG)
    assert await store.end("b", b.token, failed, dead=True)
    row = await known(store, "b")
    assert (row.status, row.code) == ("dead", "internal")
    assert row.attempts == (Attempt("n1", START, "internal", charged=True),)
    assert await store.letters(10, LEASE) == []


@pytest.mark.parametrize("token", [-1, 0, 2**63, -(2**63) - 1, 2**70])
async def test_a_token_that_none_can_be(given_db: Given, token: int) -> None:
    """A number that no column holds is a stale token, and no mistake; whoever came beside it is served."""
    store = await given_db.store()
    await put(store, "a")
    grant = await held(store)
    wild, good = await asyncio.gather(
        store.end("a", token, result_of("a"), dead=False), store.extend([("a", grant.token, None, None)], LEASE)
    )
    assert (wild, good.lost) == (False, frozenset())
    assert (await store.extend([("a", token, None, None)], LEASE)).lost == {"a"}
    assert await store.release("a", token, code="draining", delay=SOON, charged=False, worker="w") is None
    assert await is_done(store, grant)


async def test_ends_at_once(given_db: Given) -> None:
    """Ends that come together are one transaction's, and each has its own answer."""
    store = await given_db.store()
    await put(store, *(f"j{number}" for number in range(20)))
    grants = [await held(store) for _ in range(20)]
    stale = [("j0", 999), ("unknown", 1)]
    answers = await asyncio.gather(
        *(store.end(one.job.id, one.token, result_of(one.job.id), dead=False) for one in grants),
        *(store.end(job_id, token, result_of(job_id), dead=False) for job_id, token in stale),
    )
    assert answers == [True] * 20 + [False, False]


async def test_success_without_its_webhook(given_db: Given) -> None:
    """A success whose webhook nobody took is a dead letter, and no hand-over that counts."""
    store = await given_db.store()
    await put(store, "a")
    assert await store.end("a", (await held(store)).token, result_of("a"), dead=True)
    row = await known(store, "a")
    assert (row.status, row.code) == ("dead", "webhook_undelivered")


async def test_release(given_db: Given) -> None:
    """A job given back waits in its old place, with its attempts told; a drain is no hand-over that counts."""
    store = await given_db.store()
    await put(store, "a", "b")
    row = await give_back(store, await held(store, "a"), "draining")
    assert row is not None
    assert (row.status, row.deliveries) == ("waiting", 0)
    row = await give_back(store, await held(store, "a"), "internal", charged=True)
    assert row is not None
    assert (row.status, row.deliveries) == ("waiting", 1)
    assert await in_order(store) == ["a", "b"]
    grant = await held(store)
    assert (grant.job.id, grant.deliveries, grant.redelivered) == ("a", 2, True)
    assert grant.attempts == (
        Attempt("worker-of-a", START, "draining", charged=False),
        Attempt("worker-of-a", START, "internal", charged=True),
    )
    assert await waiting(store) == {key("a"): (1, 6.0)}


async def test_release_with_delay(given_db: Given) -> None:
    """A job given back for later is nobody's until then; the sweep has it wait again."""
    store = await given_db.store()
    await put(store, "a")
    row = await give_back(store, await held(store), "download_failed", delay=SOON)
    assert row is not None
    assert (row.status, row.visible_at) == ("delayed", START + SOON)
    assert (await store.sweep(max_deliveries=10)).woken == 0
    assert await take(store, "a") is None
    assert await waiting(store) == {}
    given_db.advance(SOON)
    assert (await store.sweep(max_deliveries=10)).woken == 1
    assert await waiting(store) == {key("a"): (1, 6.0)}
    assert (await held(store)).job.id == "a"


async def test_deadline(given_db: Given) -> None:
    """A job that nobody had before its deadline is dead; one that was held may have succeeded and is handed over."""
    store = await given_db.store()
    await store.submit([new_job("a", deadline=START + SOON), new_job("b", deadline=START + LEASE)])
    running = await held(store, "b")
    given_db.advance(SOON)
    assert await take(store, "a") is None
    assert await take(store) is None
    assert (await store.sweep(max_deliveries=10)).expired == 1
    row = await known(store, "a")
    assert (row.status, row.code) == ("dead", "expired")
    assert row.result is not None
    assert row.result.error is not None
    assert (row.result.status, row.result.error.fault) == ("failed", Fault.JOB)
    assert [(letter.job_id, letter.event) for letter in await store.letters(10, LEASE)] == [("a", "failed")]
    given_db.advance(LEASE - SOON)
    await give_back(store, running, "webhook_undelivered")
    assert (await store.sweep(max_deliveries=10)).expired == 0
    assert await is_done(store, await held(store, "b"))


async def test_delivery_limit(given_db: Given) -> None:
    """A job whose holders vanish is handed over three times past its limit, then it is dead and its webhook owed."""
    store = await given_db.store()
    await put(store, "a")
    for number in range(MOST + 3):
        assert (await held(store)).deliveries == number + 1
        given_db.advance(LEASE)
        swept = await store.sweep(max_deliveries=MOST)
        assert (swept.vanished, swept.limited) == (1, number == MOST + 2)
    row = await known(store, "a")
    assert (row.status, row.code, len(row.attempts)) == ("dead", "delivery_limit", MOST + 3)
    assert [letter.event for letter in await store.letters(10, LEASE)] == ["failed"]
    assert await waiting(store) == {}


async def test_delivery_limit_of_one_given_back(given_db: Given) -> None:
    """Holders that give it back again and again come to the same; drains do not count."""
    store = await given_db.store()
    await put(store, "a")
    for _ in range(MOST + 5):
        await give_back(store, await held(store), "draining")
    assert (await store.sweep(max_deliveries=MOST)).limited == 0
    for _ in range(MOST + 3):
        await give_back(store, await held(store), "disk_full")
    assert (await store.sweep(max_deliveries=MOST)).limited == 1
    assert (await known(store, "a")).code == "delivery_limit"


async def test_sweeps_at_once(given_db: Given) -> None:
    """Sweeps of several processes take back each lease once."""
    stores = [await given_db.store() for _ in range(3)]
    await put(stores[0], *(f"j{number}" for number in range(20)))
    for _ in range(20):
        await held(stores[0])
    given_db.advance(LEASE)
    swept = await asyncio.gather(*(store.sweep(max_deliveries=10) for store in stores))
    assert sum(one.vanished for one in swept) == 20
    assert await waiting(stores[0]) == {key("a"): (20, 120.0)}
    assert {len(row.attempts) for row in await stores[0].jobs()} == {1}


async def test_backlog_stays_exact(given_db: Given) -> None:
    """The sum is right before, while and after changes are folded; models that nobody waits for are left out."""
    store, other = await given_db.store(), await given_db.store()
    for number in range(12):
        await put(store, f"a{number}")
        await put(store, f"b{number}", model="b")
    for _ in range(12):
        await held(store, model="b")
    assert await waiting(store) == {key("a"): (12, 72.0)}
    await asyncio.gather(*(one.sweep(max_deliveries=10) for one in (store, other)), *(held(other) for _ in range(4)))
    assert await waiting(store) == {key("a"): (8, 48.0)}
    await store.sweep(max_deliveries=10)
    assert await waiting(other) == {key("a"): (8, 48.0)}
