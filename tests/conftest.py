"""What holds for every test."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import structlog

Figures = Callable[[str], None]


def _drop(*_: Any) -> Any:
    raise structlog.DropEvent


@pytest.fixture(autouse=True)
def quiet_logs() -> None:
    """Log lines go nowhere: they would be most of a failing test's output. `capture_logs` hears them all the same."""
    structlog.reset_defaults()
    structlog.configure(processors=[_drop])


@pytest.fixture
def figures(record_property: Callable[[str, object], None]) -> Figures:
    """Takes a line for the summary at the end, which shows it however many processes made the tests."""
    return lambda line: record_property("figures", line)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    passed: list[pytest.TestReport] = terminalreporter.stats.get("passed", [])
    for report in passed:
        for name, line in report.user_properties:
            if name == "figures":
                terminalreporter.write_line(str(line))
