"""The main job on one machine: a worker's process beside real servers, configured by its environment alone."""

from __future__ import annotations

from pathlib import Path

from tests.support.workshop import workshop


async def test_fifty_jobs(tmp_path: Path) -> None:
    """Each has one result document, objects with the hashes it names, one success webhook id, one hand-over."""
    async with workshop(tmp_path) as shop:
        await shop.submit_many(50)
        await shop.finished(WORKER_WARMUP="default", WORKER_QUEUE_VISIBILITY="60s")
        ledger = await shop.ledger()
    assert ledger.breaches() == []
    assert ledger.strays() == set()
    assert {state.deliveries for state in ledger.states} == {1}
    assert len(ledger.told) == 50
    assert sorted(made.prompt for made in ledger.made if made.prompt in shop.wanted) == sorted(shop.wanted)
