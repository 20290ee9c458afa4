"""What an operator looks up at night is there: the pages name every event, code, phase, exit code and metric."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from worker import metrics
from worker.errors import WorkerError
from worker.status import Phase
from worker.supervisor import ExitCode

ROOT = Path(__file__).parents[2]
LOGGED = frozenset({"info", "warning", "error", "exception"})
EVENT = re.compile(r"[a-z]+(_[a-z]+)+|[a-z]+")


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text()


def events() -> Iterator[str]:
    """The events that the worker's sources log above debug."""
    for path in sorted((ROOT / "worker").rglob("*.py")):
        if "simulators" not in path.parts:
            yield from events_of(ast.parse(path.read_text()))


def events_of(tree: ast.Module) -> Iterator[str]:
    for call in ast.walk(tree):
        if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr in LOGGED):
            continue
        if re.match(r"(self\.)?_?log(ger)?\b", ast.unparse(call.func.value)) and call.args:
            named = (node.value for node in ast.walk(call.args[0]) if isinstance(node, ast.Constant))
            yield from (name for name in named if isinstance(name, str))


def errors(root: type[WorkerError] = WorkerError) -> Iterator[type[WorkerError]]:
    for kind in root.__subclasses__():
        if kind.__module__ == "worker.errors":
            yield from errors(kind) if kind.__subclasses__() else (kind,)


def test_every_event_is_explained() -> None:
    """One who reads a log line at night finds the event and what to do."""
    found, told = set(events()), page("events.md")
    assert len(found) > 100
    assert all(EVENT.fullmatch(name) for name in found)
    assert {name for name in found if f"`{name}`" not in told} == set()


def test_no_event_is_explained_that_is_not_logged() -> None:
    """The page holds nothing that was renamed since."""
    first = re.findall(r"^\| ([^|]*) \|", page("events.md"), re.MULTILINE)
    told = {name for cell in first for name in re.findall(r"`([a-z_]+)`", cell)}
    sources = "\n".join(path.read_text() for path in (ROOT / "worker").rglob("*.py"))
    assert {name for name in told if f'"{name}"' not in sources} == set()


@pytest.mark.parametrize("code", sorted(kind.code for kind in errors()))
def test_every_error_code_is_explained(code: str) -> None:
    """In the table of what becomes of a job, or beside it."""
    inward = {"lease_lost", "queue_unavailable", "webhook_failed", "config_error", "model_in_use"}
    assert code in inward or f"`{code}`" in page("operations.md")


def test_every_phase_and_exit_code_is_explained() -> None:
    """Whoever looks at a probe or at how a container ended finds what it means."""
    told = page("operations.md")
    assert {phase for phase in Phase if f"`{phase}`" not in told} == set()
    assert {code for code in ExitCode if f"| {int(code)} |" not in told} == set()


def test_every_metric_is_explained() -> None:
    """By its whole name, on one of the two pages that have metrics."""
    told = page("operations.md") + page("models.md")
    names = [value for value in vars(metrics).values() if isinstance(value, str) and value.startswith(metrics.PREFIX)]
    names += [name for name, _ in metrics.RATES.values()]
    assert {name for name in names if name != metrics.PREFIX and f"{name}" not in told} == set()
