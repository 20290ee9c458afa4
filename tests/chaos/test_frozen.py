"""A node that stands still at each hop and in each effect, past its lease, while another does its job."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.conftest import Figures
from tests.support.freezing import CELLS, HOPS, frozen_at
from tests.support.lines import Kind
from tests.support.workshop import MODEL, OTHER_MODEL, Store, workshop

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(300)]


@pytest.mark.parametrize(
    ("store", "queue"),
    [
        ("rclone", "sqlite"),
        ("moto", "sqlite"),
        ("rclone", "availability"),
        ("rclone", "redis"),
        ("rclone", "sqs"),
        ("rclone", "salad"),
    ],
    ids=["sqlite", "sqlite-moto", "availability", "redis", "sqs", "salad"],
)
@pytest.mark.parametrize("cell", CELLS)
async def test_frozen(cell: str, store: Store, queue: Kind, tmp_path: Path, figures: Figures) -> None:
    """The thawed one settles nothing, what a published result names stays byte for byte, and there is one webhook id.

    It uploads nothing either, unless it was about to when it was frozen. The result document itself stays too, but for
    one case: its write was under way in the zombie, and the store ignores the condition.
    """
    async with workshop(tmp_path, models=(MODEL, OTHER_MODEL), store=store, queue=queue) as shop:
        published, ledger = await frozen_at(shop, cell)
    assert published.changed(ledger) == set()
    assert ledger.breaches() == []
    assert cell not in HOPS or ledger.strays() == set()
    replaced = any(ledger.objects[key] != body for key, body in published.marks.items())
    assert replaced == ((cell, store) == ("during_mark", "rclone"))
    figures(f"frozen {cell}, {store}, {queue}: {len(ledger.told)} webhooks, {len(ledger.strays())} strays")
