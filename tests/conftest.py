"""What holds for every test."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest
import structlog
from hypothesis import HealthCheck, settings

Figures = Callable[[str], None]

LINES_OF_A_FAILURE = 12

# An example may take as long as a busy machine makes it take.
settings.register_profile("busy", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")


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


class _AtOnce:
    """Tells of each failure when it happens: a run that is cut off has no summary."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        terminal = self._config.pluginmanager.get_plugin("terminalreporter")
        if report.failed and terminal is not None:
            terminal.ensure_newline()
            terminal.write_line(f"FAILED {report.nodeid} ({report.when}, {report.duration:.0f} s)")
            terminal.write_line("\n".join(report.longreprtext.splitlines()[-LINES_OF_A_FAILURE:]))


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(_AtOnce(config))


def pytest_collection_finish() -> None:
    """Nine thousand collected tests are not looked through again by every full collection of garbage."""
    gc.collect()
    gc.freeze()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    passed: list[pytest.TestReport] = terminalreporter.stats.get("passed", [])
    for report in passed:
        for name, line in report.user_properties:
            if name == "figures":
                terminalreporter.write_line(str(line))
