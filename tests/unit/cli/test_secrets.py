"""No command prints a secret, wherever the secret stands and however wrong it is."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.unit.cli.conftest import Command
from worker import log
from worker.settings import load_settings
from worker.settings.groups import secrets_of, variables

CANARY = "Q0FOQVJZQ0FOQVJZQ0FOQVJZQ0FOQVJZQ0FOQVJZ"
SECRETS = [v.name for v in variables() if v.secret]
COMMANDS = [
    ("config",),
    ("config", "--markdown"),
    ("version",),
    ("check", "--image"),
    ("submit", "--prompt", "a cat"),
    ("submit", "no-such-file"),
    ("queue", "list"),
    ("queue", "requeue", "x"),
]


def test_there_are_secrets() -> None:
    """The tests below would prove nothing otherwise."""
    assert {"WORKER_API_KEY", "WORKER_ENGINE_PASSWORD", "WORKER_WEBHOOK_SECRET"} <= set(SECRETS)


@pytest.mark.parametrize("argv", COMMANDS, ids=" ".join)
@pytest.mark.parametrize("broken", [False, True])
def test_no_command_prints_a_secret(
    argv: tuple[str, ...], broken: bool, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither with right settings, nor in the error that tells the wrong ones; on a terminal neither."""
    for name in SECRETS:
        monkeypatch.setenv(name, CANARY if broken else f"whsec_{CANARY}")
    monkeypatch.setenv("WORKER_ENGINE_USERNAME", "u")
    monkeypatch.setenv("WORKER_MODELS_S3_ACCESS_KEY_ID", "k")
    monkeypatch.setenv("WORKER_S3_ENDPOINT_URL", f"http://u:{CANARY}@[::1]:9/?token={CANARY}")
    monkeypatch.setenv("WORKER_WEBHOOK_URL", f"{'htp' if broken else 'https'}://u:{CANARY}@example.com/?t={CANARY}")
    if broken:
        for name in ("WORKER_ENGINE", "WORKER_HTTP_PORT", "WORKER_S3_KEY", "WORKER_WARMUP", "WORKER_NODE_ID"):
            monkeypatch.setenv(name, CANARY + " x")
        monkeypatch.setenv("WORKER_API_KEYS", CANARY)
    for is_terminal in (False, True):
        monkeypatch.setattr(sys.stdout, "isatty", lambda answer=is_terminal: answer)
        ran = command(*argv)
        assert CANARY not in ran.out + ran.err


def test_no_secret_of_a_file_is_printed(command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A file may hold several lines, and a wrong one is told all the same."""
    (tmp_path / "secret").write_text(f"{CANARY}\n{CANARY}\n")
    for name in SECRETS:
        monkeypatch.setenv(f"{name}_FILE", str(tmp_path / "secret"))
    ran = command("config")
    assert ran.code == 64
    assert CANARY not in ran.out + ran.err


def test_settings_do_not_show_secrets_when_printed() -> None:
    """In a traceback or a debugger's line neither."""
    halves = {"WORKER_ENGINE_USERNAME": "u", "WORKER_MODELS_S3_ACCESS_KEY_ID": "k"}
    environ = dict.fromkeys(SECRETS, f"whsec_{CANARY}") | halves
    settings = load_settings(environ)
    assert len(secrets_of(settings)) == len(SECRETS)
    assert CANARY not in f"{settings!r}{settings}{settings.model_dump()}{settings.model_dump_json()}"


def test_reading_the_settings_hides_them_from_the_log(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any later line of ours or of a library is free of them."""
    monkeypatch.setenv("WORKER_API_KEY", CANARY)
    command("config")
    assert log.redact(f"Bearer {CANARY}") == "Bearer ***"


def test_secrets_of_the_webhooks_file_are_hidden_too(
    command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """They are named by jobs, and no less secret."""
    (tmp_path / "secrets.json").write_text(json.dumps({"shop": f"whsec_{CANARY}"}))
    monkeypatch.setenv("WORKER_WEBHOOK_SECRETS_FILE", str(tmp_path / "secrets.json"))
    assert CANARY not in command("config").out
    assert log.redact(f"key {CANARY}") == "key ***"
