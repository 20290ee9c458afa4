"""Where the box lies: with what the worker keeps on this disk anyway."""

from __future__ import annotations

from pathlib import Path

import pytest

from worker.blackbox import place_of
from worker.errors import ConfigError
from worker.node import Identity
from worker.settings import load_settings

ME = Identity("a/node", "machine", "0")


def place(**variables: str) -> Path | None:
    return place_of(load_settings({f"WORKER_{name}": value for name, value in variables.items()}), ME)


def test_in_the_models_folder_of_records(tmp_path: Path) -> None:
    """It is one worker's, and on the disk that a restart leaves alone."""
    found = place(ENGINE="sdnext", MODELS_DIR=str(tmp_path), QUEUE="sqlite")
    assert found == tmp_path / ".sd-worker" / "blackbox"


def test_else_beside_the_embedded_queue(tmp_path: Path) -> None:
    """Which several workers share: one file each."""
    found = place(ENGINE="sdnext", QUEUE="sqlite", SQLITE_PATH=str(tmp_path / "queue.db"))
    assert found == tmp_path / "queue.db.a%2Fnode.blackbox"


def test_else_nowhere() -> None:
    """A worker without a disk of its own has nothing to come back to."""
    assert place(ENGINE="sdnext") is None


def test_a_folder_that_does_not_tell_whose_it_is_is_a_mistake(tmp_path: Path) -> None:
    """As it is for the models."""
    with pytest.raises(ConfigError):
        place(MODELS_DIR=str(tmp_path))
