"""A node that stands still at an effect and comes back when another has done its job; `make test-chaos` has all."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.freezing import frozen_at
from tests.support.workshop import MODEL, OTHER_MODEL, workshop


@pytest.mark.parametrize("cell", ["during_upload", "before_mark", "during_webhook"])
async def test_frozen(cell: str, tmp_path: Path) -> None:
    """What the published result names stays byte for byte, and there is one success webhook id."""
    async with workshop(tmp_path, models=(MODEL, OTHER_MODEL)) as shop:
        published, ledger = await frozen_at(shop, cell)
    assert published.changed(ledger) == set()
    assert published.marks.keys() == {"first/result.json", "job/result.json"}
    assert ledger.breaches() == []
