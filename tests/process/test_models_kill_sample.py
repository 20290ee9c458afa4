"""SIGKILL at some instants of a model cache at work; `make test-chaos` tries very many."""

from __future__ import annotations

from pathlib import Path

from tests.support.model_kills import besieged


async def test_a_cache_killed_at_work(tmp_path: Path) -> None:
    """After five kills at seeded instants nothing corrupt is served, nothing leaks, and the cap holds at each look."""
    toll = await besieged(tmp_path, kills=5, seed=7)
    assert toll.breaches == []
    assert (toll.kills, toll.looks > 5, toll.landed > 0) == (5, True, True)
