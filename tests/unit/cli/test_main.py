"""The command line's root: what it knows, and with which codes it ends."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.unit.cli.conftest import Command
from worker.cli import COMMANDS


def test_help_lists_every_command(command: Command) -> None:
    """Each with a line about it, though none is imported before it is called."""
    ran = command("--help")
    assert ran.code == 0
    assert all(f"│ {name} " in ran.out for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name: str, command: Command) -> None:
    """`--help` works everywhere and touches nothing."""
    ran = command(name, "--help")
    assert ran.code == 0
    assert f"sd-worker {name}" in ran.out


@pytest.mark.parametrize("argv", [(), ("cofig",), ("probe", "dead"), ("submit", "--count", "0"), ("config", "--what")])
def test_wrong_usage_is_typers_two(argv: tuple[str, ...], command: Command) -> None:
    """64 is kept for wrong settings."""
    assert command(*argv).code == 2


@pytest.mark.parametrize(
    "argv", [("config",), ("submit", "--prompt", "x"), ("queue", "list"), ("models", "list"), ("check",)]
)
def test_bad_settings_end_with_64_and_every_mistake(
    argv: tuple[str, ...], command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the command is, a line for each."""
    monkeypatch.setenv("WORKER_HTTP_PORT", "x")
    monkeypatch.setenv("WORKER_ENGINE_ULR", "x")
    ran = command(*argv)
    assert ran.code == 64
    assert ran.out == ""
    assert [line.split(":")[0] for line in ran.err.splitlines()[1:]] == ["WORKER_ENGINE_ULR", "WORKER_HTTP_PORT"]


@pytest.mark.parametrize("argv", [("version",), ("--version",)])
def test_version_names_python_and_platform(argv: tuple[str, ...], command: Command) -> None:
    """What a bug report needs."""
    ran = command(*argv)
    assert ran.code == 0
    assert ran.out.startswith("sd-worker 0.")
    assert "Python" in ran.out


def test_a_binary_prints_the_licences_it_carries(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """They lie beside its Python; from source each package brings its own."""
    assert "no binary" in command("version", "--licenses").out
    Path("NOTICES").write_text("This program contains:\n")
    monkeypatch.setattr(sys, "prefix", str(Path.cwd()))
    assert command("version", "--licenses").out == "This program contains:\n"


def test_a_queue_that_does_not_answer_ends_with_1(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Our own errors are told by code and message, without a traceback."""
    monkeypatch.setenv("WORKER_QUEUE", "sqlite")
    monkeypatch.setenv("WORKER_SQLITE_PATH", "/proc/no/such/folder/q.db")
    ran = command("queue", "list")
    assert ran.code in (1, 64)
    assert "Traceback" not in ran.err
    assert "/proc/no/such/folder" in ran.err
