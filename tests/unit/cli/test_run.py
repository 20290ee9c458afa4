"""`sd-worker run -- COMMAND`: where the server's command comes from."""

from __future__ import annotations

import pytest
from structlog.testing import capture_logs

from worker.cli.run import tell, with_command
from worker.errors import ConfigError
from worker.settings import load_settings

COMMAND = ("python", "main.py", "--port", "8188")


def test_the_command_after_the_dashes_is_the_servers() -> None:
    """Every word of it, options too."""
    assert with_command(load_settings({}), COMMAND).engine.command == COMMAND


def test_without_one_the_variable_counts() -> None:
    """An image may be configured either way."""
    settings = load_settings({"WORKER_ENGINE_COMMAND": "python main.py"})
    assert with_command(settings, ()).engine.command == ("python", "main.py")


def test_two_commands_are_a_mistake() -> None:
    """Nobody guesses which one is meant."""
    with pytest.raises(ConfigError, match="WORKER_ENGINE_COMMAND"):
        with_command(load_settings({"WORKER_ENGINE_COMMAND": "python main.py"}), COMMAND)


def test_the_start_lists_what_is_odd_and_what_other_images_variables_come_to() -> None:
    """A line each, by name and without a value."""
    environ = {"WORKER_SOMETHING_ELSE": "1", "LORA_URLS": "https://cdn.example/x", "LOAD_REFINER": "0"}
    with capture_logs() as events:
        tell(load_settings(environ))
    assert [(event["event"], event["variable"]) for event in events] == [
        ("setting_doubtful", "WORKER_SOMETHING_ELSE"),
        ("variable_honoured", "LORA_URLS"),
        ("variable_without_effect", "LOAD_REFINER"),
    ]
    assert "cdn.example" not in str(events)
