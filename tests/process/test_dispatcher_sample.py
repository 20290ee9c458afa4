"""Dispatchers that are killed, cut off from their database, or wrong about the time; `make test-chaos` has more."""

from __future__ import annotations

import asyncio
import random
from datetime import datetime, timedelta
from pathlib import Path

from tests.support.databases import emptied_postgres, new_database
from tests.support.dispatching import a_job, dispatching
from tests.support.felling import felled
from worker.clock import SystemClock


async def test_the_ledger_balances_though_a_dispatcher_is_killed(tmp_path: Path) -> None:
    """Of two dispatchers on one database one is killed at work: every job ends once, by whoever holds it."""
    url = await asyncio.to_thread(new_database, "felled")
    balance, kills = await felled(
        url,
        tmp_path,
        random.Random(5),
        names=("a", "b"),
        jobs=150,
        nodes=10,
        lease_s=1.0,
        kills=1,
        pause_s=(0.2, 0.4),
        kinds={"bad": 5, "late": 3, "gone": 10},
    )
    assert balance.breaches == []
    assert (kills, balance.ends()["dead job_timeout"], balance.ends()["dead expired"]) == (1, 5, 3)


class Wrong:
    """The clock of a machine that is wrong about the time."""

    def __init__(self, by: timedelta) -> None:
        self._by = by

    def now(self) -> datetime:
        return SystemClock().now() + self._by


async def test_leases_are_by_the_clock_of_the_database() -> None:
    """Two dispatchers whose clocks are two hours apart neither take a lease back early nor let it last longer."""
    url, hour = await asyncio.to_thread(emptied_postgres), timedelta(hours=1)
    async with dispatching(url, clock=Wrong(-hour)) as slow, dispatching(url, clock=Wrong(hour)) as fast:
        for one, other in ((slow, fast), (fast, slow)):
            await one.submit(a_job(f"job-{one.port}"))
            given = (await one.ask(wait=5.0))["generation"]
            assert (await other.view.upkeep.sweep()).vanished == 0
            assert (await other.beat(given))["lost"] == []
            until = datetime.fromisoformat((await other.job(given["id"]))["lease_until"])
            assert abs(until - SystemClock().now()) < hour / 2
            assert (await other.end(given)).status_code == 204
