"""SIGKILL at many instants of a model cache at work: downloads, landings, evictions and starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.conftest import Figures
from tests.support.model_kills import besieged

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1200)]


@pytest.mark.parametrize(("kills", "seed"), [(50, 50), (300, 4)])
async def test_a_cache_killed_at_work(kills: int, seed: int, tmp_path: Path, figures: Figures) -> None:
    """After each kill nothing corrupt is served, nothing leaks, transfers are resumed, and the cap always holds."""
    toll = await besieged(tmp_path, kills, seed)
    assert toll.breaches == []
    assert toll.kills == kills
    assert min(toll.landed, toll.evicted) > kills / 10
    assert min(toll.resumed, toll.spared) > 0
    figures(toll.line(seed))
