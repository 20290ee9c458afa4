"""comfyui-api's variables: each is honoured, or named with the reason why it has no effect."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from worker.cli.run import with_command
from worker.errors import ConfigError
from worker.settings import Settings, load_settings
from worker.settings.inherited import KNOWN, SECRETS, inherited
from worker.settings.source import server_environment

KEY = base64.b64encode(b"a key of the tests, 32 bytes now").decode()
GRAPH = {"1": {"class_type": "SaveImage", "inputs": {"images": ["2", 0]}}}
OTHERS = frozenset(list(KNOWN)[: list(KNOWN).index("EXTENSION_URLS") + 1])
"""Those that are not comfyui-api's alone."""


def comfyui(**environ: str) -> Settings:
    return load_settings({"WORKER_ENGINE": "comfyui", **environ})


def notes_of(settings: Settings) -> dict[str, str]:
    return {one.variable: one.note for one in settings.inherited}


def test_each_becomes_what_its_twin_would_be(tmp_path: Path) -> None:
    """Sizes in MiB, a command split at blanks, pino's levels, a secret with or without its prefix."""
    (tmp_path / "models").mkdir()
    graph = tmp_path / "warm.json"
    graph.write_text(json.dumps(GRAPH))
    settings = comfyui(
        CMD="comfy --workspace /opt/ComfyUI launch -- --listen *",
        COMFYUI_PORT_HOST="9000",
        WARMUP_PROMPT_FILE=str(graph),
        WORKFLOW_DIR=str(tmp_path),
        COMFY_HOME=str(tmp_path),
        WEBHOOK_SECRET=KEY,
        MAX_QUEUE_DEPTH="7",
        MAX_BODY_SIZE_MB="2",
        LOG_LEVEL="warn",
    )
    assert settings.engine.command == ("comfy", "--workspace", "/opt/ComfyUI", "launch", "--", "--listen", "*")
    assert settings.engine.url == "http://[::1]:9000"
    assert settings.engine.warmup == str(graph)
    assert (settings.http.workflows_dir, settings.models.dir) == (tmp_path, tmp_path / "models")
    assert settings.webhook.secret == SecretStr(f"whsec_{KEY}")
    assert (settings.http.max_pending, settings.http.max_body, settings.node.log_level) == (7, 2 * 2**20, "warning")
    assert {one.honoured for one in settings.inherited} == {True}


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ({"DIRECT_ADDRESS": "127.0.0.1"}, "http://127.0.0.1:8188"),
        ({"DIRECT_ADDRESS": "::1", "COMFYUI_PORT_HOST": "1"}, "http://[::1]:1"),
        ({"DIRECT_ADDRESS": "[::1]"}, "http://[::1]:8188"),
        ({"DIRECT_ADDRESS": "comfy", "WORKER_ENGINE_URL": "http://other:1"}, "http://other:1"),
    ],
)
def test_the_servers_address_has_two_parts(given: dict[str, str], url: str) -> None:
    """Either may be left out, and our own variable beats both."""
    assert comfyui(**given).engine.url == url


@pytest.mark.parametrize("secret", [KEY.rstrip("="), f"whsec_{KEY}", KEY.replace("+", "-").replace("/", "_")])
def test_a_secret_is_taken_as_people_write_it(secret: str) -> None:
    """Without padding, with the prefix of the specification, in the alphabet of URLs."""
    assert comfyui(WEBHOOK_SECRET=secret).webhook.secret == SecretStr(f"whsec_{KEY}")


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("COMFYUI_PORT_HOST", "http", "is no port"),
        ("COMFYUI_PORT_HOST", "70000", "is no port"),
        ("DIRECT_ADDRESS", "a b", "must not hold blanks"),
        ("MAX_QUEUE_DEPTH", "many", "valid integer"),
        ("MAX_BODY_SIZE_MB", "-1", "is no size"),
        ("WEBHOOK_SECRET", "c2hvcnQ=", "24 to 64 bytes"),
        ("WEBHOOK_SECRET", "no base64!", "and base64"),
        ("LOG_LEVEL", "loud", "must be"),
        ("WORKFLOW_DIR", "/no/such/folder", "does not exist"),
        ("MODEL_DIR", "/no/such/folder", "does not exist"),
        ("WARMUP_PROMPT_FILE", "/no/such/file", "cannot be read"),
    ],
)
def test_a_mistake_names_what_was_written(name: str, value: str, said: str) -> None:
    """Not the twin, which nobody set; and the value is not repeated."""
    with pytest.raises(ConfigError, match=said) as caught:
        comfyui(**{name: value})
    assert [mistake.field for mistake in caught.value.mistakes] == [name]
    assert len(value) < 6 or value not in str(caught.value)


def test_common_names_count_with_comfyui_alone() -> None:
    """Anything may have set them, so that elsewhere they are not even mentioned; the others say what they wait for."""
    common = {name: "x" for name, known in KNOWN.items() if known.scope == "common"}
    assert {"CMD", "HOST", "PORT", "BASE", "LOG_LEVEL", "CACHE_DIR", "WEBHOOK_SECRET"} <= common.keys()
    settings = load_settings({**common, "MAX_QUEUE_DEPTH": "3", "COMFYUI_PORT_HOST": "9"})
    assert (settings.engine, settings.http, settings.node) == (Settings().engine, Settings().http, Settings().node)
    assert notes_of(settings) == dict.fromkeys(
        ("COMFYUI_PORT_HOST", "MAX_QUEUE_DEPTH"), "has no effect unless WORKER_ENGINE is comfyui"
    )


def test_every_variable_is_accounted_for() -> None:
    """Set all of them at once: each is named, honoured under a variable of ours or with a reason of its own."""
    every = dict.fromkeys(KNOWN, "x") | {"SYSTEM_META_site": "x", "WORKER_ENGINE": "comfyui"}
    found = inherited(every)
    assert [one.variable for one in found] == [*KNOWN, "SYSTEM_META_site"]
    assert all(one.note.startswith(("is honoured; WORKER_", "has no effect")) for one in found)
    assert all(
        one.honoured
        for one in found
        if one.variable in OTHERS - {"MANIFEST", "EXTENSION_URLS", "LOAD_SDXL_BASE", "LOAD_REFINER"}
    )


@pytest.mark.parametrize(
    ("environ", "name", "said"),
    [
        ({"MAX_QUEUE_DEPTH": "0"}, "MAX_QUEUE_DEPTH", "always bounded, by WORKER_MAX_PENDING"),
        ({"WARMUP_PROMPT_FILE": "{}", "WARMUP_PROMPT_URL": "x"}, "WARMUP_PROMPT_URL", "beside WARMUP_PROMPT_FILE"),
        ({"CMD": "x", "WORKER_ENGINE_COMMAND": "y"}, "CMD", "beside WORKER_ENGINE_COMMAND"),
        ({"WEBHOOK_SECRET": "x", "WORKER_WEBHOOK_SECRET_FILE": "/s"}, "WEBHOOK_SECRET", "beside WORKER_WEBHOOK_SECRET"),
        ({"HOST": "::"}, "HOST", "WORKER_HTTP_HOST is the worker's own"),
        ({"PROMPT_WEBHOOK_RETRIES": "3"}, "PROMPT_WEBHOOK_RETRIES", "WORKER_WEBHOOK_BUDGET"),
    ],
)
def test_what_has_no_effect_says_why(environ: dict[str, str], name: str, said: str) -> None:
    """In words that lead to what has."""
    found = {one.variable: one for one in inherited({"WORKER_ENGINE": "comfyui", **environ})}
    assert not found[name].honoured
    assert said in found[name].note


def test_a_command_behind_the_dashes_beats_cmd() -> None:
    """It stands in the image's environment for all containers, and is named as what it is then."""
    settings = with_command(comfyui(CMD="init.sh"), ("python", "main.py"))
    assert settings.engine.command == ("python", "main.py")
    assert notes_of(settings)["CMD"] == "has no effect beside -- COMMAND"
    ours = load_settings({"WORKER_ENGINE_COMMAND": "init.sh"})
    with pytest.raises(ConfigError):
        with_command(ours, ("python",))
    assert with_command(ours, ()) is ours


def test_the_server_is_not_handed_the_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Custom nodes read its environment; who wants one there names it."""
    for name in SECRETS:
        monkeypatch.setenv(name, "sesame")
    assert not SECRETS & server_environment().keys()
    assert server_environment(("WEBHOOK_SECRET",))["WEBHOOK_SECRET"] == "sesame"


def test_no_secret_is_printed() -> None:
    """Neither of one that is honoured, nor of one that is not."""
    settings: Any = comfyui(WEBHOOK_SECRET=KEY, HTTP_AUTH_HEADER_VALUE="sesame", AZURE_STORAGE_KEY="sesame")
    assert KEY.rstrip("=") not in f"{settings!r} {[str(one) for one in settings.inherited]}"
    assert "sesame" not in f"{settings!r}"
