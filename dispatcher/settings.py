"""The dispatcher's settings, read once from its environment: frozen groups whose fields name their variable."""

from __future__ import annotations

import ipaddress
from base64 import b64encode
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr

from dispatcher.words import Rules
from worker.errors import ConfigError, FieldError
from worker.job import Limits
from worker.settings.checks import Events, PrivateHosts, SigningSecrets, parse_words
from worker.settings.environment import Dialect, EnvironmentSource, validated
from worker.settings.fields import ZERO, Group, var
from worker.settings.groups import SettingsTree, Variable, variables_of
from worker.settings.source import surroundings
from worker.settings.units import Duration, Size, WebUrl
from worker.signature import read_secrets

PREFIX = "DISPATCHER_"
DIALECT = Dialect(PREFIX)
DATABASES = ("sqlite", "postgresql", "postgres")
EVERYWHERE = "::"
LOOPBACK = "localhost"
SHORT_TOKEN = 16


def check_database(value: SecretStr) -> SecretStr:
    """A URL of SQLite or PostgreSQL; a driver may be named after a ``+``."""
    scheme, mark, _ = value.get_secret_value().partition("://")
    if not mark or scheme.partition("+")[0] not in DATABASES:
        raise ValueError("must begin with sqlite:/// or postgresql://")
    return value


def check_tokens(value: SecretStr) -> SecretStr:
    """Tokens separated by blanks, each of printable ASCII, as a header can carry it."""
    if not all(token.isascii() and token.isprintable() for token in value.get_secret_value().split()):
        raise ValueError("must be tokens of printable ASCII, separated by blanks")
    return value


Words = Annotated[tuple[str, ...], BeforeValidator(parse_words)]
Database = Annotated[SecretStr, AfterValidator(check_database)]
Tokens = Annotated[SecretStr, AfterValidator(check_tokens)]


class ServeSettings(Group):
    database_url: Database = var(
        "DISPATCHER_DATABASE_URL",
        SecretStr("sqlite:///./dispatcher.db"),
        "`sqlite:///` and a path, or `postgresql://` where several processes or machines share it",
        shown="sqlite:///./dispatcher.db",
    )
    host: str | None = var(
        "DISPATCHER_HOST",
        None,
        "`::` listens on IPv6 and IPv4",
        shown="`::`; without any token `localhost`",
    )
    port: int = var("DISPATCHER_PORT", 8080, "0 takes any that is free", ge=0, le=65535)
    max_body: Size = var("DISPATCHER_MAX_BODY", 100_000_000, "larger: 413, while reading", shown="100MB", gt=0)
    log_level: Literal["debug", "info", "warning", "error"] = var(
        "DISPATCHER_LOG_LEVEL", "info", "least severe that is printed"
    )
    log_format: Literal["auto", "json", "console"] = var(
        "DISPATCHER_LOG_FORMAT", "auto", "`json` when stdout is no terminal, else `console`"
    )


class AccessSettings(Group):
    user_tokens: Tokens | None = var(
        "DISPATCHER_USER_TOKENS", None, "separated by blanks; no list at all: no authentication, on loopback only"
    )
    node_tokens: Tokens | None = var("DISPATCHER_NODE_TOKENS", None, "what workers present, separated by blanks")
    salad_organization_id: str | None = var(
        "DISPATCHER_SALAD_ORGANIZATION_ID", None, "identity tokens of the platform count only for this organization"
    )
    salad_container_group_ids: Words = var(
        "DISPATCHER_SALAD_CONTAINER_GROUP_IDS", (), "and only for nodes of these groups, separated by blanks"
    )

    @property
    def users(self) -> tuple[str, ...]:
        return tuple(self.user_tokens.get_secret_value().split()) if self.user_tokens else ()

    @property
    def nodes(self) -> tuple[str, ...]:
        return tuple(self.node_tokens.get_secret_value().split()) if self.node_tokens else ()

    @property
    def identity(self) -> bool:
        """Whether the platform's identity tokens are accepted."""
        return bool(self.salad_organization_id and self.salad_container_group_ids)

    @property
    def open(self) -> bool:
        """Whether everybody may do everything."""
        return not (self.users or self.nodes or self.identity)


class WebhookSettings(Group):
    url: WebUrl | None = var("DISPATCHER_WEBHOOK_URL", None, "for jobs that name none and end here")
    events: Events = var("DISPATCHER_WEBHOOK_EVENTS", ("succeeded", "failed"), "for jobs that name none")
    secret: SigningSecrets | None = var(
        "DISPATCHER_WEBHOOK_SECRET", None, "one or more `whsec_...` separated by blanks, each signs"
    )
    secrets_file: Path | None = var(
        "DISPATCHER_WEBHOOK_SECRETS_FILE", None, "JSON of names to secrets, for jobs that name one"
    )
    timeout: Duration = var("DISPATCHER_WEBHOOK_TIMEOUT", timedelta(seconds=15), "one try", shown="15s", gt=ZERO)
    budget: Duration = var("DISPATCHER_WEBHOOK_BUDGET", timedelta(minutes=1), "all tries in a row", shown="1m", gt=ZERO)
    urls_allow_private: PrivateHosts = var(
        "DISPATCHER_URLS_ALLOW_PRIVATE", "false", "`true`, or hosts and CIDRs, that webhooks of jobs may point at"
    )


class RuleSettings(Group):
    lease: Duration = var(
        "DISPATCHER_LEASE",
        timedelta(seconds=120),
        "a job is its node's for so long",
        shown="120s",
        ge=timedelta(seconds=1),
    )
    node_timeout: Duration = var(
        "DISPATCHER_NODE_TIMEOUT",
        timedelta(seconds=90),
        "a node that was not heard of for so long is away, and its copies of models do not count",
        shown="90s",
        ge=timedelta(seconds=1),
    )
    coverage: int = var("DISPATCHER_COVERAGE", 2, "copies of a model in demand, at least", ge=0)
    max_attempts: int = var("DISPATCHER_MAX_ATTEMPTS", 3, "attempts that are charged to a job", ge=1)
    max_deliveries: int = var("DISPATCHER_MAX_DELIVERIES", 10, "hand-overs before a job is a dead letter", ge=1)
    max_skips: int = var(
        "DISPATCHER_MAX_SKIPS", 100, "how often the oldest waiting job may be passed over for a warmer one", ge=0
    )

    max_pixels: int = var("DISPATCHER_MAX_PIXELS", 4_194_304, "of one image; more is refused at submission", gt=0)
    max_steps: int = var("DISPATCHER_MAX_STEPS", 150, "more is refused at submission", gt=0)
    max_images: int = var("DISPATCHER_MAX_IMAGES", 16, "of one job; more is refused at submission", gt=0)
    job_timeout_max: Duration = var(
        "DISPATCHER_JOB_TIMEOUT_MAX", timedelta(hours=1), "what a job may ask for", shown="1h", gt=ZERO
    )

    @property
    def rules(self) -> Rules:
        return Rules(max_skips=self.max_skips, coverage=self.coverage)


class Settings(SettingsTree):
    """The whole tree; built from the environment by `load_settings` alone. ``warnings``: odd, though no mistake."""

    serve: ServeSettings = Field(ServeSettings(), title="service")
    access: AccessSettings = Field(AccessSettings(), title="access")
    webhook: WebhookSettings = Field(WebhookSettings(), title="webhooks")
    rules: RuleSettings = Field(RuleSettings(), title="rules")
    warnings: tuple[FieldError, ...] = ()

    @property
    def host(self) -> str:
        """Where to listen: everywhere, but on loopback alone where everybody may do everything."""
        return self.serve.host or (LOOPBACK if self.access.open else EVERYWHERE)

    @property
    def limits(self) -> Limits:
        """What a single job may ask for."""
        rules = self.rules
        return Limits(
            max_pixels=rules.max_pixels,
            max_steps=rules.max_steps,
            max_images=rules.max_images,
            max_timeout=rules.job_timeout_max,
            max_body=self.serve.max_body,
        )


def variables() -> tuple[Variable, ...]:
    """Every variable of the dispatcher, in the order of the groups."""
    return variables_of(Settings)


def from_environment() -> Settings:
    """The settings of this process; `ConfigError` with every mistake at once."""
    return load_settings(surroundings())


def load_settings(environ: Mapping[str, str]) -> Settings:
    """The settings that these variables describe; `ConfigError` with every mistake at once."""
    source = EnvironmentSource(Settings, environ, DIALECT)
    settings, found = validated(Settings, source())
    mistakes = [*source.mistakes, *found]
    mistakes += _mistakes(settings, {mistake.field for mistake in mistakes})
    if mistakes:
        raise ConfigError(tuple(mistakes))
    unknown = (FieldError(name, "is unknown and has no effect") for name in source.unknown)
    return settings.model_copy(update={"warnings": (*unknown, *_hints(settings))})


def secrets_of(settings: Settings) -> tuple[SecretStr, ...]:
    """The secrets that are set, each token by itself and those of the secrets file included: a log hides them."""
    access, webhook = settings.access, settings.webhook
    found = [SecretStr(token) for token in (*access.users, *access.nodes)]
    found += [webhook.secret] if webhook.secret else []
    if password := urlsplit(settings.serve.database_url.get_secret_value()).password:
        found.append(SecretStr(password))
    if webhook.secrets_file is not None:
        keys = (key for keys in read_secrets(webhook.secrets_file).values() for key in keys)
        found += (SecretStr(f"whsec_{b64encode(key).decode()}") for key in keys)
    return tuple(found)


def _mistakes(settings: Settings, known: set[str]) -> Iterator[FieldError]:
    """What contradicts itself; nothing is said twice of a variable whose value is wrong already."""
    access, webhook = settings.access, settings.webhook
    one, other = "DISPATCHER_SALAD_ORGANIZATION_ID", "DISPATCHER_SALAD_CONTAINER_GROUP_IDS"
    if bool(access.salad_organization_id) != bool(access.salad_container_group_ids):
        there, missing = (one, other) if access.salad_organization_id else (other, one)
        yield FieldError(missing, f"is needed beside {there}: identity tokens count only with both")
    if {"DISPATCHER_USER_TOKENS", "DISPATCHER_NODE_TOKENS", "DISPATCHER_HOST"} & known:
        return
    if access.open and not _is_loopback(settings.host):
        yield FieldError(
            "DISPATCHER_HOST", "without any token only loopback may be listened on; set DISPATCHER_USER_TOKENS"
        )
    if not access.open and not access.users:
        yield FieldError("DISPATCHER_USER_TOKENS", "is needed, or nobody could submit a job")
    if not access.open and not access.nodes and not access.identity:
        yield FieldError("DISPATCHER_NODE_TOKENS", "is needed, or no node could ask for work")
    if set(access.users) & set(access.nodes):
        yield FieldError(
            "DISPATCHER_NODE_TOKENS", "holds a token of DISPATCHER_USER_TOKENS: nodes must not submit jobs"
        )
    if webhook.secrets_file is not None:
        try:
            read_secrets(webhook.secrets_file)
        except ValueError as mistake:
            yield FieldError("DISPATCHER_WEBHOOK_SECRETS_FILE", str(mistake))


def _hints(settings: Settings) -> Iterator[FieldError]:
    access = settings.access
    if access.open:
        yield FieldError("DISPATCHER_USER_TOKENS", "is not set: no authentication, so this machine alone is served")
    for name, tokens in (("DISPATCHER_USER_TOKENS", access.users), ("DISPATCHER_NODE_TOKENS", access.nodes)):
        if any(len(token) < SHORT_TOKEN for token in tokens):
            yield FieldError(name, f"holds a token of fewer than {SHORT_TOKEN} characters, which can be guessed")
    if settings.rules.node_timeout > settings.rules.lease:
        yield FieldError("DISPATCHER_NODE_TIMEOUT", "is longer than DISPATCHER_LEASE: nodes outlive their jobs")


def _is_loopback(host: str) -> bool:
    if host == LOOPBACK:
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
