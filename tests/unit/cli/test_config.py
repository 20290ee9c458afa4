"""`sd-worker config`."""

from __future__ import annotations

import sys

import pytest

from tests.unit.cli.conftest import Command
from worker.settings.groups import variables
from worker.settings.table import markdown_table


def test_plain_output_is_a_line_a_variable(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it could be written into an env file."""
    monkeypatch.setenv("WORKER_JOB_TIMEOUT", "90s")
    ran = command("config")
    lines = ran.out.splitlines()
    assert ran.code == 0
    assert [line.partition("=")[0] for line in lines] == [v.name for v in variables()]
    assert "WORKER_JOB_TIMEOUT=90s" in lines


def test_a_terminal_gets_a_table_that_marks_what_is_set(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the operator set is told from the defaults."""
    monkeypatch.setenv("WORKER_JOB_TIMEOUT", "90s")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    rows = [line.split() for line in command("config").out.splitlines()]
    assert ["WORKER_JOB_TIMEOUT", "90s", "set"] in rows
    assert ["WORKER_HTTP_PORT", "3000"] in rows


def test_markdown_needs_no_settings(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """The README's table does not depend on where it is made."""
    monkeypatch.setenv("WORKER_HTTP_PORT", "x")
    ran = command("config", "--markdown")
    assert ran == (0, markdown_table() + "\n", "")


def test_warnings_are_told_beside(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """On stderr, so that stdout stays what it is."""
    monkeypatch.setenv("WORKER_SOMETHING_ELSE", "1")
    assert command("config").err == "warning: WORKER_SOMETHING_ELSE: is unknown and has no effect\n"


def test_other_images_variables_are_listed(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that count and those that do not, never by value."""
    monkeypatch.setenv("LORA_URLS", "https://cdn.example/x?token=sesame")
    monkeypatch.setenv("EXTENSION_URLS", "https://cdn.example/y")
    said = command("config").err.splitlines()
    assert said[0] == "note: LORA_URLS: is honoured; WORKER_MODELS_MANIFEST is its name here"
    assert [line.split(": ")[1] for line in said] == ["LORA_URLS", "EXTENSION_URLS"]
    assert "sesame" not in "".join(said)
