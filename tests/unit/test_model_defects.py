"""The page on models keeps its word: each defect of others' caches names the tests that prove ours has it not."""

from __future__ import annotations

from tests.unit.test_pitfalls import ROOT, complaints, rows

PAGE = ROOT / "docs" / "models.md"
FIRST = "## Defects of the published example that ours has not"
LEAST = {
    "Defects of the published example that ours has not": 14,
    "Defects of comfyui-api's cache that ours has not": 15,
}
"""Rows of each table: none may be dropped without a reason given here."""


def defects() -> str:
    """The part of the page that tells of them: its last."""
    before, heading, after = PAGE.read_text().partition(FIRST)
    assert before
    return heading + after


def test_every_defect_has_a_proof_that_exists() -> None:
    """Whoever renames or drops a test that the page names, or a row, hears of it."""
    assert complaints(defects(), ROOT, LEAST) == []


def test_no_defect_is_told_twice() -> None:
    """A row counts once, and none is left to a later version."""
    found = list(rows(defects()))
    assert len({row.cells[0] for row in found}) == len(found) == sum(LEAST.values())
    assert not any(row.is_elsewhere for row in found)
