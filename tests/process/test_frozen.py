"""A node that stands still and comes back when another has done its job; `make test-chaos` has all cells."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.freezing import HOPS, frozen_at
from tests.support.lines import Kind
from tests.support.workshop import MODEL, OTHER_MODEL, workshop

CELLS: list[tuple[Kind, str]] = [
    ("sqlite", "during_upload"),
    ("availability", "before_mark"),
    ("redis", "during_webhook"),
    ("sqs", "before_ack"),
    ("salad", "verified"),
]


@pytest.mark.parametrize(("queue", "cell"), CELLS)
async def test_frozen(queue: Kind, cell: str, tmp_path: Path) -> None:
    """It settles nothing, and publishes nothing that it was not about to; there is one webhook id."""
    async with workshop(tmp_path, models=(MODEL, OTHER_MODEL), queue=queue) as shop:
        published, ledger = await frozen_at(shop, cell)
    assert published.changed(ledger) == set()
    assert published.marks.keys() == {"first/result.json", "job/result.json"}
    assert ledger.breaches() == []
    assert cell not in HOPS or ledger.strays() == set()
