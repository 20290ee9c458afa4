"""The command line: what it says and how it ends."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dispatcher import __main__ as entry
from dispatcher import service
from worker import __version__
from worker.errors import DependencyFailed
from worker.web.server import serve


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing of ours is set, and the working folder is the test's."""
    for name in [name for name in os.environ if name.startswith("DISPATCHER_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def test_help_names_both_commands(capsys: pytest.CaptureFixture[str]) -> None:
    """The service and the simulation."""
    assert entry.command_line(["--help"]) == entry.OK
    said = capsys.readouterr().out
    assert "serve" in said
    assert "simulate" in said


def test_the_version_is_that_of_the_distribution(capsys: pytest.CaptureFixture[str]) -> None:
    """One version for worker and dispatcher."""
    assert entry.command_line(["--version"]) == entry.OK
    assert capsys.readouterr().out == f"sd-dispatcher {__version__}\n"


def test_the_simulation_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    """Its own help comes from its own command."""
    assert entry.command_line(["simulate", "--help"]) == entry.OK
    assert "--nodes" in capsys.readouterr().out


def test_bad_configuration_is_64(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """With every mistake, none of them with a value."""
    monkeypatch.setenv("DISPATCHER_LEASE", "soon")
    monkeypatch.setenv("DISPATCHER_PROT", "1")
    assert entry.command_line(["serve"]) == entry.BAD_CONFIGURATION
    said = capsys.readouterr().err
    assert "2 mistake(s)" in said
    assert "DISPATCHER_LEASE" in said
    assert "DISPATCHER_PORT may be meant" in said
    assert "soon" not in said


def test_a_database_that_cannot_be_opened_is_64(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The variable is named, and the service is not begun."""
    monkeypatch.setenv("DISPATCHER_DATABASE_URL", "sqlite:////nowhere/at/all.db")
    assert entry.command_line(["serve"]) == entry.BAD_CONFIGURATION
    assert "DISPATCHER_DATABASE_URL" in capsys.readouterr().err


def test_usage_errors_are_typers() -> None:
    """2, as everywhere."""
    assert entry.command_line(["nonsense"]) == 2


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (ModuleNotFoundError("no", name="sqlalchemy.orm"), entry.BAD_CONFIGURATION, "sd-worker[dispatcher]"),
        (DependencyFailed("the other side"), entry.FAILED, "the other side"),
    ],
)
def test_what_is_missing_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception, code: int, words: str
) -> None:
    """Without the extra it says how to get it; errors of ours are one line."""

    def failing(_: Any) -> int:
        raise error

    monkeypatch.setattr(entry, "_run", failing)
    assert entry.command_line(["serve"]) == code
    assert words in capsys.readouterr().err


def test_another_module_that_is_missing_is_a_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes out as it is."""

    def failing(_: Any) -> int:
        raise ModuleNotFoundError("no", name="something")

    monkeypatch.setattr(entry, "_run", failing)
    with pytest.raises(ModuleNotFoundError):
        entry.command_line(["serve"])


@pytest.mark.parametrize(("outcome", "code"), [(3, 3), (RuntimeError("a bug"), entry.INTERNAL)])
def test_the_process_ends_with_the_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], outcome: Any, code: int
) -> None:
    """70 and a traceback for a bug."""
    ended: list[int] = []

    class Ended(BaseException):
        pass

    def leave(number: int) -> None:
        ended.append(number)
        raise Ended

    def command_line(_: Any) -> int:
        if isinstance(outcome, Exception):
            raise outcome
        return int(outcome)

    monkeypatch.setattr(entry, "command_line", command_line)
    monkeypatch.setattr(os, "_exit", leave)
    monkeypatch.setattr(sys, "argv", ["sd-dispatcher", "serve"])
    with pytest.raises(Ended):
        entry.main()
    assert ended == [code]
    assert ("a bug" in capsys.readouterr().err) == isinstance(outcome, Exception)


def test_a_signal_ends_the_service_cleanly(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """SIGTERM: exit 0, after it listened; the database is there."""
    monkeypatch.setenv("DISPATCHER_PORT", "0")

    async def served(app: Any, host: str, port: int, *, on_listening: Callable[[int], None], **_: str) -> None:
        def listening(taken: int) -> None:
            on_listening(taken)
            os.kill(os.getpid(), signal.SIGTERM)

        await serve(app, host, port, on_listening=listening, prefix=_["prefix"])

    monkeypatch.setattr(service, "serve", served)
    monkeypatch.setattr(service, "_settle_interpreter", lambda: None)
    assert entry.command_line(["serve"]) == entry.OK
    assert (tmp_path / "dispatcher.db").exists()
    said = capsys.readouterr().out
    assert "listening" in said
    assert "setting_doubtful" in said
