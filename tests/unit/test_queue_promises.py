"""The page of the queues keeps its word: each outage is told for each queue, with tests that exist."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

from tests.unit.test_pitfalls import Row, named_in, rows
from worker.settings.queue import QueueKind

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "queues.md"
QUEUES = [f"`{kind}`" for kind in get_args(QueueKind) if kind != "none"]
LEAST = 8
"""Outages: none may be dropped."""

NOT_HERE = "Does not apply: "


def outages(page: str) -> Iterator[tuple[str, list[Row]]]:
    """The tables of the part about outages, each with its heading."""
    _, _, told = page.partition("\n## Outages\n")
    for part in told.split("\n### ")[1:]:
        name, _, text = part.partition("\n")
        yield name, list(rows(text))


def complaints(page: str, root: Path, least: int) -> list[str]:
    """What is wrong with the page."""
    found, count = [], 0
    for name, table in outages(page):
        count += 1
        if sorted(row.cells[0] for row in table) != sorted(QUEUES):
            found.append(f"{name}: not every queue once")
        for row in table:
            where = f"{name}, {row.cells[0]}"
            if not row.is_well_formed:
                found.append(f"{where}: three cells, and nothing but proofs in the last")
            if bool(row.proofs) == row.cells[1].startswith(NOT_HERE):
                found.append(f"{where}: either proofs, or why it does not apply")
            found += [
                f"{where}: no test {file}::{test}" for file, test in row.proofs if test not in named_in(root / file)
            ]
    return found if count >= least else [*found, f"{count} outages, {least} must be"]


def test_every_promise_has_a_proof_that_exists() -> None:
    """Whoever renames or drops a test that the page names, a queue or an outage, hears of it."""
    assert complaints(PAGE.read_text(), ROOT, LEAST) == []


def test_every_queue_is_compared() -> None:
    """The tables of what to take and what each keeps name every queue."""
    before, _, _ = PAGE.read_text().partition("\n## Setting up\n")
    assert [kind for kind in QUEUES if before.count(f"{kind} |") < 2] == []


GOOD = "| {} | it waits | `tests/test_a.py::test_one` |"


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (GOOD, []),
        ("| {} | Does not apply: a file | |", []),
        ("| {} | it waits | |", "either proofs, or why"),
        ("| {} | Does not apply: a file | `tests/test_a.py::test_one` |", "either proofs, or why"),
        ("| {} | it waits | `tests/test_a.py::test_gone` |", "no test tests/test_a.py::test_gone"),
        ("| {} | it waits | seen by hand `tests/test_a.py::test_one` |", "nothing but proofs"),
        ("", "not every queue once"),
        (f"{GOOD}\n{GOOD}", "not every queue once"),
    ],
)
def test_flaws_are_found(changed: str, said: str | list[str], tmp_path: Path) -> None:
    """Each flaw that the page may have is told, and nothing else is."""
    folder = tmp_path / "tests"
    folder.mkdir()
    (folder / "test_a.py").write_text("def test_one(): ...\n")
    lines = [GOOD.format(queue) for queue in QUEUES[1:]]
    table = "\n".join([*changed.replace("{}", QUEUES[0]).splitlines(), *lines])
    page = f"# Page\n\n## Outages\n\n### Away\n\n| queue | what happens | proof |\n| --- | --- | --- |\n{table}\n"
    found = complaints(page, tmp_path, 1)
    assert [said in one for one in found] == [True] if isinstance(said, str) else found == said
    assert complaints(page, tmp_path, 2)[-1] == "1 outages, 2 must be"
