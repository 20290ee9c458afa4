"""What holds for every test."""

from __future__ import annotations

import logging

import pytest
import structlog


@pytest.fixture(autouse=True)
def quiet_logs() -> None:
    """Logs below warning are not made: they would be most of a failing test's output."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
