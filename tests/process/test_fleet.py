"""`make demo-fleet`: real workers before a real dispatcher, one of them killed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from demo.__main__ import app
from demo.plan import Plan
from demo.run import Demo
from demo.service import NotServing, Service


async def test_a_small_fleet_keeps_its_books(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two workers, one killed with jobs in its hands: all jobs are done once each, and the exit code says so."""
    plan = Plan("small", workers=2, models=8, jobs=20, kills=1, freezes=0, lease_s=2.0)
    assert await Demo(plan, tmp_path).run() == 0, capsys.readouterr()
    told = capsys.readouterr().out
    assert "the ledger balances" in told
    assert "was killed; it held" in told
    results = [json.loads(path.read_bytes()) for path in (tmp_path / "images").glob("*/result.json")]
    assert {result["status"] for result in results} == {"succeeded"}
    assert len(results) == 20
    assert {result["worker"]["id"] for result in results} == {"node-1", "node-2"}


async def test_a_dispatcher_that_cannot_begin_is_told_at_once(tmp_path: Path) -> None:
    """Its log says what is wrong."""
    log = tmp_path / "dispatcher.log"
    with pytest.raises(NotServing, match=r"dispatcher\.log"):
        async with Service.running(log, {"DISPATCHER_DATABASE_URL": "mysql://nowhere"}):
            pass
    assert "DISPATCHER_DATABASE_URL" in log.read_text()


@pytest.mark.parametrize("options", [["--workers", "2", "--kill", "2"], ["--workers", "2", "--kill", "1"]])
def test_somebody_must_be_left(options: list[str], tmp_path: Path) -> None:
    """A fleet in which all are killed, or the last one is frozen, could never do its jobs."""
    done = CliRunner().invoke(app, ["--out", str(tmp_path), *options])
    assert done.exit_code == 2
    assert list(tmp_path.iterdir()) == []
