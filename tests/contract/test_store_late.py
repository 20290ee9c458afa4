"""What reaches the database late, through a process that was held up."""

from __future__ import annotations

from datetime import timedelta

from tests.support.clock import START, FakeClock
from tests.support.databases import Given, open_given
from tests.support.stores import LEASE, held, known, put

__all__ = ["open_given"]


async def test_a_late_renewal_shortens_no_lease(given_db: Given) -> None:
    """Its holder may have been told meanwhile, by another process, that the job is its own for longer."""
    store = await given_db.store()
    late = await given_db.store(FakeClock(START - timedelta(seconds=30)))
    await put(store, "a")
    grant = await held(store)
    told = await late.extend([("a", grant.token, 0.5, None)], LEASE)
    assert not told.lost
    row = await known(store, "a")
    assert (row.lease_until, row.progress) == (START + LEASE, 0.5)
