"""What a single value must be, beyond its type. Messages never repeat the value."""

from __future__ import annotations

import ipaddress
import re
import shlex
from string import Formatter
from typing import Annotated, Any, get_args

from pydantic import AfterValidator, BeforeValidator, SecretStr, StringConstraints

from worker.job import Event
from worker.settings.units import check_url
from worker.signature import decode_secrets

KEY_FIELDS = ("prefix", "id", "index", "hash", "ext")
KEY_REQUIRED = ("id", "index", "hash")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_KIND_FOLDER = re.compile(r"[a-z][a-z0-9_]{0,63}=/\S*")
_HOST = re.compile(r"(?=.{1,253}$)[a-z0-9_]([a-z0-9_-]{0,62})(\.[a-z0-9_]([a-z0-9_-]{0,62}))*", re.IGNORECASE)


def parse_events(value: Any) -> Any:
    """Webhook events of a text that separates them by commas or blanks, each once."""
    if not isinstance(value, str):
        return value
    events = tuple(dict.fromkeys(value.replace(",", " ").split()))
    if not events or not set(events) <= set(get_args(Event)):
        raise ValueError(f"must name events, separated by commas: {', '.join(get_args(Event))}")
    return events


def parse_command(value: Any) -> Any:
    """The words of a command line that is quoted as in a shell; no shell runs it."""
    if not isinstance(value, str):
        return value
    try:
        return tuple(shlex.split(value))
    except ValueError:
        raise ValueError("has unbalanced quotes") from None


def parse_variable_names(value: Any) -> Any:
    """Names of environment variables, separated by commas or blanks."""
    if not isinstance(value, str):
        return value
    names = tuple(dict.fromkeys(value.replace(",", " ").split()))
    if not all(_VARIABLE.fullmatch(name) for name in names):
        raise ValueError("must be names of environment variables, separated by blanks")
    return names


def parse_words(value: Any) -> Any:
    """Words separated by blanks, each once."""
    return tuple(dict.fromkeys(value.split())) if isinstance(value, str) else value


def parse_hosts(value: Any) -> Any:
    """Host names separated by commas or blanks, in lower case; ``*`` for any."""
    if not isinstance(value, str):
        return value
    hosts = tuple(dict.fromkeys(value.lower().replace(",", " ").split()))
    if not all(host == "*" or _HOST.fullmatch(host) for host in hosts):
        raise ValueError("must be host names separated by blanks, or *")
    return hosts


def check_kind_folders(value: tuple[str, ...]) -> tuple[str, ...]:
    """``kind=/absolute/path`` words."""
    if not all(_KIND_FOLDER.fullmatch(word) for word in value):
        raise ValueError("must be kind=/absolute/path, separated by blanks")
    if len({word.partition("=")[0] for word in value}) < len(value):
        raise ValueError("names a kind twice")
    return value


def check_source_templates(value: tuple[str, ...]) -> tuple[str, ...]:
    """URLs with the placeholders ``{kind}`` and ``{name}``, the second of which each must have."""
    for template in value:
        try:
            names = [name for _, name, _, _ in Formatter().parse(template) if name is not None]
        except ValueError:
            raise ValueError("has unbalanced braces") from None
        if not set(names) <= {"kind", "name"} or "name" not in names:
            raise ValueError("must hold {name}, may hold {kind}, and nothing else in braces")
        check_url(template.format(kind="k", name="n"), ("s3", "http", "https"))
    return value


def check_key_pattern(value: str) -> str:
    """A pattern by which no two images of a job, and no two versions of one image, share a key."""
    try:
        parts = list(Formatter().parse(value))
    except ValueError:
        raise ValueError("has unbalanced braces") from None
    names = [name for _, name, _, _ in parts if name is not None]
    if any(name not in KEY_FIELDS or spec or conversion for _, name, spec, conversion in parts if name is not None):
        raise ValueError(f"may only hold the placeholders {_placeholders(KEY_FIELDS)}")
    missing = [name for name in KEY_REQUIRED if name not in names]
    if missing:
        raise ValueError(f"lacks {_placeholders(missing)}")
    if ".." in value.split("/"):
        raise ValueError("must not hold '..'")
    return value


def _placeholders(names: list[str] | tuple[str, ...]) -> str:
    return ", ".join(f"{{{name}}}" for name in names)


def check_key_prefix(value: str) -> str:
    """A prefix without slashes around it; empty: none."""
    value = value.strip("/")
    if value and any(part in ("", ".", "..") for part in value.split("/")):
        raise ValueError("must not hold empty, '.' or '..' parts")
    return value


def check_signing_secrets(value: SecretStr) -> SecretStr:
    """One or more ``whsec_`` secrets separated by blanks, as Standard Webhooks writes them."""
    decode_secrets(value.get_secret_value())
    return value


def check_private_hosts(value: str) -> str:
    """``true``, ``false``, or hosts, addresses and CIDRs separated by commas or blanks."""
    if value.lower() in ("true", "false"):
        return value.lower()
    if not all(_is_network(part) or _HOST.fullmatch(part) for part in value.replace(",", " ").split()):
        raise ValueError("must be true, false, or hosts and CIDRs separated by blanks")
    return value


def _is_network(text: str) -> bool:
    try:
        ipaddress.ip_network(text.strip("[]"), strict=False)
    except ValueError:
        return False
    return True


CommandLine = Annotated[tuple[str, ...], BeforeValidator(parse_command)]
VariableNames = Annotated[tuple[str, ...], BeforeValidator(parse_variable_names)]
UserName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*(:[A-Za-z0-9_][A-Za-z0-9_.-]*)?$")]
Events = Annotated[tuple[Event, ...], BeforeValidator(parse_events)]
KeyPattern = Annotated[str, AfterValidator(check_key_pattern)]
KeyPrefix = Annotated[str, AfterValidator(check_key_prefix)]
SigningSecrets = Annotated[SecretStr, AfterValidator(check_signing_secrets)]
PrivateHosts = Annotated[str, AfterValidator(check_private_hosts)]
Hosts = Annotated[tuple[str, ...], BeforeValidator(parse_hosts)]
KindFolders = Annotated[tuple[str, ...], BeforeValidator(parse_words), AfterValidator(check_kind_folders)]
SourceTemplates = Annotated[tuple[str, ...], BeforeValidator(parse_words), AfterValidator(check_source_templates)]
Bucket = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{1,254}$")]
NodeName = Annotated[str, StringConstraints(pattern=r"^[!-~]{1,128}$")]
