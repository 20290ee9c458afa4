"""The dispatcher's variables: what they mean, and every mistake in one error."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from dispatcher.settings import Settings, load_settings, secrets_of, variables
from worker.errors import ConfigError
from worker.job import Limits

USER, NODE = "u" * 20, "n" * 20
SECRET = "whsec_" + "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


def load(**given: str) -> Settings:
    return load_settings({f"DISPATCHER_{name}": value for name, value in given.items()})


def mistakes(**given: str) -> dict[str, str]:
    with pytest.raises(ConfigError) as refused:
        load(**given)
    return {one.field.removeprefix("DISPATCHER_"): one.message for one in refused.value.mistakes}


def test_nothing_set_serves_this_machine_alone() -> None:
    """Without tokens everybody may do everything, so it listens on loopback and says so."""
    settings = load()
    assert settings.access.open
    assert (settings.host, settings.serve.port) == ("localhost", 8080)
    assert settings.serve.database_url.get_secret_value() == "sqlite:///./dispatcher.db"
    assert [warning.field for warning in settings.warnings] == ["DISPATCHER_USER_TOKENS"]


def test_with_tokens_it_listens_everywhere() -> None:
    """On both families, unless a host is named."""
    tokens = {"USER_TOKENS": USER, "NODE_TOKENS": NODE}
    assert load(**tokens).host == "::"
    assert load(**tokens, HOST="10.0.0.1").host == "10.0.0.1"
    assert load(**tokens).warnings == ()


@pytest.mark.parametrize("host", ["localhost", "::1", "[::1]", "127.0.0.1"])
def test_loopback_needs_no_token(host: str) -> None:
    """In any of its spellings."""
    assert load(HOST=host).host == host


def test_the_rules_become_those_of_the_decisions() -> None:
    """Durations as people write them, numbers as they are."""
    settings = load(LEASE="2m", NODE_TIMEOUT="45", COVERAGE="3", MAX_SKIPS="7", MAX_STEPS="50", MAX_BODY="1MB")
    assert (settings.rules.lease, settings.rules.node_timeout) == (timedelta(minutes=2), timedelta(seconds=45))
    assert (settings.rules.rules.coverage, settings.rules.rules.max_skips) == (3, 7)
    assert settings.limits == Limits(max_steps=50, max_body=1_000_000)


def test_every_mistake_is_told_at_once() -> None:
    """Wrong values, misspelt names, and what contradicts itself; values are never repeated."""
    found = mistakes(PROT="1", LEASE="abc", DATABASE_URL="mysql://u:secret@h/d", MAX_SKIPS="-1", NODE_TOKENS=NODE)
    assert set(found) == {"PROT", "LEASE", "DATABASE_URL", "MAX_SKIPS", "USER_TOKENS"}
    assert "DISPATCHER_PORT" in found["PROT"]
    assert "secret" not in str(found)


def test_half_an_authentication_is_none() -> None:
    """Each side needs a way in, tokens are of one side, and identity tokens need both of their variables."""
    assert set(mistakes(USER_TOKENS=USER)) == {"NODE_TOKENS"}
    assert set(mistakes(USER_TOKENS=USER, SALAD_ORGANIZATION_ID="o")) == {"SALAD_CONTAINER_GROUP_IDS", "NODE_TOKENS"}
    assert set(mistakes(SALAD_CONTAINER_GROUP_IDS="g")) == {"SALAD_ORGANIZATION_ID"}
    assert set(mistakes(USER_TOKENS=USER, NODE_TOKENS=USER)) == {"NODE_TOKENS"}
    assert set(mistakes(HOST="::")) == {"HOST"}
    assert set(mistakes(HOST="example.com")) == {"HOST"}
    assert set(mistakes(USER_TOKENS="t\u00f6ken")) == {"USER_TOKENS"}


def test_identity_tokens_are_a_way_in_for_nodes() -> None:
    """Then shared tokens may be left out."""
    settings = load(USER_TOKENS=USER, SALAD_ORGANIZATION_ID="o", SALAD_CONTAINER_GROUP_IDS="g h")
    assert settings.access.identity
    assert settings.access.salad_container_group_ids == ("g", "h")


def test_doubts_are_warnings() -> None:
    """Short tokens, nodes that outlive their jobs, names that nobody knows."""
    settings = load(USER_TOKENS="short", NODE_TOKENS=NODE, NODE_TIMEOUT="10m", SOMETHING_ELSE="1")
    assert {warning.field for warning in settings.warnings} == {
        "DISPATCHER_USER_TOKENS",
        "DISPATCHER_NODE_TIMEOUT",
        "DISPATCHER_SOMETHING_ELSE",
    }


def test_secrets_come_from_files_and_are_hidden(tmp_path: Path) -> None:
    """Each token by itself, the database's password, signing secrets and those of the file."""
    (tmp_path / "tokens").write_text(f"{USER} {'v' * 20}\n")
    (tmp_path / "secrets.json").write_text(f'{{"a": "{SECRET}"}}')
    settings = load(
        USER_TOKENS_FILE=str(tmp_path / "tokens"),
        NODE_TOKENS=NODE,
        DATABASE_URL="postgresql://me:pass@db/jobs",
        WEBHOOK_SECRET=SECRET,
        WEBHOOK_SECRETS_FILE=str(tmp_path / "secrets.json"),
    )
    assert settings.access.users == (USER, "v" * 20)
    hidden = {secret.get_secret_value() for secret in secrets_of(settings)}
    assert hidden == {USER, "v" * 20, NODE, "pass", SECRET}
    assert "pass" not in repr(settings)


def test_a_secrets_file_that_is_none_is_a_mistake(tmp_path: Path) -> None:
    """Found at the start, not with the first webhook."""
    found = mistakes(WEBHOOK_SECRETS_FILE=str(tmp_path / "none.json"))
    assert found == {"WEBHOOK_SECRETS_FILE": "cannot be read: No such file or directory"}


def test_all_variables_have_our_prefix_and_a_meaning() -> None:
    """So that nothing else in an environment is read."""
    assert all(variable.name.startswith("DISPATCHER_") for variable in variables())
    assert all(variable.info.description for variable in variables())
    assert load_settings({"WORKER_NONSENSE": "1", "DISPATCHER_PORT": " "}) == load()
