"""Sixty jobs through two workers, whatever fails around them; `make test-chaos` has ten thousand."""

from __future__ import annotations

from pathlib import Path

from tests.support.mill import Sort, milling
from tests.support.tally import tallied

SHARES: dict[Sort, float] = {"good": 60, "twice": 10, "late": 10, "refused": 8, "cancelled": 8, "faulty": 4}


async def test_every_job_is_accounted_for(tmp_path: Path) -> None:
    """Each has one truthful end, with its objects, its one webhook id and its hand-overs, and nothing is left."""
    async with milling(tmp_path, "redis", 60, seed=60, workers=2, shares=SHARES) as mill:
        await mill.run(kills=2, restarts=1)
        tally = await tallied(mill)
    assert tally.breaches == []
    assert (mill.shop.kills, len(mill.outages)) == (2, 1)
