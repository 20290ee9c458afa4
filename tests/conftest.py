"""What holds for every test."""

from __future__ import annotations

from typing import Any

import pytest
import structlog


def _drop(*_: Any) -> Any:
    raise structlog.DropEvent


@pytest.fixture(autouse=True)
def quiet_logs() -> None:
    """Log lines go nowhere: they would be most of a failing test's output. `capture_logs` hears them all the same."""
    structlog.reset_defaults()
    structlog.configure(processors=[_drop])
