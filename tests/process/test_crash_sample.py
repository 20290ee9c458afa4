"""SIGKILL at some of the hops and instants; `make test-chaos` tries all of them and very many."""

from __future__ import annotations

import random
from pathlib import Path
from typing import get_args

import pytest

from tests.support.crashes import crash_at_random, knobs
from tests.support.lines import Kind
from tests.support.matrix import ATTEMPTS, crash_matrix
from tests.support.workshop import workshop
from worker.failpoints import POINTS

_rng = random.Random(21)
SAMPLE = [(queue, _rng.choice(POINTS), _rng.choice(ATTEMPTS)) for queue in get_args(Kind)]
"""A cell of the matrix for each queue."""


@pytest.mark.parametrize(("queue", "point", "attempt"), SAMPLE)
async def test_killed_at_a_hop(queue: Kind, point: str, attempt: int, tmp_path: Path) -> None:
    """Whatever was done before the kill, the job ends exactly once, is made once, and is not charged for it."""
    async with workshop(tmp_path, queue=queue) as shop:
        assert await crash_matrix(shop, point, (attempt,)) == []


async def test_killed_at_random(tmp_path: Path) -> None:
    """Five kills at seeded instants leave every promise kept."""
    async with workshop(tmp_path, knobs()) as shop:
        await crash_at_random(shop, random.Random(20260501), 5)
        assert await shop.breaches() == []
