"""What every test of workflows needs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.workflows import forgotten


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    with forgotten():
        yield
