"""The command of the fleet's demo, and how it shows what happens."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from demo import __main__ as command
from demo.plan import Plan
from demo.show import showing
from tests.support.waiting import wait_until
from worker.errors import QueueUnavailable


class Played:
    """A demo of which only the end matters."""

    code: int | None = 0
    made: tuple[Plan, Path, str | None]

    def __init__(self, plan: Plan, out: Path, database: str | None) -> None:
        type(self).made = (plan, out, database)

    async def run(self) -> int:
        if self.code is None:
            raise QueueUnavailable("nobody answers")
        if self.code == signal.SIGTERM:
            os.kill(os.getpid(), signal.SIGTERM)
            await wait_until(lambda: False, timeout=30)
        return self.code


@pytest.mark.parametrize(("code", "exits"), [(0, 0), (1, 1), (None, 1), (signal.SIGTERM, 1)])
def test_the_exit_code_tells_whether_the_ledger_balances(
    code: int | None, exits: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What cannot be gone on with, and SIGTERM, end it as a failure; the folder is new at every run."""
    monkeypatch.setattr(command, "Demo", Played)
    monkeypatch.setattr(Played, "code", code)
    options = ["--out", str(tmp_path), "--jobs", "7", "--kill", "1", "--freeze", "0", "--database", "postgresql://x"]
    assert CliRunner().invoke(command.app, options).exit_code == exits
    plan, out, database = Played.made
    assert (plan.jobs, plan.kills, plan.freezes, plan.workers) == (7, 1, 0, 5)
    assert (out, database) == (tmp_path / plan.run, "postgresql://x")
    assert out.is_dir()


def test_a_line_for_each_tenth(capsys: pytest.CaptureFixture[str]) -> None:
    """In logs and pipes no more is said of the progress; what happens is told as it does."""
    with showing(20) as show:
        for count in range(21):
            show.done(count, "at work")
        show.tell("something happened")
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"{count}/20 at work" for count in range(2, 21, 2)] + ["something happened"]


def test_a_bar_for_people(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal, with what happens above it."""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    with showing(20) as show:
        show.tell("something happened")
        show.done(20, "all over")
    told = capsys.readouterr().out
    assert "something happened" in told
    assert "20/20" in told
