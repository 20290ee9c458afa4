"""What users ask of the store, over SQLite and PostgreSQL alike."""

from __future__ import annotations

from datetime import timedelta

import pytest

from dispatcher.store.base import Extended
from dispatcher.words import Need
from tests.support.clock import START
from tests.support.databases import Given, open_given
from tests.support.queues import result_of
from tests.support.stores import (
    LEASE,
    SOON,
    give_back,
    held,
    ids,
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
from worker.errors import IdConflict, InvalidJob
from worker.result import ImageResult

__all__ = ["open_given"]


async def test_submit(given_db: Given) -> None:
    """A job waits as it was submitted, and everything about it can be read."""
    store = await given_db.store()
    job = new_job("a", "m", user="ann", priority=3, work_s=1.5, deadline=START + SOON, metadata={"x": "ü\x00"})
    assert await store.submit([job]) == [True]
    row = await known(store, "a")
    assert (row.status, row.user, row.priority, row.needs, row.deliveries) == ("waiting", "ann", 3, job.needs, 0)
    assert (row.queued_at, row.attempts, row.code, row.result, row.node) == (START, (), None, None, None)
    grant = await held(store, model="m")
    assert grant.document == job.document
    assert (grant.job.work_s, grant.job.user, grant.job.since, grant.queued_at) == (1.5, "ann", START, START)


async def test_submit_again(given_db: Given) -> None:
    """The very same document is known already, in whatever state its job is; in one list, too."""
    store = await given_db.store()
    assert await store.submit([new_job("a"), new_job("b"), new_job("a")]) == [True, True, False]
    await is_done(store, await held(store, "a"))
    assert await store.submit([new_job("a"), new_job("c")]) == [False, True]
    assert await waiting(store) == {key("a"): (2, 12.0)}


async def test_submit_conflict(given_db: Given) -> None:
    """Another document under a known id is refused by name, and nothing of its list is taken."""
    store = await given_db.store()
    await put(store, "a")
    with pytest.raises(IdConflict, match="the id a"):
        await store.submit([new_job("b"), new_job("a", fingerprint="other")])
    with pytest.raises(IdConflict, match="the id c"):
        await store.submit([new_job("c"), new_job("c", fingerprint="other")])
    assert await ids(store) == ["a"]
    assert await waiting(store) == {key("a"): (1, 6.0)}


@pytest.mark.parametrize("name", ["a\x00b", "é" * 1_200], ids=["NUL", "long"])
async def test_submit_what_cannot_be_stored(given_db: Given, name: str) -> None:
    """A name that no index can hold is the job's fault and no outage; nothing of its list is taken."""
    store = await given_db.store()
    for job in (new_job("b", name), new_job("b", user=name)):
        with pytest.raises(InvalidJob, match="name in the job 'b'"):
            await store.submit([new_job("a"), job])
    assert await ids(store) == []


async def test_submit_nothing(given_db: Given) -> None:
    """An empty list is no trouble."""
    store = await given_db.store()
    assert await store.submit([]) == []


async def test_needs(given_db: Given) -> None:
    """All the models of a job are told with it, the one by which it queues first; a job may need none."""
    store = await given_db.store()
    needs = (Need("checkpoint@ab", "checkpoint", "m", 5, "https://x/m", "ab"), Need("lora/l", "lora", "l"))
    await store.submit([new_job("a"), new_job("b", "")])
    job = new_job("c")
    await store.submit([type(job)("c", job.document, "c", needs)])
    heads, _, _ = await store.board({"checkpoint@ab": 5, "": 5, "checkpoint/none": 5})
    assert {one: [job.id for job in found] for one, found in heads.items()} == {"checkpoint@ab": ["c"], "": ["b"]}
    assert heads["checkpoint@ab"][0].needs == needs
    assert heads[""][0].needs == ()


async def test_unknown(given_db: Given) -> None:
    """What was never submitted has no state, cannot be cancelled and not requeued."""
    store = await given_db.store()
    assert await store.job("x") is None
    assert not await store.cancel("x")
    assert not await store.requeue("x")


@pytest.mark.parametrize("delayed", [False, True], ids=["waiting", "delayed"])
async def test_cancel_unheld(given_db: Given, delayed: bool) -> None:
    """A job that nobody holds is done at once when it is cancelled, and its webhook is owed."""
    store = await given_db.store()
    await store.submit([new_job("a", webhook="https://x", metadata={"n": 1})])
    if delayed:
        await give_back(store, await held(store), delay=SOON)
    assert await store.cancel("a")
    row = await known(store, "a")
    assert (row.status, row.code, row.ended) == ("done", "cancelled", START)
    assert row.result is not None
    assert (row.result.status, row.result.metadata, row.result.worker.id) == ("cancelled", {"n": 1}, "dispatcher")
    [letter] = await store.letters(10, LEASE)
    assert (letter.job_id, letter.event, letter.tries) == ("a", "cancelled", 0)
    assert letter.document["webhook"] == "https://x"
    assert letter.result == row.result
    assert await waiting(store) == {}
    assert not await store.cancel("a")
    assert await take(store, "a") is None


async def test_cancel_held(given_db: Given) -> None:
    """The holder of a cancelled job is told at each renewal, from whatever process, and ends it itself."""
    store, other = await given_db.store(), await given_db.store()
    await put(store, "a")
    grant = await held(store)
    assert await other.cancel("a")
    for _ in range(2):
        told = await store.extend([("a", grant.token, None, None)], LEASE)
        assert told == Extended(cancelled=frozenset({"a"}))
    row = await known(other, "a")
    assert (row.status, row.cancelling) == ("leased", True)
    assert await store.end("a", grant.token, result_of("a", "cancelled"), dead=False)
    ended = await known(store, "a")
    assert (ended.status, ended.code) == ("done", "cancelled")
    assert await store.letters(10, LEASE) == []


async def test_cancel_held_then_given_back(given_db: Given) -> None:
    """A cancelled job that its holder gives back is done, and its webhook owed: the holder has not sent any."""
    store = await given_db.store()
    await put(store, "a")
    grant = await held(store)
    await store.cancel("a")
    row = await give_back(store, grant, "draining")
    assert row is not None
    assert (row.status, row.code, [one.code for one in row.attempts]) == ("done", "cancelled", ["draining"])
    assert row.deliveries == 0
    assert [letter.event for letter in await store.letters(10, LEASE)] == ["cancelled"]
    assert await waiting(store) == {}


async def test_cancel_held_then_vanished(given_db: Given) -> None:
    """A cancelled job whose holder vanishes is done, too."""
    store = await given_db.store()
    await put(store, "a")
    await held(store)
    await store.cancel("a")
    given_db.advance(LEASE)
    assert (await store.sweep(max_deliveries=10)).vanished == 1
    row = await known(store, "a")
    assert (row.status, row.code, [one.code for one in row.attempts]) == ("done", "cancelled", [None])
    assert [letter.event for letter in await store.letters(10, LEASE)] == ["cancelled"]


async def test_requeue(given_db: Given) -> None:
    """A dead job runs again with fresh counts, behind its user's others; that it ran before stays known."""
    store = await given_db.store()
    await put(store, "a")
    await give_back(store, await held(store), "internal", charged=True)
    await is_dead(store, await held(store))
    await put(store, "b")
    given_db.advance(SOON)
    assert await store.requeue("a")
    row = await known(store, "a")
    assert (row.status, row.code, row.result, row.deliveries, row.ended) == ("waiting", None, None, 0, None)
    assert [one.code for one in row.attempts] == ["internal", "invalid_job"]
    assert await in_order(store) == ["b", "a"]
    grant = await held(store, "a")
    assert (grant.deliveries, grant.attempts, grant.redelivered) == (1, (), True)
    assert grant.queued_at == START + SOON
    assert await is_done(store, grant)
    assert not await store.requeue("a")


async def test_requeue_withdraws_the_webhook(given_db: Given) -> None:
    """The failure of a run that was begun anew is not told any more: the next may succeed before that is."""
    store = await given_db.store()
    await store.submit([new_job("a", deadline=START + SOON)])
    given_db.advance(SOON)
    await store.sweep(max_deliveries=10)
    assert (await known(store, "a")).status == "dead"
    assert await store.requeue("a")
    assert await store.letters(10, LEASE) == []


async def test_requeue_of_others(given_db: Given) -> None:
    """Only dead jobs can be requeued."""
    store = await given_db.store()
    await put(store, "waits", "held", "done")
    await held(store, "held")
    await is_done(store, await held(store, "done"))
    assert [await store.requeue(one) for one in ("waits", "held", "done")] == [False] * 3


async def test_list(given_db: Given) -> None:
    """Jobs are listed as they had or will have their turn, then those that are over, the latest end first."""
    store = await given_db.store()
    await put(store, "dead", "done", "held", "later", "second")
    await put(store, "first", "gone", priority=1)
    await store.cancel("gone")
    given_db.advance(SOON)
    await is_dead(store, await held(store, "dead"))
    given_db.advance(SOON)
    await is_done(store, await held(store, "done"))
    await give_back(store, await held(store, "later"), delay=SOON)
    grant = await held(store, "held")
    await store.extend([("held", grant.token, 0.5, "generate")], LEASE)
    everything = ["held", "first", "second", "later", "done", "dead", "gone"]
    assert await ids(store) == everything
    assert await ids(store, "waiting") == ["first", "second"]
    assert await ids(store, "leased") == ["held"]
    assert await ids(store, "delayed") == ["later"]
    assert await ids(store, "done") == ["done", "gone"]
    assert await ids(store, "dead") == ["dead"]
    assert await ids(store, limit=3) == everything[:3]
    for number in range(len(everything)):
        assert await ids(store, after=everything[number], limit=2) == everything[number + 1 : number + 3]
    row = (await store.jobs(status="leased"))[0]
    assert (row.node, row.token, row.progress, row.hop) == ("n1", grant.token, 0.5, "generate")
    assert row.lease_until == given_db.clock.now() + LEASE
    assert (await store.jobs(status="delayed"))[0].visible_at == given_db.clock.now() + SOON


async def test_list_of_a_user(given_db: Given) -> None:
    """A user's list has the user's jobs alone; a page after an unknown one is the first."""
    store = await given_db.store()
    await put(store, "a", "b", user="ann")
    await put(store, "c", user="bob")
    await store.cancel("b")
    assert await ids(store, user="ann") == ["a", "b"]
    assert await ids(store, user="bob", after="forgotten") == ["c"]
    assert await ids(store, user="nobody") == []


async def test_images_in_results(given_db: Given, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images within results can be read of the latest few jobs; of the others all but the images."""
    monkeypatch.setattr("dispatcher.store.closing.KEEP_INLINE", 2)
    store = await given_db.store()
    image = ImageResult(index=0, base64="AAAA", format="png", width=1, height=1, bytes=3, sha256="0" * 64)
    for number in range(4):
        await put(store, f"j{number}")
        grant = await held(store)
        await store.end(
            grant.job.id, grant.token, result_of(grant.job.id).model_copy(update={"images": (image,)}), dead=False
        )
    found = [(await known(store, f"j{number}")).result for number in range(4)]
    assert [result.images[0].base64 for result in found if result] == [None, None, "AAAA", "AAAA"]


async def test_forgetting(given_db: Given) -> None:
    """Jobs that were done a week ago are forgotten, their ids too; dead ones never are."""
    store = await given_db.store()
    await put(store, "dead", "old", "new")
    await is_dead(store, await held(store, "dead"))
    await is_done(store, await held(store, "old"))
    given_db.advance(timedelta(days=6))
    await is_done(store, await held(store, "new"))
    given_db.advance(timedelta(days=1, seconds=1))
    await store.sweep(max_deliveries=10)
    assert await ids(store) == ["new", "dead"]
    assert await store.submit([new_job("old", fingerprint="another")]) == [True]
