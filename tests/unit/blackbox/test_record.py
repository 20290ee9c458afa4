"""What a record says, and how it is made to fit."""

from __future__ import annotations

from worker.blackbox.record import LINE_MOST, Held, Record, cut, fitted, last_run

JOBS = tuple(Held(id=f"{number}-{'x' * 100}", hop="waiting", hop_s=1.0, token=number) for number in range(64))
BUSY = Record(run="r", worker="w", at=1.0, jobs=JOBS, lines=tuple("line" * 50 for _ in range(20)))


def test_what_is_too_long_loses_its_oldest_lines_and_then_its_last_jobs() -> None:
    """A record always has its slot, and says how many jobs it does not name."""
    whole = Record.model_validate_json(fitted(BUSY, 100_000))
    assert whole == BUSY
    for most in (9000, 4000, 1000, 200, 90):
        text = fitted(BUSY, most)
        record = Record.model_validate_json(text)
        assert len(text) <= most
        assert record.held == len(JOBS)
        assert record.jobs == JOBS[: len(record.jobs)]
        assert record.lines == BUSY.lines[len(BUSY.lines) - len(record.lines) :]
        assert not record.lines or record.jobs == JOBS


def test_the_last_run_is_told_from_those_before_it() -> None:
    """Also where records are unreadable, or of a version that says more."""
    first, second = (Record(run=run, worker="w", at=1.0).to_json() for run in ("a", "b"))
    later = b'{"run": "b", "worker": "w", "at": 2.0, "new": [1], "jobs": [{"id": "j", "hop": "images", "new": 1}]}'
    found = last_run([first, second, b"\xff", b"{}", later, b'{"run": 1}'])
    assert [(record.run, record.at, record.held) for record in found] == [("b", 1.0, 0), ("b", 2.0, 1)]
    assert last_run([]) == []
    assert last_run([b"nothing"]) == []


def test_long_lines_are_cut() -> None:
    """Prompts and tracebacks of a server know no end."""
    assert cut(["short", "x" * (LINE_MOST + 1)]) == ("short", "x" * LINE_MOST + "...")
