"""Dispatchers and workers that are killed again and again: the long runs of `make test-chaos`."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from tests.chaos.conftest import Figures
from tests.support.crashes import knobs
from tests.support.databases import new_database
from tests.support.felling import Plan, felled
from tests.support.outage import server_of_its_own
from tests.support.waiting import wait_until
from tests.support.workshop import Life, Workshop, all_keys, workshop

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(3600)]
KINDS = {"bad": 100, "cursed": 20, "late": 20, "gone": 100}


async def test_one_of_two_dispatchers_killed_again_and_again(tmp_path: Path, figures: Figures) -> None:
    """Ten thousand jobs on one PostgreSQL, some freezes among the kills: the ledger balances to the job."""
    began = time.monotonic()
    url = await asyncio.to_thread(new_database, "felled")
    plan = Plan(names=("a", "b"), jobs=10_000, kinds=KINDS, nodes=30, lease_s=4.0, seed=10_000, frozen=0.2)
    run = await felled(url, tmp_path, plan)
    assert run.balance.breaches == [], "; ".join(run.balance.breaches)
    assert run.kills > 10, "hardly anything happened"
    figures(f"two dispatchers, PostgreSQL: {run.line()}, {time.monotonic() - began:.0f} s")


async def test_the_only_dispatcher_killed_again_and_again(tmp_path: Path, figures: Figures) -> None:
    """A thousand jobs in one SQLite file, and nobody to answer while the dispatcher is away: the same holds."""
    began = time.monotonic()
    url = f"sqlite:///{tmp_path / 'jobs.db'}"
    plan = Plan(names=("a",), jobs=1000, kinds=KINDS, nodes=10, lease_s=4.0, seed=1000)
    run = await felled(url, tmp_path, plan)
    assert run.balance.breaches == [], "; ".join(run.balance.breaches)
    assert run.kills > 5, "hardly anything happened"
    figures(f"one dispatcher, SQLite: {run.line()}, {time.monotonic() - began:.0f} s")


async def test_workers_hold_their_images_while_the_database_is_away(tmp_path: Path, figures: Figures) -> None:
    """A server that is stopped and started: generations go on, no effect happens without a lease, nothing is lost."""
    began = time.monotonic()
    with server_of_its_own() as server:
        async with workshop(tmp_path, knobs(), queue="availability", database=server.url) as shop:
            await shop.submit_many(12)
            async with shop.worker("w1", WORKER_LOG_LEVEL="debug") as life:
                for outage in range(1, 4):
                    await another_begins(shop)
                    await asyncio.to_thread(server.stop)
                    await refused(life, 40)
                    effects = await seen(shop)
                    await refused(life, 20)
                    assert await seen(shop) == effects, f"something happened without a lease in outage {outage}"
                    await asyncio.to_thread(server.start)
                    await shop.submit_many(4)
                await shop.ended(life)
                assert await life.stop() == 0, life.tail()
            ledger = await shop.ledger()
    assert ledger.breaches() == []
    handed = sum(state.deliveries for state in ledger.states)
    figures(
        f"three outages of PostgreSQL: {len(shop.wanted)} jobs, {handed} hand-overs, {time.monotonic() - began:.0f} s"
    )


async def another_begins(shop: Workshop) -> None:
    before = shop.generations()
    await wait_until(lambda: shop.generations() > before, timeout=60)


async def refused(life: Life, count: int) -> None:
    """Until so many more renewals have failed: at this lease forty take longer than it lasts."""
    before = len(life.events("lease_not_renewed"))
    await wait_until(lambda: len(life.events("lease_not_renewed")) >= before + count, timeout=60)


async def seen(shop: Workshop) -> tuple[set[str], int]:
    """The objects that stand, and how many webhooks were told."""
    return set(await asyncio.to_thread(all_keys, shop.bucket)), len(shop.receiver.told)
