"""Ten thousand jobs through three workers, whatever fails around them: the account balances to the job."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.conftest import Figures
from tests.support.lines import Kind
from tests.support.mill import milling
from tests.support.shaky import MISHAPS
from tests.support.tally import tallied

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(3600)]

JOBS_A_KILL, JOBS_A_RESTART = 200, 500


@pytest.mark.parametrize(
    ("queue", "jobs"),
    [("redis", 10_000), ("sqlite", 2000), ("availability", 2000), ("sqs", 2000), ("salad", 2000)],
)
async def test_every_job_is_accounted_for(queue: Kind, jobs: int, tmp_path: Path, figures: Figures) -> None:
    """Each has one truthful end, with its objects, its one webhook id and its hand-overs, and nothing is left."""
    kills, restarts = jobs // JOBS_A_KILL, jobs // JOBS_A_RESTART
    async with milling(tmp_path, queue, jobs, seed=jobs) as mill:
        await mill.run(kills=kills, restarts=restarts)
        tally = await tallied(mill)
    assert tally.breaches == []
    assert (mill.shop.kills, len(mill.outages)) == (kills, restarts)
    assert set(mill.store.chance.met) == set(mill.hook.chance.met) == set(MISHAPS)
    figures(f"{queue}: {tally.figures()}")
