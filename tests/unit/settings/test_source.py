"""The environment becomes settings, or one error with every mistake."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from worker.errors import ConfigError
from worker.settings import Settings, from_environment, load_settings
from worker.settings.environment import nearest
from worker.settings.groups import EngineSettings, Variable, WebhookSettings, secrets_of, variables
from worker.settings.platform import SALAD_VARIABLES
from worker.settings.source import known_names, server_environment, without_coerced
from worker.settings.units import Rate

SIGNING = "whsec_" + "QUJD" * 8


def mistakes_of(**environ: str) -> dict[str, str]:
    with pytest.raises(ConfigError) as caught:
        load_settings(environ)
    return {mistake.field: mistake.message for mistake in caught.value.mistakes}


def test_nothing_set_gives_the_defaults() -> None:
    """Every variable has a default, and none of them is a mistake."""
    assert load_settings({}) == Settings()
    assert load_settings({}).warnings == ()


def test_values_become_typed() -> None:
    """Texts of the environment arrive as durations, sizes, rates, names and paths."""
    settings = load_settings(
        {
            "WORKER_ENGINE": "sdnext",
            "WORKER_ENGINE_URL": " http://[::1]:9000 ",
            "WORKER_ENGINE_RESTARTS": "2/1h",
            "WORKER_JOB_TIMEOUT": "90s",
            "WORKER_MAX_BODY": "1MiB",
            "WORKER_WEBHOOK_EVENTS": "started, failed failed",
            "WORKER_SQLITE_PATH": "/tmp/q.db",
            "WORKER_STRICT": "true",
            "WORKER_S3_PREFIX": "/renders/",
            "WORKER_PRICE_PER_HOUR": "0.25",
        }
    )
    assert settings.engine.kind == "sdnext"
    assert settings.engine.url == "http://[::1]:9000"
    assert settings.engine.restarts == Rate(2, timedelta(hours=1))
    assert settings.engine.job_timeout == timedelta(seconds=90)
    assert settings.http.max_body == 2**20
    assert settings.webhook.events == ("started", "failed")
    assert settings.queue.sqlite_path == Path("/tmp/q.db")
    assert settings.node.strict
    assert settings.storage.prefix == "renders"
    assert settings.node.price_per_hour == 0.25


def test_constructing_settings_reads_no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only `from_environment` reads the process's environment."""
    monkeypatch.setenv("WORKER_ENGINE", "a1111")
    monkeypatch.setenv("ENGINE", '{"kind": "a1111"}')
    monkeypatch.setenv("NODE", "not json")
    assert Settings().engine.kind == "auto"
    assert from_environment().engine.kind == "a1111"


def test_empty_means_unset() -> None:
    """A variable that holds nothing, or only blanks, counts as unset, an unknown one too."""
    assert load_settings(dict.fromkeys((*known_names(), "WORKER_ENGINE_ULR"), "  ")) == Settings()


def test_one_error_holds_every_mistake() -> None:
    """Wrong values, unknown names, and broken rules are told together, each by variable."""
    found = mistakes_of(
        WORKER_ENGINE="nonsense",
        WORKER_ENGINE_ULR="http://[::1]:1",
        WORKER_HTTP_PORT="high",
        WORKER_MAX_STEPS="-1",
        WORKER_JOB_TIMEOUT="2h",
        WORKER_STORAGE="s3",
        WORKER_S3_KEY="{id}.png",
        WORKER_MODELS_DIR="/nowhere/at/all",
        WORKER_API_KEY_FILE="/nowhere/at/all",
        WORKER_WEBHOOK_URL="nonsense",
    )
    assert set(found) == {
        *("WORKER_ENGINE", "WORKER_ENGINE_ULR", "WORKER_HTTP_PORT", "WORKER_MAX_STEPS", "WORKER_JOB_TIMEOUT"),
        *("WORKER_S3_BUCKET", "WORKER_S3_KEY", "WORKER_MODELS_DIR", "WORKER_API_KEY_FILE", "WORKER_WEBHOOK_URL"),
    }


def test_a_wrong_value_breaks_no_rule_besides() -> None:
    """A rule is left out while a variable that it reads is wrong by itself."""
    assert set(mistakes_of(WORKER_JOB_TIMEOUT="soon", WORKER_JOB_TIMEOUT_MAX="1m")) == {"WORKER_JOB_TIMEOUT"}


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("WORKER_ENGINE_ULR", "WORKER_ENGINE_URL"),
        ("WORKER_HTTPPORT", "WORKER_HTTP_PORT"),
        ("WORKER_S3_BUCKETS", "WORKER_S3_BUCKET"),
        ("WORKER_API_KEY_FIEL", "WORKER_API_KEY_FILE"),
        ("WORKER_MODEL_DIR", "WORKER_MODELS_DIR"),
    ],
)
def test_a_misspelt_variable_is_a_mistake_that_names_the_nearest(name: str, meant: str) -> None:
    """Within two edits of a known name nobody meant something else."""
    assert mistakes_of(**{name: "x"}) == {name: f"is unknown; {meant} may be meant"}


def test_other_unknown_variables_are_warnings_unless_strict() -> None:
    """They may belong to something else in the image; WORKER_STRICT makes them mistakes."""
    assert [w.field for w in load_settings({"WORKER_SOMETHING_ELSE": "1"}).warnings] == ["WORKER_SOMETHING_ELSE"]
    assert set(mistakes_of(WORKER_SOMETHING_ELSE="1", WORKER_STRICT="yes")) == {"WORKER_SOMETHING_ELSE"}


def test_only_our_prefix_counts() -> None:
    """Variables of others are none of our business."""
    assert load_settings({"PATH": "/bin", "WORKERS": "3", "HTTP_PORT": "x"}) == Settings()


def test_the_hubs_tokens_have_the_names_that_every_tool_reads(tmp_path: Path) -> None:
    """Without a prefix; a blank one is none, and each may come from a file."""
    path = tmp_path / "token"
    path.write_text("c\n")
    models = load_settings({"HF_TOKEN": "hf_a", "CIVITAI_TOKEN_FILE": str(path)}).models
    tokens = [token.get_secret_value() for token in (models.hf_token, models.civitai_token) if token is not None]
    assert tokens == ["hf_a", "c"]
    assert load_settings({"HF_TOKEN": " ", "CIVITAI_TOKEN": ""}) == Settings()


def test_kubernetes_service_links_are_ignored() -> None:
    """A service called worker-http puts these into every container."""
    links = {
        "WORKER_HTTP_PORT": "tcp://10.0.0.1:3000",
        "WORKER_HTTP_SERVICE_HOST": "10.0.0.1",
        "WORKER_HTTP_SERVICE_PORT": "3000",
        "WORKER_HTTP_SERVICE_PORT_PROBES": "3000",
        "WORKER_HTTP_PORT_3000_TCP": "tcp://10.0.0.1:3000",
        "WORKER_HTTP_PORT_3000_TCP_ADDR": "10.0.0.1",
        "WORKER_HTTP_PORT_3000_TCP_PROTO": "tcp",
        "WORKER_OTHER_PORT": "udp://10.0.0.1:53",
    }
    assert load_settings({**links, "WORKER_STRICT": "true"}).http.port == 3000


def test_the_nearest_name_is_the_closest() -> None:
    """The fewest edits win; beyond two there is none."""
    assert nearest("WORKER_ENGINE_URL2", {"WORKER_ENGINE_URL", "WORKER_ENGINE_URLXX"}) == "WORKER_ENGINE_URL"
    assert nearest("WORKER_ENGINE_URLXYZ", {"WORKER_ENGINE_URL"}) is None


@pytest.mark.parametrize("variable", [v for v in variables() if v.secret], ids=lambda v: v.name)
def test_any_secret_may_come_from_a_file(variable: Variable, tmp_path: Path) -> None:
    """The line end that editors add is no part of it."""
    name, path = variable.name, tmp_path / "secret"
    path.write_text(f"{SIGNING}\n")
    halves = {
        "WORKER_ENGINE_USERNAME": "u",
        "WORKER_ENGINE_PASSWORD": "p",
        "WORKER_MODELS_S3_ACCESS_KEY_ID": "k",
        "WORKER_MODELS_S3_SECRET_ACCESS_KEY": "s",
    }
    halves.pop(name, None)
    settings = load_settings({f"{name}_FILE": str(path), **halves})
    assert SIGNING in [secret.get_secret_value() for secret in secrets_of(settings)]


@pytest.mark.parametrize(
    ("content", "said"), [(None, "cannot be read"), (b"", "empty"), (b" \n", "empty"), (b"\xff\xfe", "UTF-8")]
)
def test_a_secret_file_that_holds_none_is_a_mistake(content: bytes | None, said: str, tmp_path: Path) -> None:
    """Missing, empty and unreadable files are told by the variable that names them."""
    path = tmp_path / "secret"
    if content is not None:
        path.write_bytes(content)
    assert said in mistakes_of(WORKER_API_KEY_FILE=str(path))["WORKER_API_KEY_FILE"]


def test_a_secret_given_twice_is_a_mistake(tmp_path: Path) -> None:
    """Nobody should have to guess which one counts."""
    path = tmp_path / "secret"
    path.write_text("b")
    found = mistakes_of(WORKER_API_KEY="a", WORKER_API_KEY_FILE=str(path))
    assert found == {"WORKER_API_KEY_FILE": "is set beside WORKER_API_KEY; one of them must go"}


def test_every_variable_is_named_once_and_explained() -> None:
    """Two fields never read one variable, and each says what it means."""
    names = [v.name for v in variables()]
    assert len(set(names)) == len(names)
    assert all(v.info.description for v in variables())
    others = {v.name for v in variables() if not v.name.startswith("WORKER_")}
    assert others == {"HF_TOKEN", "CIVITAI_TOKEN", *SALAD_VARIABLES}


def test_an_unknown_attribute_of_the_package_is_an_error() -> None:
    """The package loads lazily and still has no names but its own."""
    import worker.settings as package

    with pytest.raises(AttributeError, match="nothing"):
        package.__getattr__("nothing")


def test_typed_values_can_be_given_directly() -> None:
    """Who composes settings in a test or a demo writes no texts."""
    assert WebhookSettings(events=("failed",)).events == ("failed",)
    assert EngineSettings(restarts=Rate(1, timedelta(hours=1))).restarts.count == 1


def test_the_servers_command_is_split_as_a_shell_would() -> None:
    """Quotes hold words together; no shell runs it."""
    settings = load_settings({"WORKER_ENGINE_COMMAND": "python launch.py --ckpt '/models/my model.safetensors'"})
    assert settings.engine.command == ("python", "launch.py", "--ckpt", "/models/my model.safetensors")
    assert mistakes_of(WORKER_ENGINE_COMMAND="python 'launch.py") == {"WORKER_ENGINE_COMMAND": "has unbalanced quotes"}


def test_the_servers_address_follows_from_its_kind() -> None:
    """Each server has a port of its own; one that is not known yet is looked for on all of them."""
    assert load_settings({"WORKER_ENGINE": "comfyui"}).engine.addresses == ("http://[::1]:8188",)
    assert load_settings({"WORKER_ENGINE": "fooocus"}).engine.address == "http://[::1]:8888"
    assert [a.rpartition(":")[2] for a in load_settings({}).engine.addresses] == ["7860", "8188", "8888"]
    assert load_settings({"WORKER_ENGINE_URL": "http://[::1]:1/"}).engine.addresses == ("http://[::1]:1",)


@pytest.mark.parametrize(
    ("locale", "first", "kept"),
    [
        ("C.UTF-8", b"PATH=/bin\0HOME=/\0", False),
        ("C.UTF-8", b"PATH=/bin\0LC_CTYPE=C.UTF-8\0", True),
        ("de_DE.UTF-8", b"PATH=/bin\0", True),
        ("C.UTF-8", b"", True),
    ],
)
def test_the_locale_that_python_gave_itself_stays_here(locale: str, first: bytes, kept: bool) -> None:
    """A server is started with the image's environment; one that was given is the image's, as is any of its own."""
    environ = {"PATH": "/bin", "LC_CTYPE": locale}
    assert ("LC_CTYPE" in without_coerced(environ, first)) is kept
    assert without_coerced({"PATH": "/bin"}, first) == {"PATH": "/bin"}


def test_the_servers_process_gets_no_secret_but_what_it_may_keep(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither our variables nor the store's and the hubs' credentials; `HOST` and `PORT` are its own."""
    given = {
        "WORKER_API_KEY": "a",
        "WORKER_S3_BUCKET": "b",
        "AWS_SECRET_ACCESS_KEY": "c",
        "HF_TOKEN": "d",
        "CIVITAI_TOKEN": "e",
        "CIVITAI_TOKEN_FILE": "/run/secrets/civitai",
        "PORT": "7860",
    }
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert given.items() & server_environment().items() == {("PORT", "7860")}
    assert server_environment()["PYTHONUNBUFFERED"] == "1"
    settings = load_settings({"WORKER_ENGINE_ENV": "HF_TOKEN, WORKER_API_KEY"})
    kept = server_environment(settings.engine.env)
    assert given.items() & kept.items() == {("PORT", "7860"), ("HF_TOKEN", "d"), ("WORKER_API_KEY", "a")}
    assert set(mistakes_of(WORKER_ENGINE_ENV="HF-TOKEN")) == {"WORKER_ENGINE_ENV"}
