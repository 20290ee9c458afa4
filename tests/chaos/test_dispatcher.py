"""Dispatchers and workers that are killed again and again: the long runs of `make test-chaos`."""

from __future__ import annotations

import asyncio
import random
import time
from pathlib import Path

import pytest

from tests.chaos.conftest import Figures
from tests.support.databases import new_database
from tests.support.felling import felled

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(3600)]
KINDS = {"bad": 100, "cursed": 20, "late": 20, "gone": 100}


async def test_one_of_two_dispatchers_killed_again_and_again(tmp_path: Path, figures: Figures) -> None:
    """Ten thousand jobs on one PostgreSQL: the ledger balances to the job."""
    began = time.monotonic()
    url = await asyncio.to_thread(new_database, "felled")
    balance, kills = await felled(
        url, tmp_path, random.Random(10_000), names=("a", "b"), jobs=10_000, nodes=30, lease_s=4.0, kinds=KINDS
    )
    assert balance.breaches == []
    assert kills > 10, "hardly anything happened"
    figures(f"two dispatchers, PostgreSQL: {kills} kills, {balance.line()}, {time.monotonic() - began:.0f} s")


async def test_the_only_dispatcher_killed_again_and_again(tmp_path: Path, figures: Figures) -> None:
    """A thousand jobs in one SQLite file, and nobody to answer while the dispatcher is away: the same holds."""
    began = time.monotonic()
    url = f"sqlite:///{tmp_path / 'jobs.db'}"
    balance, kills = await felled(
        url,
        tmp_path,
        random.Random(1000),
        names=("a",),
        jobs=1000,
        nodes=10,
        lease_s=4.0,
        pause_s=(0.2, 3.0),
        kinds=KINDS,
    )
    assert balance.breaches == []
    assert kills > 5, "hardly anything happened"
    figures(f"one dispatcher, SQLite: {kills} kills, {balance.line()}, {time.monotonic() - began:.0f} s")
