"""SIGKILL at some of the failpoints and instants; `make test-chaos` tries all of them and very many."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.support.crashes import crash_at, crash_at_random, knobs
from tests.support.lines import Kind
from tests.support.workshop import workshop

CELLS: list[tuple[str, Kind]] = [
    ("admitted", "sqlite"),
    ("generated", "availability"),
    ("after_upload", "sqlite"),
    ("after_mark", "availability"),
    ("before_ack", "sqlite"),
    ("after_reject", "sqlite"),
]


@pytest.mark.parametrize(("point", "queue"), CELLS)
async def test_killed_at_a_failpoint(point: str, queue: Kind, tmp_path: Path) -> None:
    """Whatever was done before the kill, every job ends exactly once and its success is made once."""
    async with workshop(tmp_path, queue=queue) as shop:
        await crash_at(shop, point)
        assert await shop.breaches() == []


async def test_killed_at_random(tmp_path: Path) -> None:
    """Five kills at seeded instants leave every promise kept."""
    async with workshop(tmp_path, knobs()) as shop:
        await crash_at_random(shop, random.Random(20260501), 5)
        assert await shop.breaches() == []
