"""Leases renewed together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

import pytest

from dispatcher.heartbeats import Heartbeats, held_of
from dispatcher.store.base import Extended, Store, StoreUnavailable
from tests.support.boards import LEASE, BoardStore
from tests.support.waiting import wait_until
from worker.tasks import cancel_all
from worker.wire import Running


@asynccontextmanager
async def beating(store: BoardStore) -> AsyncIterator[Heartbeats]:
    heartbeats = Heartbeats(cast("Store", store), LEASE)
    task = asyncio.create_task(heartbeats.run(), name="heartbeats")
    try:
        yield heartbeats
    finally:
        await cancel_all({task})


def test_only_our_tokens_can_be_renewed() -> None:
    """Whatever else stands there is lost."""
    running = [Running(id="a", token=1), Running(id="b", token="1"), Running(id="c", token=True), Running(id="d")]
    held, lost = held_of(running)
    assert [one[:2] for one in held] == [("a", 1)]
    assert lost == {"b", "c", "d"}


async def test_many_are_renewed_in_one_statement() -> None:
    """Each hears of its own jobs alone."""
    store = BoardStore()
    store.lost, store.cancelled = frozenset({"b"}), frozenset({"c"})
    async with beating(store) as heartbeats:
        answers = await asyncio.gather(
            heartbeats.renew([("a", 1, None, None)]),
            heartbeats.renew([("b", 2, 0.5, "generate")]),
            heartbeats.renew([("c", 3, None, None)]),
            heartbeats.renew([]),
        )
    assert store.calls == ["extend"]
    assert answers[0] == answers[3] == Extended()
    assert answers[1] == Extended(lost=frozenset({"b"}))
    assert answers[2] == Extended(cancelled=frozenset({"c"}))
    assert heartbeats.cancelled([("c", 3, None, None), ("a", 1, None, None)]) == {"c"}


async def test_an_outage_is_told_and_passes() -> None:
    """Nobody believes a lease renewed that was not."""
    store = BoardStore()
    store.fails = {"extend"}
    async with beating(store) as heartbeats:
        with pytest.raises(StoreUnavailable):
            await heartbeats.renew([("a", 1, None, None)])
        store.fails = set()
        assert await heartbeats.renew([("a", 1, None, None)]) == Extended()


async def test_what_was_renewed_lately_is_not_renewed_for_a_mention() -> None:
    """A request for work that names what is held renews only what needs it."""
    store = BoardStore()
    async with beating(store) as heartbeats:
        heartbeats.mention([("a", 1, None, None)])
        await wait_until(lambda: store.calls)
        heartbeats.mention([("a", 1, None, None)])
        await heartbeats.renew([("b", 1, None, None)])
        assert store.calls == ["extend", "extend"]
        heartbeats.over("a")
        heartbeats.mention([("a", 1, None, None)])
        await wait_until(lambda: len(store.calls) == 3)


async def test_who_waits_at_the_end_is_not_left_waiting() -> None:
    """A renewal that cannot be made any more is cut off, whether it was under way or not."""
    store = BoardStore()
    store.gate.clear()
    async with beating(store) as heartbeats:
        first = asyncio.create_task(heartbeats.renew([("a", 1, None, None)]), name="first")
        await wait_until(lambda: store.calls)
        second = asyncio.create_task(heartbeats.renew([("b", 1, None, None)]), name="second")
        await asyncio.wait({second}, timeout=0)
    await asyncio.wait({first, second})
    assert (first.cancelled(), second.cancelled()) == (True, True)
