"""The platform is told by its variables, and has defaults of its own."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from worker.errors import ConfigError
from worker.settings import load_settings
from worker.settings.platform import is_salad
from worker.settings.source import reading_of

ON_SALAD = {"SALAD_MACHINE_ID": "b6c8f1de", "SALAD_CONTAINER_GROUP_ID": "7d9e"}


@pytest.mark.parametrize(
    ("environ", "platform"),
    [
        ({}, "plain"),
        (ON_SALAD, "salad"),
        ({"SALAD_MACHINE_ID": "b6c8f1de"}, "plain"),
        ({**ON_SALAD, "SALAD_MACHINE_ID": " "}, "plain"),
        ({**ON_SALAD, "WORKER_PLATFORM": "plain"}, "plain"),
        ({**ON_SALAD, "WORKER_PLATFORM": "auto"}, "salad"),
        ({"WORKER_PLATFORM": "salad"}, "salad"),
    ],
)
def test_the_platforms_variables_tell_of_it(environ: dict[str, str], platform: str) -> None:
    """Its machine and its container group both, unless the operator says otherwise."""
    assert load_settings(environ).platform == platform
    assert is_salad(environ) is (platform == "salad")


def test_the_platform_has_its_own_defaults() -> None:
    """For what is not set or empty; what the operator sets stands."""
    settings = load_settings(ON_SALAD)
    assert settings.http.timeout == timedelta(seconds=95)
    assert settings.models.start_timeout == timedelta(minutes=50)
    assert settings.storage.keep == timedelta(hours=1)
    told = load_settings({**ON_SALAD, "WORKER_HTTP_TIMEOUT": "30s", "WORKER_STORAGE_KEEP": ""})
    assert told.http.timeout == timedelta(seconds=30)
    assert told.storage.keep == timedelta(hours=1)
    assert load_settings({}).http.timeout is None


def test_a_misspelt_platform_is_a_mistake_and_hides_no_salad() -> None:
    """What a mistake means is decided by where the node is: on SaladCloud an exit would ban it."""
    reading = reading_of({**ON_SALAD, "WORKER_PLATFORM": "sald"})
    assert [one.field for one in reading.mistakes] == ["WORKER_PLATFORM"]
    assert reading.salad
    assert not reading_of({"WORKER_PLATFORM": "sald"}).salad


def test_a_reading_has_the_defaults_of_what_is_wrong(tmp_path: Path) -> None:
    """By itself or beside others; the rest stands, so that a node can tell its mistakes where it is asked for them."""
    wrong = {"WORKER_HTTP_PORT": "70000", "WORKER_BLOCKED_FOR": "soon", "WORKER_MODELS_DIR": str(tmp_path / "none")}
    reading = reading_of({**ON_SALAD, **wrong, "WORKER_HTTP_HOST": "::1", "WORKER_LOG_FORMAT": "json"})
    assert {one.field for one in reading.mistakes} == set(wrong)
    settings = reading.settings
    assert (settings.http.host, settings.http.port, settings.models.dir) == ("::1", 3000, None)
    assert (settings.node.blocked_for, settings.node.log_format) == (timedelta(minutes=30), "json")
    with pytest.raises(ConfigError):
        reading.whole()
