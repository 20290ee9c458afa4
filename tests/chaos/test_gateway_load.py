"""Two hundred callers at once and a window of one, on real sockets."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import Figures
from tests.process.test_gateway_load import crowded

pytestmark = pytest.mark.chaos


@pytest.mark.parametrize("pending", [16, 64])
async def test_two_hundred_callers_and_a_window_of_one(pending: int, tmp_path: Path, figures: Figures) -> None:
    """None is lost, the order is fair, the others are told when to come, and the probes answer."""
    figures(await crowded(tmp_path, 200, pending, 10))
