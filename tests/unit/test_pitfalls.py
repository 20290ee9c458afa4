"""The page of known pitfalls keeps its word: each row names a test that exists, or says who answers it else."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
PAGE = ROOT / "docs" / "pitfalls.md"

LEAST = {"ComfyUI": 47, "Automatic1111, Forge and SD.Next": 21, "Fooocus-API": 15}
"""Rows of each table: none may be dropped without a reason given here."""

ELSEWHERE = ("with a later version", "by the image")
"""What a row says that the worker alone does not answer."""

_PROOF = re.compile(r"`(tests/[\w/]+\.py)::((?:\w+::)?test_\w+)`")


@dataclass(frozen=True)
class Row:
    """One pitfall."""

    table: str
    cells: tuple[str, ...]

    @property
    def proofs(self) -> list[tuple[str, str]]:
        """Files and the tests in them, as ``test_x`` or ``TestY::test_x``."""
        return [(found[1], found[2]) for found in _PROOF.finditer(self.cells[-1])]

    @property
    def is_well_formed(self) -> bool:
        """Three filled cells, the last of which holds proofs and nothing else."""
        return len(self.cells) == 3 and all(self.cells[:2]) and not _PROOF.sub("", self.cells[2]).replace("<br>", "")

    @property
    def is_elsewhere(self) -> bool:
        return any(word in self.cells[1] for word in ELSEWHERE)


def rows(page: str) -> Iterator[Row]:
    """The rows of all tables, without their heads."""
    table = ""
    lines = page.splitlines()
    for line, after in zip(lines, [*lines[1:], ""], strict=True):
        if line.startswith("## "):
            table = line.removeprefix("## ")
        elif line.startswith("|") and not any(one.startswith("| --- ") for one in (line, after)):
            yield Row(table, tuple(cell.strip() for cell in line.removeprefix("|").removesuffix("|").split("|")))


@cache
def named_in(path: Path) -> frozenset[str]:
    """The tests of a file, also those of classes and those with parameters; none where there is no file."""
    if not path.is_file():
        return frozenset()
    found = set()
    for node in ast.parse(path.read_text()).body:
        holder = f"{node.name}::" if isinstance(node, ast.ClassDef) and node.name.startswith("Test") else ""
        for inner in node.body if isinstance(node, ast.ClassDef) and holder else [node]:
            if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef) and inner.name.startswith("test_"):
                found.add(f"{holder}{inner.name}")
    return frozenset(found)


def complaints(page: str, root: Path, least: dict[str, int]) -> list[str]:
    """What is wrong with the page."""
    found, count = [], dict.fromkeys(least, 0)
    for row in rows(page):
        name = f"{row.table}: {row.cells[0][:60]}"
        count[row.table] = count.get(row.table, 0) + 1
        if not row.is_well_formed:
            found.append(f"{name}: three cells, and nothing but proofs in the last")
        if not row.proofs and not row.is_elsewhere:
            found.append(f"{name}: no proof")
        found += [f"{name}: no test {file}::{test}" for file, test in row.proofs if test not in named_in(root / file)]
    found += [f"{table}: {count[table]} rows, {most} must be" for table, most in least.items() if count[table] < most]
    return found + [f"{table}: no table of ours" for table in count.keys() - least.keys()]


def test_every_pitfall_has_a_proof_that_exists() -> None:
    """Whoever renames or drops a test that the page names, or a row, hears of it."""
    assert complaints(PAGE.read_text(), ROOT, LEAST) == []


def test_no_pitfall_is_told_twice() -> None:
    """A row counts once."""
    told = [row.cells[0] for row in rows(PAGE.read_text())]
    assert len(set(told)) == len(told)


GOOD = "| it fails | it is caught | `tests/test_a.py::test_one`<br>`tests/test_a.py::TestB::test_two` |"


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (GOOD, []),
        ("| it fails | caught with a later version | |", []),
        ("| it fails | set by the image | `tests/test_a.py::test_three` |", []),
        ("| it fails | it is caught | |", ["T: it fails: no proof"]),
        ("| it fails | it is caught | `tests/test_a.py::test_gone` |", ["no test tests/test_a.py::test_gone"]),
        ("| it fails | it is caught | `tests/test_b.py::test_one` |", ["no test tests/test_b.py::test_one"]),
        ("| it fails | it is caught | `tests/test_a.py::test_two` |", ["no test tests/test_a.py::test_two"]),
        ("| it fails | it is caught | `tests/test_a.py::helper` |", ["nothing but proofs", "no proof"]),
        ("| it fails | it is caught | a test `tests/test_a.py::test_one` |", ["nothing but proofs"]),
        ("| it fails | | `tests/test_a.py::test_one` |", ["three cells"]),
        ("| it fails | it is caught | or not | `tests/test_a.py::test_one` |", ["three cells"]),
        ("", ["T: 0 rows, 1 must be"]),
        (f"{GOOD}\n## U\n{GOOD}", ["U: no table of ours"]),
    ],
)
def test_flaws_are_found(row: str, said: list[str], tmp_path: Path) -> None:
    """Each flaw that a page may have is told, and nothing else is."""
    folder = tmp_path / "tests"
    folder.mkdir()
    (folder / "test_a.py").write_text(
        "import pytest\ndef test_one(): ...\nclass TestB:\n    def test_two(self): ...\n"
        "@pytest.mark.parametrize('a', [1])\nasync def test_three(a): ...\ndef helper(): ...\n"
    )
    page = f"# Page\n\n## T\n\n| the server | the worker | proof |\n| --- | --- | --- |\n{row}\n"
    found = complaints(page, tmp_path, {"T": 1})
    assert len(found) == len(said)
    assert all(part in whole for part, whole in zip(said, found, strict=True))
