"""Dispatchers that are killed, cut off from their database, or wrong about the time; `make test-chaos` has more."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

from tests.support.databases import new_database
from tests.support.felling import felled


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
